"""The front: the FastAPI application, its processes, and the process tree with Triton."""
