"""Models for Triton's python backend, written by hand: what entries of ours are compared with."""
