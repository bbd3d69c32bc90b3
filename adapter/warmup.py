"""Warm-up: the calls that a runner's methods get before anybody else's, so that the first of those is no slower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapter import payload
from adapter.exceptions import AdapterError, InvalidArgument, StateException, message_of, sentence
from adapter.invocation import Invoker
from adapter.method import MethodSpec
from adapter.model import Model

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # by position, and by name
Samples = Mapping[str, Arguments]  # by the name of the method


def read(given: Any, methods: Mapping[str, MethodSpec]) -> Samples | bool:
    """What a person wrote as `warmup`: True, the sample of the only method, or samples by the names of methods.

    A sample is the method's argument, or a tuple of all of them. Raises InvalidArgument, TypeError or PayloadTypeError
    where no method can be called with it.
    """
    if given is None or isinstance(given, bool):
        return bool(given)
    if isinstance(given, Mapping) and given and all(name in methods for name in given):
        named = dict(given)
    elif len(methods) == 1:
        named = dict.fromkeys(methods, given)
    else:
        raise InvalidArgument(
            f"warmup is for several methods ({', '.join(methods)}): give their samples by name, as in "
            f"warmup={{{next(iter(methods))!r}: sample}}, or True."
        )
    found = {name: _arguments(sample) for name, sample in named.items()}
    for name, arguments in found.items():
        encode(methods[name], arguments)
    return found


def samples(given: Samples | bool, methods: Mapping[str, MethodSpec], model: Model | None, runner: str) -> Samples:
    """The arguments that each of some methods is warmed up with.

    Where `given` is True these are the sample that the model was saved with, else zeros of the tensors that are known;
    InvalidArgument where neither is.
    """
    if not isinstance(given, bool):
        return {name: arguments for name, arguments in given.items() if name in methods}
    if not given:
        return {}
    methods = {name: method for name, method in methods.items() if not method.stream}
    sample = None if model is None else model.sample
    if sample is not None:
        return dict.fromkeys(methods, _arguments(sample))
    return {name: _zeros(method, runner) for name, method in methods.items()}


def encode(method: MethodSpec, arguments: Arguments) -> bytes:
    """A warm-up call as it travels with an entry."""
    if method.typed:
        method.pack(*arguments)
    else:
        method.check(*arguments)
    return payload.encode(arguments)


def run(invoker: Invoker, method: MethodSpec, blob: payload.Buffer) -> None:
    """Call a method as a front would, with what `encode` wrote; StateException that says what it raised."""
    try:
        arguments = payload.decode(blob)
        if method.typed:
            arrays, extra = method.pack(*arguments)
            call = method.unpack([array.copy() for array in arrays], extra)
            method.pack_result(invoker.run([call])[0].unwrap())
        else:
            method.encode_result(invoker.run([method.rebuild(*arguments)])[0].unwrap())
    except (Exception, SystemExit) as error:
        reason = message_of(error) if isinstance(error, AdapterError) else sentence(error)
        raise StateException(f"The warm-up call of {method.name}() failed: {reason}") from error


def _arguments(sample: Any) -> Arguments:
    return sample if isinstance(sample, tuple) else (sample,), {}


def _zeros(method: MethodSpec, runner: str) -> Arguments:
    if not method.typed:
        raise InvalidArgument(
            f"The runner {runner!r} cannot be warmed up with warmup=True, since the tensors of {method.name}() are not "
            f"known: give a sample, as in warmup={{{method.name!r}: sample}}."
        )
    zeros = {spec.name: np.zeros([1 if n < 0 else n for n in spec.shape], spec.dtype) for spec in method.inputs}
    by_name = {p.name for p in method.signature.parameters or () if p.kind == "KEYWORD_ONLY"}
    named = {name: value for name, value in zeros.items() if name in by_name}
    return tuple(value for name, value in zeros.items() if name not in by_name), named
