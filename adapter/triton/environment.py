"""The environment variables of a tritonserver: which Python its stubs and their workers run."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import site
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from adapter import allocator
from adapter.exceptions import EngineError
from adapter.triton.installation import (
    OTHER_WAYS,
    PYTHONS,
    Installation,
    cache_folder,
    libpython,
    missing_libpython,
    needs_libpython,
    running_python,
)

logger = logging.getLogger("adapter.engine")

# Triton starts each stub with bash, whatever the caller's PATH is.
_PROGRAMS = ("/usr/local/bin", "/usr/bin", "/bin")


def environment(
    installation: Installation, env: Mapping[str, str], *, plain: Callable[[Path], Path] = Path
) -> dict[str, str]:
    """Make the environment in which Triton's stubs and their workers use the Python that runs this process.

    `plain` gives a folder a name in ASCII: from Python 3.11 on a stub does not find its site-packages under any other.
    Raises EngineError where a bundled engine cannot run this Python.
    """
    own = {"ADAPTER_WORKER_PYTHON": sys.executable, "PATH": _with_programs(env.get("PATH", ""))}
    made = {**allocator.ENVIRONMENT, **env, **own}
    if not installation.bundled:
        return made  # a container's stub has a Python and libraries of its own
    python = running_python()
    if installation.backends(python) is None:
        raise EngineError(
            f"Triton {installation.version} in {installation.prefix} runs models under Python {', '.join(PYTHONS)}, "
            f"and this is Python {python}: {OTHER_WAYS}."
        )
    folders = cache_folder(env) / "engine"
    # The stub takes its site-packages from the first python3 on PATH, a virtual environment's included.
    programs = Path(sys.executable).parent
    numpy = _folder_of_numpy()
    if numpy is not None and numpy not in map(Path, site.getsitepackages()):
        programs = _python_with(numpy, folders / "python") or programs
    if not str(programs).isascii():
        programs = plain(programs.parent) / programs.name
    made["PATH"] = _before(str(programs), made["PATH"])
    if needs_libpython(python):
        library = libpython(python)
        if library is None:
            raise missing_libpython(python)
        made["LD_LIBRARY_PATH"] = _before(
            str(_folder_of_one(library, folders / "libpython")), env.get("LD_LIBRARY_PATH", "")
        )
    return made


def _folder_of_numpy() -> Path | None:
    spec = importlib.util.find_spec("numpy")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent.parent


def _python_with(folder: Path, parent: Path) -> Path | None:
    """Make a virtual environment that sees what this Python does and `folder`; return its folder of programs.

    From Python 3.11 on the stub runs isolated: it reads neither PYTHONPATH nor a user's own site-packages
    (`pip install --user`), so it would not find a numpy that is only there. The worker, which runs the user's code, is
    this very Python, and needs no help.
    """
    paths = [str(folder), *site.getsitepackages()]
    made = parent / _digest(sys.executable, *paths)
    programs = made / "bin"
    packages = made / "lib" / f"python{running_python()}" / "site-packages"
    base = Path(getattr(sys, "_base_executable", sys.executable))
    try:
        programs.mkdir(parents=True, exist_ok=True)
        packages.mkdir(parents=True, exist_ok=True)
        _write(packages / "adapter.pth", "".join(map(_pth_line, paths)))
        _write(made / "pyvenv.cfg", f"home = {base.parent}\ninclude-system-site-packages = true\n")
        with contextlib.suppress(FileExistsError):
            (programs / "python3").symlink_to(base)
    except OSError as error:
        logger.debug("%s cannot be written (%s); Triton's stubs may not find numpy.", made, error)
        return None
    return programs


def _pth_line(path: str) -> str:
    """Make the line of a .pth file; a stub reads these as ASCII, and gives up at anything else."""
    if path.isascii():
        return f"{path}\n"
    return f"import os, sys; sys.path.append(os.fsdecode({os.fsencode(path)!r}))\n"


def _folder_of_one(library: Path, parent: Path) -> Path:
    """Return a folder with a link to `library` and nothing else.

    On LD_LIBRARY_PATH a system's library folder would come before the libraries that wheels in a virtual environment
    bring along, torch's among them, in the stubs and in every worker.
    """
    link = parent / _digest(str(library)) / library.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(library)
    except OSError as error:
        logger.debug("%s cannot be written (%s); using %s as it is.", link, error, library.parent)
        return library.parent
    return link.parent


def _with_programs(path: str) -> str:
    folders = path.split(os.pathsep) if path else []
    return os.pathsep.join([*folders, *(folder for folder in _PROGRAMS if folder not in folders)])


def _before(first: str, rest: str) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _write(path: Path, text: str) -> None:
    """Write a file that others may be reading, or writing with the same text."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
