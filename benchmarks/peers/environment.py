"""The environments that peers are installed in, kept from run to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.exceptions import BenchmarkError

_PEERS = Path(__file__).parent
_ENVIRONMENTS = _PEERS.parent / ".venvs"


def python_of(peer: str) -> Path:
    """The Python of the environment of `<peer>.txt`; it is made where it is not there, or where the file changed."""
    wanted = (_PEERS / f"{peer}.txt").read_text(encoding="utf-8")
    folder = _ENVIRONMENTS / peer
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(_PEERS / f"{peer}.txt")])
        installed.write_text(wanted, encoding="utf-8")
    return python


def versions(python: Path, *distributions: str) -> str:
    """The versions of what is installed there."""
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return _run([str(python), "-c", code, *distributions]).strip()


def _run(arguments: list[str]) -> str:
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchmarkError(f"{' '.join(arguments)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout
