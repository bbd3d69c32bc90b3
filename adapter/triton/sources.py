"""The person's own code that a Runnable uses: followed through names and imports, and told from installed code."""

from __future__ import annotations

import ast
import contextlib
import copyreg
import dataclasses
import hashlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
import types
import typing
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from adapter import payload
from adapter.exceptions import PayloadTypeError
from adapter.model import Model
from adapter.runner import Runner

# where the classes are defined, of which the Service has its room above this one
_LOOKS_UP = ("adapter.services", "adapter.classes", "adapter.runner", "adapter.model")
_CODE_FLAGS = ("co_code", "co_names", "co_varnames")


class Sources:
    """Follows a class through the names its code uses, into modules of the person's own."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # kept alive, since another object may get the id of one that is gone
        self._known: dict[int, tuple[Any, str]] = {}
        self._modules: dict[str, Path] = {}
        self.texts: set[str] = set()
        self.by_value: set[str] = set()
        self.third_party: set[str] = set()

    def files(self) -> dict[str, Path]:
        """The files that travel as files, by their place below the folder that is put on Python's path."""
        places = {}
        for name, path in self._modules.items():
            folder = name.replace(".", "/")
            if path.name != "__init__.py":
                places[f"{folder}.py"] = path
                continue
            if not _looks_up(name):  # else its modules are found without it
                places[f"{folder}/__init__.py"] = path
            for data in path.parent.rglob("*"):  # a package is complete with the data files in its folder
                inner = data.relative_to(path.parent)
                hidden = any(part.startswith((".", "__")) for part in inner.parts)
                if data.is_file() and data.suffix not in (".py", ".pyc") and not hidden:
                    places[f"{folder}/{inner.as_posix()}"] = data
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
                if "<locals>" in found.__qualname__ and own_source(module):
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
        if isinstance(value, Runner):
            return [value.name, self._describe(value.spec.runnable_class), self._describe(dict(value.spec.init_params))]
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
        for hint in hints_of(found).values():
            for cls in _classes(hint):
                self.visit(cls)

    def _visit_module(self, name: str) -> None:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == "adapter" or name in self._modules:
            return
        path = own_source(name)
        if path is None:
            self.third_party.add(top)
            return
        parts = name.split(".")
        for i in range(1, len(parts)):  # the packages that it lies in
            self._visit_module(".".join(parts[:i]))
        self._modules[name] = path
        if path.name == "__init__.py" and _looks_up(name):
            return
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for module in sorted(_imported(tree, package)):
            self._visit_module(module)

    def _travels_by_value(self, module: str) -> bool:
        """Whether what a module defines is written whole, since the module cannot be imported in a worker."""
        if module == "__main__" or module not in sys.modules:
            return True
        return own_source(module) is not None and _looks_up(module)


def _looks_up(module: str) -> bool:
    """Whether a module looks for saved models: a Service, a Runner or a Model is among its globals."""
    found = vars(sys.modules[module]) if module in sys.modules else {}
    return any(type(v).__module__ in _LOOKS_UP for v in found.values())


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


def hints_of(found: Any) -> dict[str, Any]:
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
            found |= {f"{base}.{a.name}" for a in node.names if own_source(f"{base}.{a.name}")}
    return found - {""}


@cache
def _installed() -> tuple[str, ...]:
    """The folders that belong to Python and to installed packages."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(p) + os.sep for p in paths if p)


def own_source(name: str) -> Path | None:
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
