"""The services of ours that are measured, where no example serves."""
