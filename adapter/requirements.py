"""The installed distributions that modules come from, and the modules that pickles name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import pickletools
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO

_OURS = {"adapter"}
_INSTALLED = ("site-packages", "dist-packages")


def requirements_of(modules: Iterable[str]) -> Iterator[str]:
    """The installed distributions of top-level modules, as lines of a requirements file."""
    for name, version in versions_of(modules).items():
        yield f"{name}=={version}"


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """The installed distributions of top-level modules with their versions.

    Without their local part (`+cpu`), which no package index has.
    """
    distributions = _distributions()
    names = {distributions[module] for module in modules if module in distributions}
    return {name: importlib.metadata.version(name).partition("+")[0] for name in sorted(names)}


@cache
def _distributions() -> dict[str, str]:
    """Top-level modules and the distribution that brings each; Python 3.10's own answer knows but a part of them."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.name  # parsed anew each time
        for line in (distribution.read_text("RECORD") or "").splitlines():
            top, _, rest = line.partition(",")[0].partition("/")
            if rest or top.endswith((".py", ".so")):
                found[top.partition(".")[0]] = name
    return found


def pickled_modules(folder: Path) -> set[str]:
    """The top-level modules of installed libraries that the pickles in a folder name, which loading them imports."""
    return {name for name in _modules_in(folder) if is_installed(name)}


def own_modules(folder: Path) -> set[str]:
    """The top-level modules that the pickles in a folder name, and that were not installed."""
    found = _modules_in(folder)
    return {n for n in found if n in sys.modules and n not in sys.stdlib_module_names and not is_installed(n)} - _OURS


def _modules_in(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("*.pkl"):
        with path.open("rb") as file, contextlib.suppress(ValueError):  # joblib's own files are pickles in part only
            found.update(name.partition(".")[0] for name in _named(file))
    return found


def _named(pickle: IO[bytes]) -> Iterator[str]:
    """The modules of the classes and functions in a pickle, and those that cloudpickle imports."""
    memo: dict[int, str] = {}
    recent = ["", ""]  # the texts that were pushed last
    importing = False
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[argument if isinstance(argument, int) else len(memo)] = recent[-1]
            continue
        pushed = argument if isinstance(argument, str) and "UNICODE" in opcode.name else ""
        if opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            pushed = memo.get(argument, "")
        if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            module, _, name = str(argument).partition(" ") if argument else (recent[0], "", recent[1])
            yield module
            importing = name == "subimport"
        elif importing and pushed:
            yield pushed
            importing = False
        recent = [recent[-1], pushed]


def is_installed(module: str) -> bool:
    """Whether a module was installed, and is not of the person's own, which may be called as one in a distribution."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return any(place in Path(file).parts for place in _INSTALLED)
