"""What is known of a saved model: its signatures, its record, and the folder it lies in."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import cloudpickle
import numpy as np

from adapter import payload
from adapter.exceptions import InvalidArgument, StateException
from adapter.kinds import BATCH_SIZE, LATENCY_MS, WAIT_MS, WrongKind
from adapter.tag import Tag
from adapter.tensor import TensorSpec

if TYPE_CHECKING:
    from adapter.runnable import Runnable
    from adapter.runner import Runner

V = TypeVar("V")

DEFAULT_MAX_BATCH_SIZE = 100
DEFAULT_MAX_LATENCY_MS = 60_000
DEFAULT_MAX_WAIT_MS = 0
_LIMITS = {"max_batch_size": BATCH_SIZE, "max_latency_ms": LATENCY_MS, "max_wait_ms": WAIT_MS}


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

        parameters = record.get("parameters")
        return cls(
            bool(record.get("batchable", False)),
            batch_axes(record.get("batch_dim", 0)),
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
    """Limits on the batches of one method.

    `max_batch_size` items are in one; a call is answered within `max_latency_ms`, or not at all; Triton may keep it
    back for `max_wait_ms`, so that others join it.
    """

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    max_latency_ms: float = DEFAULT_MAX_LATENCY_MS
    max_wait_ms: float = DEFAULT_MAX_WAIT_MS

    def __post_init__(self) -> None:
        for name, kind in _LIMITS.items():
            value = getattr(self, name)
            try:
                kind.read(value)
            except WrongKind:
                raise InvalidArgument(f"{name} is {value!r}, but can only be {kind.text}.") from None
        if self.max_wait_ms >= self.max_latency_ms:
            raise InvalidArgument(
                f"max_wait_ms is {self.max_wait_ms!r}, but can only be below max_latency_ms ({self.max_latency_ms:g})."
            )


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
        context = _of_type(dict, record, "context")
        _of_type(dict, context, "framework_versions")
        return cls(
            tag=Tag(record["name"], record["version"]),
            module=_of_type(str, record, "module"),
            labels=_of_type(dict, record, "labels"),
            options=_of_type(dict, record, "options"),
            metadata=_of_type(dict, record, "metadata"),
            context=context,
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
    SAMPLE: ClassVar[str] = "sample.bin"

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

    @property
    def sample(self) -> Any:
        """The rows of the input that were given as `sample` when the model was saved, None where there were none."""
        file = self.folder / self.SAMPLE
        return payload.decode(file.read_bytes()) if file.exists() else None

    def with_options(self, **options: Any) -> Model:
        """The same model with some of the options of its framework changed; InvalidArgument where it has no such.

        Where `partial_kwargs` change, what the method returns is no longer known, so its calls travel as blobs.
        """
        given = plain(options, "options")
        # a model that was saved without a framework has the options that it was given
        own = self.info.module.startswith("adapter.")
        known = {*self.info.options, *(self._framework.framework.options if own else options)}
        for option in options:
            if option not in known:
                raise InvalidArgument(
                    f"A model of {self.info.module} has no option {option!r}; it has {', '.join(sorted(known))}."
                )
        before, changed = self.info.options, {**self.info.options, **given}
        signatures = {
            method: signature
            if _partial(before, method) == _partial(changed, method)
            else dataclasses.replace(signature, outputs=None)
            for method, signature in self.info.signatures.items()
        }
        return Model(dataclasses.replace(self.info, options=changed, signatures=signatures), self._folder)

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
        module = self.info.module
        name = f"adapter.frameworks.{module.removeprefix('adapter.')}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not module or error.name == name:
                by = f"with {module}, which is no framework of adapter" if module else "without a framework"
                raise StateException(
                    f"The model {self.tag} was saved {by}: write an adapter.Runnable that loads it from `model.path`."
                ) from error
            raise

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.tag == other.tag

    def __hash__(self) -> int:
        return hash(self.tag)

    def __repr__(self) -> str:
        return f'Model(tag="{self.tag}")'


def _partial(options: Mapping[str, Any], method: str) -> Any:
    """The keyword arguments of each call of a method, where they are what they should be."""
    found = options.get("partial_kwargs")
    return found.get(method) if isinstance(found, Mapping) else found


def plain(value: Any, where: str) -> Any:
    """`value` as YAML and JSON can both write it: numpy and pandas values as numbers, text, lists and dicts.

    InvalidArgument names the place of a value that has no such form.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = (value.astype(str) if value.dtype.kind in "mM" else value).tolist()
    elif isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "to_dict"):  # a DataFrame or a Series
        value = value.to_dict()
    if value is None or isinstance(value, (bool, int, float, str)):
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)  # YAML refuses subclasses, such as the strings of some libraries
        return None
    if isinstance(value, Mapping):
        return {_plain_key(key, where): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "isoformat"):  # a date or a time
        return value.isoformat()
    raise InvalidArgument(
        f"{where} holds a value of type {type(value).__name__}, which model.yaml cannot: give numbers, text, dates, "
        "lists and dicts, and anything else as custom_objects={…}."
    )


def _plain_key(key: Any, where: str) -> str | int | float | bool:
    found = plain(key, where)
    if found is None or isinstance(found, (dict, list)):
        raise InvalidArgument(f"{where} has the key {key!r}, which model.yaml cannot hold: use text or a number.")
    result: str | int | float | bool = found
    return result
