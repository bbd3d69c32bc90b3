"""What of a person's code goes with a Runnable into an entry: its pickle, its modules, its files, its requirements.

A module that makes a Service, or gets runners and saved models, cannot be imported inside Triton (it would look for them
there), so what a Runnable uses of it travels by value, with cloudpickle. Other modules of the person's own travel as source files, and are
imported there. Fingerprints are taken of sources, never of pickles, which change with the hash seed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

from adapter import payload
from adapter.exceptions import AdapterError, ExportError, PayloadTypeError
from adapter.model import Model
from adapter.runnable import Runnable
from adapter.triton.worker import model_in_entry, path_in_entry

FILES, CODE = "files", "code"
_LOOKS_UP = ("adapter.services", "adapter.runner", "adapter.model")
_CODE_FLAGS = ("co_code", "co_names", "co_varnames")


@dataclass(frozen=True)
class Capture:
    """What one Runnable takes with it.

    `code` and `files` map places inside the entry to files of the service's folder, `models` are all saved models that
    it names, `requirements` are lines of `requirements.txt`, `fingerprint` is the same while its source is.
    """

    runnable: type[Runnable]
    init_params: Mapping[str, Any]
    code: Mapping[str, Path]
    files: Mapping[str, Path]
    models: tuple[Model, ...]
    requirements: tuple[str, ...]
    fingerprint: str
    by_value: tuple[str, ...] = field(compare=False)

    def pickle(self) -> bytes:
        """The Runnable class and its init parameters; ExportError names what cannot travel."""
        return _dump((self.runnable, self.init_params), self.by_value)[0]


def capture(runnable: type[Runnable], init_params: Mapping[str, Any], models: Sequence[Model], folder: Path) -> Capture:
    """Find what a Runnable of a service in `folder` needs elsewhere."""
    sources = _Sources(folder)
    sources.visit(runnable)
    files: dict[str, Path] = {}
    parameters = {name: _take_files(value, folder, files) for name, value in init_params.items()}
    sources.visit_value(dict(init_params))
    by_value = tuple(sorted(sources.by_value))
    _, named = _dump((runnable, parameters), by_value)
    every = {m.tag: m for m in (*models, *named)}
    digest = hashlib.sha256()
    parts = [*sorted(sources.texts), *(f"model {tag}" for tag in sorted(every))]
    parts += [f"{place} {file_digest(path)}" for place, path in sorted({**sources.files(), **files}.items())]
    for part in parts:
        digest.update(part.encode() + b"\0")
    return Capture(
        runnable=runnable,
        init_params=parameters,
        code=sources.files(),
        files=files,
        models=tuple(every[tag] for tag in sorted(every)),
        requirements=tuple(sorted(requirements_of(sources.third_party))),
        fingerprint=digest.hexdigest(),
        by_value=by_value,
    )


@cache
def file_digest(path: Path) -> str:
    """The SHA-256 of one file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


# ---- sources --------------------------------------------------------------------------------------------------------


class _Sources:
    """Follows a class through the names its code uses, into modules of the person's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._seen: set[int] = set()
        self._modules: dict[str, Path] = {}
        self.texts: set[str] = set()
        self.by_value: set[str] = set()
        self.third_party: set[str] = set()

    def files(self) -> dict[str, Path]:
        """Places inside the entry -> the source files that travel as files."""
        places = {}
        for name, path in self._modules.items():
            relative = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
            places[f"{CODE}/{relative}"] = path
        return places

    def visit(self, found: Any) -> None:
        """Record a class, function or module that the Runnable uses."""
        if id(found) in self._seen:
            return
        self._seen.add(id(found))
        if isinstance(found, types.ModuleType):
            self._visit_module(found.__name__)
        elif isinstance(found, (type, types.FunctionType)):
            module = found.__module__
            if self._travels_by_value(module):
                self.by_value.add(module)
                self._visit_definition(found)
            else:
                self._visit_module(module)

    def visit_value(self, value: Any) -> None:
        """Record a value: its content goes into the fingerprint, its class is followed."""
        if isinstance(value, (type, types.FunctionType, types.ModuleType)):
            self.visit(value)
        elif isinstance(value, Model):
            self.texts.add(f"model {value.tag}")
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self.texts.add(self._described(value))

    def _described(self, value: Any) -> str:
        if isinstance(value, (str, int, float, bool, type(None))):
            return repr(value)
        if isinstance(value, Mapping):
            for item in value.values():
                self.visit_value(item)
            return f"{type(value).__name__} of {sorted(map(str, value))}: {self._plain(value)}"
        if isinstance(value, (set, frozenset)):
            return f"{type(value).__name__} {sorted(map(repr, value))}"
        if isinstance(value, (list, tuple)):
            for item in value:
                self.visit_value(item)
            return f"{type(value).__name__} of {len(value)}: {self._plain(value)}"
        self.visit(type(value))
        plain = self._plain(value)
        if plain:
            return plain
        state = getattr(value, "__dict__", None)
        if state:
            self.visit_value(dict(state))
        return type(value).__qualname__

    def _plain(self, value: Any) -> str:
        try:
            return hashlib.sha256(payload.encode(value)).hexdigest()
        except PayloadTypeError:
            return ""

    def _visit_definition(self, found: type | types.FunctionType) -> None:
        self.texts.add(_text(found))
        if isinstance(found, type):
            for parent in found.__mro__[1:]:
                if parent is not object and not parent.__module__.startswith("adapter."):
                    self.visit(parent)
            members = [getattr(m, "__func__", m) for m in vars(found).values()]
            members += [m.fget for m in vars(found).values() if isinstance(m, property) and m.fget]
            functions = [inspect.unwrap(m) for m in members if callable(m)]
        else:
            functions = [found]
        for function in functions:
            if isinstance(function, types.FunctionType):
                self._visit_names(function)

    def _visit_names(self, function: types.FunctionType) -> None:
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self.visit_value(function.__globals__[name])
        for cell in function.__closure__ or ():
            self.visit_value(cell.cell_contents)
        for module in _imports(function, self._folder):
            self._visit_module(module)

    def _visit_module(self, name: str) -> None:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == "adapter" or name in self._modules:
            return
        path = _own_source(name)
        if path is None:
            self.third_party.add(top)
            return
        parts = name.split(".")
        for i in range(1, len(parts)):  # the packages that it lies in
            self._visit_module(".".join(parts[:i]))
        self._modules[name] = path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for module in sorted(_imported(tree, package)):
            self._visit_module(module)

    def _travels_by_value(self, module: str) -> bool:
        if module == "__main__" or module not in sys.modules:
            return True
        if _own_source(module) is None:
            return False
        # a Service (named: its room is above this one), a Runner or a Model among its globals looks for saved models
        return any(type(v).__module__ in _LOOKS_UP for v in vars(sys.modules[module]).values())


def _text(found: type | types.FunctionType) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):  # typed at a prompt
        if isinstance(found, type):
            functions = [f for f in vars(found).values() if isinstance(f, types.FunctionType)]
            return "".join([found.__qualname__, *(_text(f) for f in functions)])
        code = found.__code__
        constants = [c for c in code.co_consts if isinstance(c, (str, int, float, bytes, tuple, type(None)))]
        return repr([found.__qualname__, *(getattr(code, flag) for flag in _CODE_FLAGS), constants])


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _imports(function: types.FunctionType, folder: Path) -> set[str]:
    """The modules that a function imports when it runs."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return set()
    return _imported(tree, function.__module__.rpartition(".")[0])


def _imported(tree: ast.AST, package: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                root = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{root}.{base}".strip(".") if base else root
            found.add(base)
            found |= {f"{base}.{a.name}" for a in node.names if _own_source(f"{base}.{a.name}")}
    return found - {""}


@cache
def _installed() -> tuple[str, ...]:
    """The folders that belong to Python and to installed packages."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(p) + os.sep for p in paths if p)


def _own_source(name: str) -> Path | None:
    """The source file of a module that is the person's own: not Python's, not installed, not adapter's."""
    if name.partition(".")[0] == "adapter":
        return None
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None else None
    if not file or not file.endswith(".py"):
        return None
    real = os.path.realpath(file)
    own = not real.startswith(_installed()) and "site-packages" not in real and "dist-packages" not in real
    return Path(real) if own else None


def requirements_of(modules: set[str]) -> Iterator[str]:
    """The installed distributions of top-level modules, as lines of a requirements file."""
    providers = importlib.metadata.packages_distributions()
    for module in modules:
        for distribution in providers.get(module, ())[:1]:
            yield f"{distribution}=={importlib.metadata.version(distribution)}"


# ---- files and pickles ------------------------------------------------------------------------------------------------


class _PathInEntry:
    """Stands among the init parameters for an absolute path of the service's folder."""

    def __init__(self, relative: str, kind: str) -> None:
        self._relative = relative
        self._kind = kind

    def __reduce__(self) -> Any:
        return path_in_entry, (self._relative, self._kind)


def _take_files(value: Any, folder: Path, files: dict[str, Path]) -> Any:
    """The init parameter as it travels: files of the service's folder that it names are noted in `files`.

    A relative path stays as it is, since the worker's working directory is where the files lie; an absolute one is
    replaced. A bare word that names a folder is taken for a word.
    """
    if isinstance(value, dict):
        return {key: _take_files(item, folder, files) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take_files(item, folder, files) for item in value)
    if not isinstance(value, (str, Path)) or not str(value) or len(str(value)) > 4096 or "\0" in str(value):
        return value
    path = (folder / value).resolve()
    try:
        relative = path.relative_to(folder.resolve()).as_posix()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (ValueError, OSError):
        return value
    if is_file:
        files[f"{FILES}/{relative}"] = path
    elif is_folder and relative != "." and (isinstance(value, Path) or os.sep in value):
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            files[f"{FILES}/{relative}/{inner.relative_to(path).as_posix()}"] = inner
    else:
        return value
    if not Path(value).is_absolute():
        return value
    return _PathInEntry(f"{FILES}/{relative}", "Path" if isinstance(value, Path) else "str")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no type information
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.models: list[Model] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Model):
            self.models.append(obj)
            return model_in_entry, (obj.tag.name, obj.info.version)
        return super().reducer_override(obj)


def _dump(value: Any, by_value: Sequence[str]) -> tuple[bytes, list[Model]]:
    modules = [sys.modules[name] for name in by_value if name in sys.modules and name != "__main__"]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(value)
    except AdapterError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # whatever a person's own object raises
        name = value[0].__qualname__
        raise ExportError(
            f"The Runnable {name} cannot be written down: {error}. Make what it cannot take along (locks, "
            "connections, open files) in its __init__, and give it plain values as runnable_init_params."
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue(), pickler.models
