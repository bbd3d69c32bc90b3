"""`python -m adapter`, the same as the command `adapter`."""

from __future__ import annotations

from adapter.cli import main

if __name__ == "__main__":
    main(prog_name="adapter")
