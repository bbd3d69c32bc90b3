"""Saved models as entries of Triton's own backends, beside the python backend that serves every entry otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata as distributions
from typing import Any

from adapter.exceptions import message_of
from adapter.method import MethodSpec
from adapter.model import Model
from adapter.tensor import Array
from adapter.triton.exporters.base import CannotConvert, Converted, Exporter
from adapter.triton.exporters.fil import Fil
from adapter.triton.exporters.onnxruntime import OnnxRuntime
from adapter.triton.exporters.openvino import OpenVino
from adapter.triton.exporters.parity import Parity, compare
from adapter.triton.exporters.pytorch import PyTorch

# Triton's name of a backend -> what converts for it; where several can serve a model, the first asked for does
EXPORTERS: Mapping[str, Exporter] = {e.backend: e for e in (OnnxRuntime(), Fil(), PyTorch(), OpenVino())}


@dataclass(frozen=True)
class Checked:
    """A converted model that answers as the original does, how closely, and by which versions of which libraries."""

    converted: Converted
    parity: Parity
    versions: Mapping[str, str]


def convert(model: Model, method: MethodSpec, backends: Sequence[str]) -> Checked | list[str]:
    """Convert a method of a saved model for the first of some backends that answers as the original.

    Where none does, why: a reason for each backend, which begins with its name. AdapterError where the model itself
    cannot be loaded.
    """
    reasons = []
    for backend in backends:
        try:
            return _checked(EXPORTERS[backend], model, method)
        except CannotConvert as refused:
            reasons.append(f"{backend}: {message_of(refused)}")
    return reasons


def _checked(exporter: Exporter, model: Model, method: MethodSpec) -> Checked:
    if not method.typed:
        raise CannotConvert("what it takes and returns is not known as arrays of numbers (`sample=` may tell)")
    runnable = model.to_runnable()()
    reasons: list[str] = []
    try:
        for converted in exporter.convert(model, method):
            try:
                parity = compare(converted, method, _original(runnable, method), _sample(model, method))
                native = replace(converted.native, finite=parity.refuses_nan)
                return Checked(replace(converted, native=native), parity, _versions(exporter))
            except CannotConvert as refused:
                reasons.append(message_of(refused))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        install = exporter.libraries.get(missing)
        if install is None:
            raise
        raise CannotConvert(
            f"{install} is not installed: run `pip install {install}`, or `pip install 'triton-adapter[native]'`"
        ) from error
    raise CannotConvert("; ".join(dict.fromkeys(reasons)))


def _versions(exporter: Exporter) -> dict[str, str]:
    found = {}
    for library in exporter.libraries.values():
        with contextlib.suppress(distributions.PackageNotFoundError):
            found[library] = distributions.version(library)
    return found


def _original(runnable: Any, method: MethodSpec) -> Any:
    def call(arrays: Sequence[Array]) -> Any:
        unpacked = method.unpack(arrays, "")
        return getattr(runnable, method.name)(*unpacked.args, **unpacked.kwargs)

    return call


def _sample(model: Model, method: MethodSpec) -> list[Array] | None:
    """The rows that the model was saved with, as its method takes them; None where there are none."""
    sample = model.sample
    if sample is None:
        return None
    args = sample if isinstance(sample, tuple) else (sample,)
    kwargs = sample if isinstance(sample, Mapping) else None
    try:
        return method.pack((), kwargs)[0] if kwargs is not None else method.pack(args, {})[0]
    except Exception:  # noqa: BLE001  # a sample is anything a person gave; rows can be made without it
        return None
