"""What of a person's code goes with a Runnable into an entry: its pickle, its modules, its files, its requirements.

A module that makes a Service, or gets runners and saved models, cannot be imported inside Triton (it would look for
them there), so what a Runnable uses of it travels by value, with cloudpickle. Other modules of the person's own travel
as source files, and are imported there. Fingerprints are taken of sources, never of pickles, which change with the
hash seed.
"""

from __future__ import annotations

import ast
import contextlib
import copyreg
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import operator
import os
import site
import sys
import sysconfig
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

from adapter import payload
from adapter.exceptions import AdapterError, ExportError, PayloadTypeError
from adapter.model import Model
from adapter.runnable import Runnable, signatures
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
    sources = _Sources()
    sources.visit(runnable)
    files: dict[str, Path] = {}
    parameters = {name: _take_files(value, folder, files) for name, value in init_params.items()}
    sources.visit_value("init parameters", parameters)
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


def file_digest(path: Path) -> str:
    """The SHA-256 of one file."""
    known = path.stat()
    return _digest_of(path, known.st_mtime_ns, known.st_size)


@cache
def _digest_of(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


# ---- sources --------------------------------------------------------------------------------------------------------


class _Sources:
    """Follows a class through the names its code uses, into modules of the person's own."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # kept alive, since another object may get the id of one that is gone
        self._known: dict[int, tuple[Any, str]] = {}
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
        self._seen[id(found)] = found
        if isinstance(found, types.ModuleType):
            self._visit_module(found.__name__)
        elif isinstance(found, (type, types.FunctionType)):
            module = found.__module__ or "__main__"
            if self._travels_by_value(module):
                self.by_value.add(module)
                self._visit_definition(found)
            else:
                self._visit_module(module)
                # made inside a function: its pickle holds it whole, with what it got there
                if "<locals>" in found.__qualname__ and _own_source(module):
                    self._visit_definition(found)

    def visit_value(self, name: str, value: Any) -> None:
        """Record a value under its name: its content goes into the fingerprint, its class is followed."""
        self.texts.add(f"{name} = {self._describe(value)}")

    def _describe(self, value: Any) -> str:
        """The content of a value as text that is the same in every process."""
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return repr(value)
        if isinstance(value, Model):
            return f"model {value.tag}"
        if isinstance(value, types.ModuleType):
            self.visit(value)
            return f"module {value.__name__}"
        if isinstance(value, (type, types.FunctionType)):
            self.visit(value)
            return f"{value.__module__}.{value.__qualname__}"
        if id(value) not in self._known:
            self._known[id(value)] = value, "itself"
            self.visit(type(value))
            content = hashlib.sha256("\0".join(self._content(value)).encode("utf-8", "surrogatepass")).hexdigest()
            self._known[id(value)] = value, f"{type(value).__module__}.{type(value).__qualname__} {content}"
        return self._known[id(value)][1]

    def _content(self, value: Any) -> list[str]:
        if isinstance(value, dict):
            return sorted(f"{self._describe(key)}: {self._describe(item)}" for key, item in value.items())
        if isinstance(value, (set, frozenset)):
            return sorted(map(self._describe, value))
        if isinstance(value, (list, tuple)):
            return list(map(self._describe, value))
        if isinstance(value, types.MethodType):
            return [self._describe(value.__func__), self._describe(value.__self__)]
        if not (dataclasses.is_dataclass(value) or hasattr(type(value), "model_fields")):
            try:
                return [hashlib.sha256(payload.encode(value)).hexdigest()]
            except PayloadTypeError:
                pass
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reduce = copyreg.dispatch_table.get(type(value))
                parts = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001  # a person's own object, which may not be meant to be written down
            return []
        if not isinstance(parts, tuple):
            return [str(parts)]
        return [self._describe(list(part) if isinstance(part, Iterator) else part) for part in parts]

    def _visit_definition(self, found: type | types.FunctionType) -> None:
        if isinstance(found, types.FunctionType):
            self._visit_function(found)
            return
        self.texts.add(_text(found))
        self._visit_annotations(found)
        for parent in found.__mro__[1:]:
            if parent is not object and not parent.__module__.startswith("adapter."):
                self.visit(parent)
        for name, member in vars(found).items():
            functions = [f for f in _functions(member) if isinstance(f, types.FunctionType)]
            for function in functions:
                self._visit_function(function)
            special = isinstance(member, (types.GetSetDescriptorType, types.MemberDescriptorType))
            if not functions and not name.startswith("__") and not special:
                self.visit_value(f"{found.__module__}.{found.__qualname__}.{name}", member)

    def _visit_function(self, function: types.FunctionType) -> None:
        self.texts.add(_text(function))
        self._visit_annotations(function)
        where = f"{function.__module__}.{function.__qualname__}"
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self.visit_value(f"{function.__globals__.get('__name__')}.{name}", function.__globals__[name])
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            with contextlib.suppress(ValueError):  # not bound yet
                self.visit_value(f"{where}.{name}", cell.cell_contents)
        # their values, since the source has but names where it says `threshold=THRESHOLD`
        self.visit_value(f"{where} defaults", [function.__defaults__, function.__kwdefaults__])
        for module in _imports(function):
            self._visit_module(module)

    def _visit_annotations(self, found: type | types.FunctionType) -> None:
        for hint in _hints(found).values():
            for cls in _classes(hint):
                self.visit(cls)

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


def _functions(member: Any) -> list[Any]:
    """The functions that a member of a class consists of, each with those that it wraps."""
    found = [getattr(member, "__func__", member)]
    if isinstance(member, property):
        found = [member.fget, member.fset, member.fdel]
    for function in found:
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            found.append(wrapped)
    return found


def _hints(found: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(found, include_extras=True)
    except Exception:  # noqa: BLE001  # annotations are the user's own code, and may name what is not imported
        return {}


def _classes(annotation: Any) -> list[type]:
    """The classes that an annotation names: `Row` in `list[Row] | None`."""
    inner = [cls for argument in typing.get_args(annotation) for cls in _classes(argument)]
    return [annotation] if isinstance(annotation, type) and not inner else inner


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _imports(function: types.FunctionType) -> set[str]:
    """The modules that a function imports when it runs."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return set()
    return _imported(tree, (function.__module__ or "").rpartition(".")[0])


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


# ---- files and pickles --------------------------------------------------------------------------------------------


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
    if type(value) is dict:
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
        self.records: list[type] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Model):
            self.models.append(obj)
            return model_in_entry, (obj.tag.name, obj.info.version)
        if obj is dataclasses.MISSING:
            return "MISSING"  # a copy of it would not be it, and dataclasses then take it for a default
        reduced = super().reducer_override(obj)
        generic = vars(obj).get("__pydantic_generic_metadata__") if isinstance(obj, type) else None
        if reduced is NotImplemented and generic and generic["origin"]:
            self.records.append(obj)  # pydantic 2.6 puts `RootModel[Row]` into a module, where the receiver has none
            return operator.getitem, (generic["origin"], generic["args"])
        if isinstance(obj, type) and "__pydantic_validator__" in vars(obj) and isinstance(reduced, tuple):
            self.records.append(obj)  # it travels by value, and its receiver derives from its fields what it lacks
            attributes = reduced[2][0]
            for name in payload.DERIVED:
                attributes.pop(name, None)
            attributes["__pydantic_parent_namespace__"] = None
        return reduced


@dataclass(frozen=True)
class _Completed:
    """Stands for a value whose pydantic models are complete once it has been read from its pickle."""

    value: Any
    records: Sequence[type]

    def __reduce__(self) -> Any:
        return payload.completed, (self.value, list(self.records))


def _dump(value: Any, by_value: Sequence[str]) -> tuple[bytes, list[Model]]:
    modules = [sys.modules[name] for name in by_value if name in sys.modules and name != "__main__"]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        with _annotations(value[0], by_value):
            blob, pickler = _pickled(value)
            return (_pickled(_Completed(value, pickler.records))[0] if pickler.records else blob), pickler.models
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


def _pickled(value: Any) -> tuple[bytes, _Pickler]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler


@contextlib.contextmanager
def _annotations(runnable: type[Runnable], by_value: Sequence[str]) -> Iterator[None]:
    """Let annotations be classes while a Runnable is pickled: their names mean nothing where it is read.

    Those of its served methods are what dataclasses and pydantic models are made anew from.
    """
    with contextlib.ExitStack() as stack:
        for found, hints in _named_in(runnable, by_value):
            before = found.__annotations__
            stack.callback(setattr, found, "__annotations__", before)
            found.__annotations__ = hints
        yield


def _named_in(runnable: type[Runnable], by_value: Sequence[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The served methods, and the dataclasses that they name and that travel by value, with what they name in turn."""
    waiting: list[Any] = [getattr(runnable, name) for name in signatures(runnable)]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        waiting += typing.get_args(found)
        record = isinstance(found, type) and dataclasses.is_dataclass(found)
        travels = record and (found.__module__ in by_value or "<locals>" in found.__qualname__)
        if id(found) in seen or not (travels or isinstance(found, types.FunctionType)):
            continue
        seen.add(id(found))
        hints = _hints(found)
        waiting += hints.values()
        if hints:
            yield found, {name: hint for name, hint in hints.items() if name in found.__annotations__}
