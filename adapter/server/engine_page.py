"""The page of metrics with that of Triton: its own numbers, and those that Runnables count beside it.

What a Runnable counts is there as `triton/stub_metrics.py` writes it: histograms as counters, and gauges for each
instance. Here it becomes what it was, and one with what APIs count under the same name.
"""

from __future__ import annotations

import http.client
import math
import re
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from adapter.exceptions import sentence
from adapter.triton.stub_metrics import INSTANCE, MODE

_TIMEOUT_S = 0.5
_LONGEST = 32 << 20
_META = re.compile(r"# (HELP|TYPE) (\S+) ?(.*)")
# not by way of a proxy: the engine is on this machine or in this cluster
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

_Labels = tuple[tuple[str, str], ...]
_Samples = dict[tuple[str, _Labels], float]


def with_engine(page: bytes, address: str) -> bytes:
    """The page with that of a Triton; with a comment where it cannot be had in time."""
    try:
        with _open(address, timeout=_TIMEOUT_S) as response:
            text = response.read(_LONGEST).decode()
        return joined(page.decode(), text).encode()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return page + f"# The metrics of Triton at {address} cannot be had now: {sentence(error)}\n".encode()


def joined(page: str, other: str) -> str:
    """The families of two pages as one page: what has the same name and kind is added up, else `page` is right."""
    own, theirs = _blocks(page), _blocks(other)
    counted = dict(_counted(own, theirs))
    after = "".join(block.text for name, block in theirs.items() if name not in own)
    for name, found in counted.items():
        block = own.get(name)
        if block is None:
            after += found.text()
            continue
        both = found.added(_Family.read(name, block))
        if both is None:
            after += f"# The {found.kind} {name} of a Runnable is left out: that of the APIs is another.\n"
        else:
            own[name] = _Block(block.kind, both.text())
    return "".join(block.text for block in own.values()) + after


@dataclass
class _Block:
    """The lines of one family."""

    kind: str = ""
    text: str = ""


def _blocks(page: str) -> dict[str, _Block]:
    found: dict[str, _Block] = {}
    block = found[""] = _Block()  # of lines that belong to none
    for line in page.split("\n"):  # a label may have other ends of lines in it
        meta = _META.match(line)
        if meta is not None:
            block = found.setdefault(meta[2], _Block())
            if meta[1] == "TYPE":
                block.kind = meta[3]
        if line:
            block.text += f"{line}\n"
    return found


@dataclass(frozen=True)
class _Family:
    """Numbers of one name; `mode` is how those of a gauge become one."""

    kind: str
    name: str
    documentation: str
    samples: _Samples
    mode: str = "livesum"

    @classmethod
    def read(cls, name: str, block: _Block) -> _Family:
        """The family that a block of a page is."""
        (family,) = text_string_to_metric_families(block.text)
        samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in family.samples}
        return cls(block.kind, name, family.documentation, samples)

    def added(self, other: _Family) -> _Family | None:
        """This and another one as one; None where they do not fit."""
        if self.kind != other.kind or _bounds(self.samples) != _bounds(other.samples):
            return None
        samples = dict(other.samples)
        for key, value in self.samples.items():
            samples[key] = _one(self.mode)([samples[key], value]) if key in samples else value
        return _Family(self.kind, self.name, other.documentation, samples)

    def text(self) -> str:
        name = self.name.removesuffix("_total") if self.kind == "counter" else self.name
        family = Metric(name, self.documentation, self.kind)
        for (sample, labels), value in self.samples.items():
            family.add_sample(sample, dict(labels), value)
        return generate_latest(cast(Any, Families([family]))).decode() if self.samples else ""


@dataclass(frozen=True)
class Families:
    """What prometheus_client writes a page of."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _bounds(samples: _Samples) -> set[str]:
    return {value for _, labels in samples for name, value in labels if name == "le"}


def _one(mode: str) -> Callable[[list[float]], float]:
    """How several gauges become one."""
    if mode.endswith("max"):
        return max
    if mode.endswith("min"):
        return min
    return sum if mode.endswith("sum") else lambda values: values[0]


def _counted(own: Mapping[str, _Block], theirs: dict[str, _Block]) -> Iterable[tuple[str, _Family]]:
    """Take what Runnables have counted from the page of Triton."""
    for name in list(theirs):
        block = theirs.get(name)
        if block is None or not name:
            continue
        stem = name.removesuffix("_sum")
        if block.kind == "gauge" and f'{MODE}="' in block.text:
            yield name, _gauge(name, theirs.pop(name))
        elif block.kind == "gauge" and name != stem and f"{stem}_count" in theirs:
            yield stem, _spread(stem, [theirs.pop(n) for n in _parts(stem) if n in theirs])
        elif name in own and block.kind == "counter":
            yield name, _Family.read(name, theirs.pop(name))


def _parts(stem: str) -> tuple[str, ...]:
    return f"{stem}_bucket", f"{stem}_count", f"{stem}_sum"


def _spread(stem: str, blocks: list[_Block]) -> _Family:
    """A histogram, or a summary, of its two or three parts."""
    samples: _Samples = {}
    documentation = ""
    for part, block in zip(_parts(stem)[-len(blocks) :], blocks, strict=True):
        family = _Family.read(part, block)
        documentation = family.documentation
        for (_, labels), value in family.samples.items():
            told = {**dict(labels)}
            if part.endswith("_bucket"):
                told["le"] = floatToGoString(told["le"])  # type: ignore[no-untyped-call]  # theirs
            samples[part, tuple(sorted(told.items()))] = value
    return _Family("histogram" if len(blocks) == len(_parts(stem)) else "summary", stem, documentation, samples)


def _gauge(name: str, block: _Block) -> _Family:
    """A gauge of those of all instances, but of those whose worker has ended."""
    family = _Family.read(name, block)
    values: dict[_Labels, list[float]] = {}
    mode = ""
    for (_, labels), value in family.samples.items():
        told = dict(labels)
        mode, instance = told.pop(MODE, ""), told.pop(INSTANCE, "")
        if mode.endswith("all"):
            told["pid"] = instance
        if not math.isnan(value):
            values.setdefault(tuple(sorted(told.items())), []).append(value)
    samples = {(name, labels): _one(mode)(found) for labels, found in values.items()}
    return _Family("gauge", name, family.documentation, samples, mode)
