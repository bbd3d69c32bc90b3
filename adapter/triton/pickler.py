"""Runnables as pickles for an entry: the person's own classes by value, saved models as references into the entry."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import operator
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from adapter import payload
from adapter.context import Context
from adapter.exceptions import AdapterError, ExportError
from adapter.hosted import Hosted, context_class, local_runner
from adapter.model import Model
from adapter.runnable import Runnable, signatures
from adapter.runner import Runner
from adapter.triton.sources import hints_of
from adapter.triton.worker import model_in_entry


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no type information
    def __init__(self, file: io.BytesIO, hosted: bool) -> None:
        super().__init__(file, protocol=5)
        self._hosted = hosted
        self.models: list[Model] = []
        self.records: list[type] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Model):
            self.models.append(obj)
            return model_in_entry, (obj.tag.name, obj.info.version)
        if self._hosted and isinstance(obj, Runner):  # an attribute of a class-based service runs beside it there
            spec = obj.spec
            cls, parameters = (Runnable, {}) if obj.model is not None else (spec.runnable_class, dict(spec.init_params))
            return local_runner, (obj.model, obj.name, cls, parameters)
        if obj is Context:
            return context_class, ()  # an annotation; the one of a front is not there
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


def dump(value: Any, by_value: Sequence[str]) -> tuple[bytes, list[Model]]:
    """Pickle a Runnable class with its init parameters; also the saved models that it names.

    What is defined in the modules `by_value` is written whole. ExportError names what cannot be written.
    """
    modules = [sys.modules[name] for name in by_value if name in sys.modules and name != "__main__"]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        with _annotations(value[0], by_value):
            hosted = issubclass(value[0], Hosted)
            blob, pickler = _pickled(value, hosted)
            return (
                _pickled(_Completed(value, pickler.records), hosted)[0] if pickler.records else blob
            ), pickler.models
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


def _pickled(value: Any, hosted: bool) -> tuple[bytes, _Pickler]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, hosted)
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
        hints = hints_of(found)
        waiting += hints.values()
        if hints:
            yield found, {name: hint for name, hint in hints.items() if name in found.__annotations__}
