"""The iris service as others serve it, each in an environment of its own; nothing here imports adapter."""
