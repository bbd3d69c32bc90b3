"""What is known of a saved model: its signatures, its record, and the folder it lies in."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import cloudpickle
import numpy as np

from adapter.exceptions import InvalidArgument, StateException
from adapter.tag import Tag
from adapter.tensor import TensorSpec

if TYPE_CHECKING:
    from adapter.runnable import Runnable
    from adapter.runner import Runner

V = TypeVar("V")

DEFAULT_MAX_BATCH_SIZE = 100
DEFAULT_MAX_LATENCY_MS = 60_000


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its name, the name of its `inspect` kind, and whether a call must give it."""

    name: str
    kind: str = "POSITIONAL_OR_KEYWORD"
    required: bool = True

    @classmethod
    def all_of(cls, function: Any) -> tuple[Parameter, ...] | None:
        """The parameters of a bound method or function, None where Python cannot tell them (some C functions)."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None
        return tuple(cls(p.name, p.kind.name, p.default is p.empty) for p in signature.parameters.values())


@dataclass(frozen=True)
class Signature:
    """How one method is called: whether calls may be joined to a batch, on which axes, and what is known of the call.

    `batch_dim` is a pair (axis of the inputs, axis of the outputs); a single number stands for both.
    `inputs` and `outputs` are None where they are not known: such a call travels as one self-describing blob.
    `parameters` are those of the method itself, None where they are not known.
    """

    batchable: bool = False
    batch_dim: tuple[int, int] = (0, 0)
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    parameters: tuple[Parameter, ...] | None = None

    @classmethod
    def of(cls, spec: Signature | Mapping[str, Any]) -> Signature:
        """Read the mapping that people write: `batchable`, `batch_dim`, `input_spec`, `output_spec`."""
        if isinstance(spec, Signature):
            return spec
        if not isinstance(spec, Mapping):
            raise InvalidArgument(f"A signature is a mapping such as {{'batchable': True}}, not {spec!r}.")
        known = {"batchable", "batch_dim", "input_spec", "output_spec"}
        for key in spec:
            if key not in known:
                raise InvalidArgument(f"A signature has no key {key!r}; it has {', '.join(sorted(known))}.")
        batchable = bool(spec.get("batchable", False))
        batch_dim = batch_axes(spec.get("batch_dim", 0))
        return cls(
            batchable,
            batch_dim,
            tensor_specs(spec.get("input_spec"), "", batch_dim[0] if batchable else None),
            tensor_specs(spec.get("output_spec"), "output_", batch_dim[1] if batchable else None),
        )

    @property
    def typed(self) -> bool:
        """Whether every tensor is known and Triton has a data type for each."""
        specs = [*(self.inputs or ()), *(self.outputs or ())]
        return bool(self.inputs and self.outputs) and all(s.triton for s in specs)

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {"batchable": self.batchable}
        if self.batchable:
            record["batch_dim"] = list(self.batch_dim)
        if self.inputs is not None:
            record["inputs"] = [s.to_dict() for s in self.inputs]
        if self.outputs is not None:
            record["outputs"] = [s.to_dict() for s in self.outputs]
        if self.parameters is not None:
            record["parameters"] = [{"name": p.name, "kind": p.kind, "required": p.required} for p in self.parameters]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Signature:
        def specs(key: str) -> tuple[TensorSpec, ...] | None:
            return tuple(TensorSpec.from_dict(s) for s in record[key]) if record.get(key) is not None else None

        axes = record.get("batch_dim", (0, 0))
        parameters = record.get("parameters")
        return cls(
            bool(record.get("batchable", False)),
            (axes[0], axes[1]),
            specs("inputs"),
            specs("outputs"),
            tuple(Parameter(**p) for p in parameters) if parameters is not None else None,
        )


def batch_axes(value: Any) -> tuple[int, int]:
    """Read `batch_dim`: a number for inputs and outputs, or a pair (inputs, outputs)."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(axis, int) and axis >= 0 for axis in pair):
        raise InvalidArgument(f"batch_dim is a number from 0 on, or a pair (input axis, output axis), not {value!r}.")
    return pair


def tensor_specs(spec: Any, prefix: str, batch_dim: int | None) -> tuple[TensorSpec, ...] | None:
    """Read `input_spec` or `output_spec`: one spec, a list of specs, or a mapping from names to specs.

    Inputs without a name are named after the parameters of the method, outputs `output_0`, `output_1`, …
    """
    if spec is None:
        return None
    if isinstance(spec, Mapping):
        return tuple(TensorSpec.of(s, name, batch_dim=batch_dim) for name, s in spec.items())
    several = isinstance(spec, (list, tuple)) and not (len(spec) == 2 and isinstance(spec[0], (str, type, np.dtype)))
    specs: Sequence[Any] = spec if several else [spec]
    return tuple(TensorSpec.of(s, f"{prefix}{i}" if prefix else "", batch_dim=batch_dim) for i, s in enumerate(specs))


@dataclass(frozen=True)
class BatchingConfig:
    """Limits on the batches of one method: items in one, and milliseconds that a call may wait for its turn."""

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_latency_ms: float = DEFAULT_MAX_LATENCY_MS

    def __post_init__(self) -> None:
        if isinstance(self.max_batch_size, bool) or not isinstance(self.max_batch_size, int) or self.max_batch_size < 1:
            raise InvalidArgument(f"max_batch_size is a whole number from 1 on, not {self.max_batch_size!r}.")
        if isinstance(self.max_latency_ms, bool) or not isinstance(self.max_latency_ms, (int, float)):
            raise InvalidArgument(f"max_latency_ms is a number of milliseconds, not {self.max_latency_ms!r}.")
        if not 0 < self.max_latency_ms < math.inf:
            raise InvalidArgument(f"max_latency_ms is a finite number above 0, not {self.max_latency_ms!r}.")


@dataclass(frozen=True)
class ModelInfo:
    """The record of a saved model, as `model.yaml` holds it.

    `module` names the framework (`adapter.sklearn`); `context` the versions it was saved with: `framework_name`,
    `framework_versions`, `adapter_version`, `python_version`.
    """

    tag: Tag
    module: str
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    api_version: str = "v1"
    creation_time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @property
    def name(self) -> str:
        return self.tag.name

    @property
    def version(self) -> str:
        return self.tag.version or ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of `model.yaml`."""
        return {
            "name": self.tag.name,
            "version": self.tag.version,
            "module": self.module,
            "labels": dict(self.labels),
            "options": dict(self.options),
            "metadata": dict(self.metadata),
            "context": dict(self.context),
            "signatures": {name: s.to_dict() for name, s in self.signatures.items()},
            "api_version": self.api_version,
            "creation_time": self.creation_time.isoformat(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelInfo:
        """Read what `to_dict` wrote; KeyError, TypeError, ValueError and the like where it is no such record."""
        for key in ("name", "version", "module", "creation_time"):
            if key not in record:
                raise KeyError(key)
        created = datetime.fromisoformat(str(record["creation_time"]))
        return cls(
            tag=Tag(record["name"], record["version"]),
            module=_of_type(str, record, "module"),
            labels=_of_type(dict, record, "labels"),
            options=_of_type(dict, record, "options"),
            metadata=_of_type(dict, record, "metadata"),
            context=_of_type(dict, record, "context"),
            signatures={n: Signature.from_dict(s) for n, s in _of_type(dict, record, "signatures").items()},
            api_version=str(record.get("api_version", "v1")),
            creation_time=created if created.tzinfo is not None else created.replace(tzinfo=timezone.utc),
        )


def _of_type(kind: type[V], record: Mapping[str, Any], key: str) -> V:
    """A value of a record; where it has none, an empty one."""
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{key} is {value!r}, and no {kind.__name__}")
    return value


class Model:
    """A saved model: its tag, its record (`info`) and the folder with its files.

    A front that only has the manifest of a repository knows the record but not the files: `path` then raises
    StateException, while `to_runner()` works.
    """

    CUSTOM_OBJECTS: ClassVar[str] = "custom_objects.pkl"

    def __init__(self, info: ModelInfo, folder: Path | None) -> None:
        self.info = info
        self._folder = folder
        self._loaded: Any = None

    @property
    def tag(self) -> Tag:
        return self.info.tag

    @property
    def folder(self) -> Path:
        """The folder with the model's files; StateException where only the record is known."""
        if self._folder is None:
            raise StateException(
                f"The files of {self.tag} are not on this machine: it knows the model from a manifest only, "
                "so code here can make a runner of it, but not load it."
            )
        return self._folder

    @property
    def path(self) -> str:
        """The folder with the model's files, as a string."""
        return str(self.folder)

    def path_of(self, name: str) -> str:
        """The path of one file of the model."""
        return str(self.folder / name)

    @property
    def creation_time(self) -> datetime:
        return self.info.creation_time

    @property
    def file_size(self) -> int:
        """Bytes of all files of the model."""
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())

    @property
    def custom_objects(self) -> dict[str, Any]:
        """The `custom_objects` given when the model was saved."""
        file = self.folder / self.CUSTOM_OBJECTS
        if not file.exists():
            return {}
        objects: dict[str, Any] = cloudpickle.loads(file.read_bytes())
        return objects

    def with_options(self, **options: Any) -> Model:
        """The same model with some of the options of its framework changed."""
        return Model(dataclasses.replace(self.info, options={**self.info.options, **options}), self._folder)

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """The native object, loaded once where no arguments are given."""
        if args or kwargs:
            return self._framework.load_model(self, *args, **kwargs)
        if self._loaded is None:
            self._loaded = self._framework.load_model(self)
        return self._loaded

    def to_runnable(self) -> type[Runnable]:
        """A Runnable class whose methods are the saved signatures."""
        runnable: type[Runnable] = self._framework.get_runnable(self)
        return runnable

    def to_runner(self, name: str = "", **options: Any) -> Runner:
        """A Runner of this model, named after it; `options` are those of `adapter.Runner` (`gpu=1`, `cpu=2`, …)."""
        runner: Runner = self._framework.to_runner(self, name, **options)
        return runner

    def inspected(self) -> ModelInfo:
        """The record with what the model, loaded and tried, tells of the parameters and tensors of its methods."""
        info: ModelInfo = self._framework.framework.inspected(self)
        return info

    @property
    def _framework(self) -> Any:
        # the one dynamic import: a record names its framework ("adapter.sklearn"), each is one file in frameworks/
        return importlib.import_module(f"adapter.frameworks.{self.info.module.removeprefix('adapter.')}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.tag == other.tag

    def __hash__(self) -> int:
        return hash(self.tag)

    def __repr__(self) -> str:
        return f'Model(tag="{self.tag}")'
