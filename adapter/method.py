"""The served methods of a Runnable: how each is called, and its calls as tensors or plain values."""

from __future__ import annotations

import inspect
import json
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from adapter import payload
from adapter.exceptions import InvalidArgument, NotFound, PayloadTypeError, RemoteException, sentence
from adapter.model import BatchingConfig, Parameter, Signature
from adapter.runnable import Runnable, signatures
from adapter.tensor import Array, TensorSpec, to_front

logger = logging.getLogger(__name__)

_POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


@dataclass(frozen=True)
class MethodSpec:
    """One served method: how it is called, batched and typed; `stream` where it is a generator.

    The annotation of a generator's result, in `hints`, is that of one value.
    """

    name: str
    signature: Signature
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    stream: bool = False
    hints: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def call(self) -> inspect.Signature | None:
        """The method's own signature without `self`, None where it is not known."""
        if self.signature.parameters is None:
            return None
        return inspect.Signature(
            [
                inspect.Parameter(
                    p.name, getattr(inspect.Parameter, p.kind), default=inspect.Parameter.empty if p.required else None
                )
                for p in self.signature.parameters
            ]
        )

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise the TypeError that Python itself would where the arguments do not fit the method."""
        if self.call is not None and (kwargs or len(args) != self._arity):
            try:
                self.call.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.name}() {error}") from None

    @cached_property
    def _arity(self) -> int:
        """How many positional arguments fit without a look at their names, -1 where that depends."""
        parameters = self.signature.parameters or ()
        plain = all(p.kind in _POSITIONAL and p.required for p in parameters)
        return len(parameters) if plain else -1

    @cached_property
    def _keywords(self) -> frozenset[str]:
        """The parameters that can be given by name."""
        return frozenset(p.name for p in self.signature.parameters or () if p.kind in _NAMED)

    # ---- typed tensors ----------------------------------------------------------------------------------------

    @property
    def typed(self) -> bool:
        return self.signature.typed

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.signature.inputs or ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.signature.outputs or ()

    def pack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Array], str]:
        """The tensors of a typed call, batch axis first, and what else it carries as JSON ("" for nothing).

        Raises TypeError where a tensor is missing, InvalidArgument where its data type or shape does not fit, and
        PayloadTypeError where an argument beside the tensors is not a plain JSON value.
        """
        direct = self._direct
        if direct is not None and not kwargs and len(args) == len(direct) and _all_arrays(args):
            arrays = [spec.cast(value) for spec, value in zip(direct, args, strict=True)]
            self._check_sizes(arrays)
            return arrays, ""
        named = self._named(args, kwargs)
        arrays, columns = [], {}
        for spec in self.inputs:
            if spec.name not in named:
                raise TypeError(f"{self.name}() missing a required argument: {spec.name!r}")
            value = named.pop(spec.name)
            if hasattr(value, "to_numpy"):  # a DataFrame or a Series
                if hasattr(value, "columns"):
                    columns[spec.name] = [c if type(c) is int else str(c) for c in value.columns.tolist()]
                value = _numbers(value)
            arrays.append(self._wire(spec.cast(value), self.signature.batch_dim[0], spec))
        self._check_sizes(arrays)
        extra = {key: value for key, value in (("kwargs", named), ("columns", columns)) if value}
        return arrays, self._json(extra) if extra else ""

    @cached_property
    def _direct(self) -> tuple[TensorSpec, ...] | None:
        """The tensors, where the parameters are these in their order and arrays of them travel as they are."""
        batchable = self.signature.batchable
        names = [p.name for p in self.signature.parameters or ()]
        if (
            self._arity < 0
            or names != [spec.name for spec in self.inputs]
            or (batchable and self.signature.batch_dim[0])
        ):
            return None
        return self.inputs if all(len(spec.shape) > int(batchable) for spec in self.inputs) else None

    def _check_sizes(self, arrays: Sequence[Array]) -> None:
        if not self.signature.batchable or (len(arrays) == 1 and arrays[0].shape[0]):
            return
        sizes = {array.shape[0] for array in arrays}
        if len(sizes) > 1:
            raise InvalidArgument(f"{self.name}() takes tensors of one batch size, but they have {sorted(sizes)}.")
        if not sizes or 0 in sizes:
            raise InvalidArgument(f"{self.name}() takes a batch of at least one item; this one is empty.")

    def unpack(self, arrays: Sequence[Array], extra: str) -> Call:
        """The call that `pack` packed; their batch axis where the method expects it.

        InvalidArgument where `extra` is not what `pack` writes: any client of Triton may send it.
        """
        if not extra and self._direct is not None:
            return Call(self, tuple(arrays), {})
        columns, beside = _beside(extra) if extra else ({}, {})
        args: list[Any] = []
        kwargs = dict(beside)
        for spec, array in zip(self.inputs, arrays, strict=True):
            value = self._unwire(array, self.signature.batch_dim[0], spec)
            if spec.name in columns:
                value = _frame(value, columns[spec.name])
            if spec.name in self._keywords:
                kwargs[spec.name] = value
            else:
                args.append(value)
        if beside:
            self._check_received(args, kwargs)
        return Call(self, tuple(args), kwargs)

    def pack_result(self, result: Any) -> list[Array]:
        """The tensors of what a typed method returned; RemoteException where it is not what the signature says."""
        values = result if len(self.outputs) > 1 else (result,)
        if not isinstance(values, (tuple, list)) or len(values) != len(self.outputs):
            raise RemoteException(
                f"{self.name}() returned {described(result)}, but its signature has {len(self.outputs)} outputs."
            )
        try:
            return [
                self._wire(spec.cast(value), self.signature.batch_dim[1], spec)
                for spec, value in zip(self.outputs, values, strict=True)
            ]
        except InvalidArgument as error:
            raise RemoteException(f"{self.name}() returned something else than its signature says. {error}") from error

    def unpack_result(self, arrays: Sequence[Array]) -> Any:
        """What a typed method returned: one array, or a tuple where it has several outputs."""
        return self.returned(self.outputs_of(arrays))

    def outputs_of(self, arrays: Sequence[Array]) -> list[Array]:
        """The outputs of one call, or of several behind one another, of their tensors; the batch axis stays first."""
        scalar = int(self.signature.batchable)
        pairs = zip(self.outputs, arrays, strict=True)
        return [_without_axis(array) if len(spec.shape) == scalar else array for spec, array in pairs]

    def returned(self, outputs: Sequence[Array]) -> Any:
        """What a typed method returned, of the outputs of its call."""
        axis = self.signature.batch_dim[1] if self.signature.batchable else 0
        if axis:
            outputs = [np.moveaxis(output, 0, axis) for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def wire_shape(self, spec: TensorSpec, axis: int) -> tuple[int, ...]:
        """The shape of a tensor on the wire: batch axis first, and never without an axis that is not the batch."""
        shape = list(spec.shape)
        if self.signature.batchable:
            shape.insert(0, shape.pop(axis))
        return tuple(shape) if len(shape) > int(self.signature.batchable) else (*shape, 1)

    def _wire(self, array: Array, axis: int, spec: TensorSpec) -> Array:
        moved = to_front(array, axis) if self.signature.batchable else array
        # Triton has no `dims: []`: a scalar per item (a label, say) travels as [batch, 1]
        return moved if moved.ndim > int(self.signature.batchable) else moved.reshape((*moved.shape, 1))

    def _unwire(self, array: Array, axis: int, spec: TensorSpec) -> Array:
        if len(spec.shape) == int(self.signature.batchable):
            array = _without_axis(array)
        return np.moveaxis(array, 0, axis) if self.signature.batchable and axis else array

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        self.check(args, kwargs)
        parameters = self.signature.parameters
        if parameters is None or any(p.kind == "VAR_POSITIONAL" for p in parameters):
            names = [p.name for p in parameters or () if p.kind in _POSITIONAL]
            names += [s.name for s in self.inputs if s.name not in names]
        else:
            names = [p.name for p in parameters if p.kind in _POSITIONAL]
        if len(args) > len(names):
            raise TypeError(f"{self.name}() takes {len(names)} positional arguments, but {len(args)} were given")
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _json(self, extra: Mapping[str, Any]) -> str:
        try:
            return json.dumps(extra, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise PayloadTypeError(
                f"{self.name}() takes plain JSON values beside its tensors ({', '.join(s.name for s in self.inputs)}): "
                f"{error}."
            ) from error

    # ---- blobs ----------------------------------------------------------------------------------------------------

    def decode(self, blob: payload.Buffer) -> Call:
        """The call that came as a blob."""
        args, kwargs = _arguments(payload.decode(blob))
        self._check_received(args, kwargs)
        return self.rebuild(args, kwargs)

    def _check_received(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            self.check(args, kwargs)
        except TypeError as error:
            raise InvalidArgument(str(error)) from None

    def rebuild(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call whose arguments came as plain values: annotated dataclasses and pydantic models are made anew."""
        if not self.hints:
            return Call(self, tuple(args), dict(kwargs))
        parameters = self.signature.parameters or ()
        names = [p.name for p in parameters if p.kind in _POSITIONAL]
        # *rows and **rows are annotated with what each of them is
        starred = {p.kind: p.name for p in parameters if p.kind.startswith("VAR_")}
        names += [starred.get("VAR_POSITIONAL", "")] * (len(args) - len(names))
        named = {p.name: p.name for p in parameters if p.kind in _NAMED}
        more = starred.get("VAR_KEYWORD", "")

        def made(value: Any, name: str) -> Any:
            return payload.rebuild(value, self.hints.get(name, Any))

        return Call(
            self,
            tuple(made(value, name) for value, name in zip(args, names, strict=False)),
            {name: made(value, named.get(name, more)) for name, value in kwargs.items()},
        )

    def encode_result(self, value: Any) -> list[payload.Buffer]:
        """What a method returned as a blob, in parts; RemoteException where it cannot be sent."""
        try:
            return payload.encode_parts(value)
        except Exception as error:  # a value of the user's own may raise anything when it is looked into
            raise RemoteException(f"{self.name}() returned what cannot be sent. {sentence(error)}") from error

    def rebuild_result(self, value: Any) -> Any:
        return payload.rebuild(value, self.hints.get("return", Any))


def method_named(methods: Mapping[str, MethodSpec], name: str) -> MethodSpec:
    """The method that a request names, the first for none; NotFound where there is none of that name."""
    method = methods.get(name) if name else next(iter(methods.values()))
    if method is None:
        raise NotFound(f"This entry has no method {name!r}; it has {', '.join(methods)}.")
    return method


def methods_of(cls: type[Runnable], batching: Callable[[str], BatchingConfig]) -> dict[str, MethodSpec]:
    """The served methods of a Runnable class with all that their definitions tell."""
    return {name: _method(name, getattr(cls, name), s, batching(name)) for name, s in signatures(cls).items()}


def _method(name: str, function: Callable[..., Any], signature: Signature, batching: BatchingConfig) -> MethodSpec:
    hints: dict[str, Any] = {}
    plain = inspect.unwrap(function)
    stream = inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)
    if stream and signature.batchable:
        raise InvalidArgument(
            f"The method {name}() is a generator, whose calls cannot share a batch: mark it without `batchable=True`."
        )
    if signature.parameters is None:
        hints = _hints(function)
        if stream and "return" in hints:
            hints["return"] = _yielded(hints["return"])
        parameters = Parameter.all_of(function)
        signature = replace(signature, parameters=parameters[1:] if parameters else None)
        signature = replace(
            signature, inputs=_inputs(signature, hints), outputs=signature.outputs or _outputs(hints.get("return"))
        )
    return MethodSpec(name, signature, batching, stream, hints)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001  # annotations are the user's own code, and may name what is not imported
        logger.debug("The annotations of %s cannot be read: %s", function, error)
        return {}


def _yielded(annotation: Any) -> Any:
    """What one value is annotated as: X of Iterator[X], AsyncGenerator[X, None] and their like."""
    return next(iter(typing.get_args(annotation)), Any)


def _inputs(signature: Signature, hints: Mapping[str, Any]) -> tuple[TensorSpec, ...] | None:
    names = [p.name for p in signature.parameters or () if p.kind in (*_POSITIONAL, "KEYWORD_ONLY")]
    if signature.inputs is not None:
        free = iter(n for n in names if n not in {s.name for s in signature.inputs})
        return tuple(s if s.name else replace(s, name=next(free, f"input_{i}")) for i, s in enumerate(signature.inputs))
    required = [p.name for p in signature.parameters or () if p.required]
    found = [replace(spec, name=n) for n in names if (spec := _annotated(hints.get(n))) is not None]
    return tuple(found) if found and {s.name for s in found} >= set(required) else None


def _outputs(annotation: Any) -> tuple[TensorSpec, ...] | None:
    several = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (annotation,)
    found = [_annotated(a) for a in several]
    return tuple(replace(s, name=f"output_{i}") for i, s in enumerate(found) if s) if found and all(found) else None


def _annotated(annotation: Any) -> TensorSpec | None:
    """The TensorSpec in `Annotated[np.ndarray, TensorSpec("float32", (-1, 4))]`."""
    return next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, TensorSpec)), None)


class Call(typing.NamedTuple):
    """One call of a method, as its caller wrote it."""

    method: MethodSpec
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _numbers(table: Any) -> Any:
    """The array of a DataFrame or a Series; what pandas' own types call NA is NaN."""
    array = table.to_numpy()
    return table.to_numpy(na_value=np.nan) if array.dtype == object and hasattr(table, "isna") else array


def _without_axis(array: Array) -> Array:
    """The array without its last axis, which stands for none on the wire."""
    return array.reshape(array.shape[:-1])


def _all_arrays(values: Sequence[Any]) -> bool:
    for value in values:  # noqa: SIM110  # a generator would cost more than all of this
        if type(value) is not np.ndarray:
            return False
    return True


def _frame(value: Array, columns: Sequence[str]) -> Any:
    import pandas as pd  # a worker need not have pandas unless a data frame was sent

    try:
        return pd.DataFrame(value, columns=list(columns))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"The columns {columns!r} do not fit the tensor: {sentence(error)}.") from None


def _beside(extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What travels with tensors: the columns of frames, and arguments by name."""
    try:
        more = json.loads(extra)
        return dict(more.get("columns", {})), dict(more.get("kwargs", {}))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"The parameter 'arguments' is not what adapter sends: {sentence(error)}.") from None


def _arguments(decoded: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(decoded, (tuple, list)) and len(decoded) == 2:
        args, kwargs = decoded
        if (
            isinstance(args, (tuple, list))
            and isinstance(kwargs, dict)
            and all(isinstance(name, str) for name in kwargs)
        ):
            return args, kwargs
    raise InvalidArgument("The blob of a request to an entry is the arguments of a call, by position and by name.")


def described(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
