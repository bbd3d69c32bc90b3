"""What the value of a setting can be: in words, for an error, and as a function that reads it."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_COUNT = "cpu_count"
SYSTEM = "system"  # a resource: all that the machine has

_MOST = 2**31 - 1  # what C's int holds, and no count or number of bytes of a setting comes near
_LONGEST_S = 10_000_000.0  # timers of event loops take no number above some limit of their own
_MILLI = re.compile(r"([0-9]{1,9})m")
_PREFIX = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what RFC 6750 lets stand in a header


class WrongKind(ValueError):
    """A value is not what a setting can be."""


@dataclass(frozen=True)
class Kind:
    """What a setting can be; `read` raises WrongKind for anything else. `secret` values are shown to nobody."""

    text: str
    read: Callable[[Any], Any]
    secret: bool = False


def optional(kind: Kind, otherwise: str = "") -> Kind:
    """The kind, or null, which means `otherwise`."""
    text = f"{kind.text}, or null{f' for {otherwise}' if otherwise else ''}"
    return Kind(text, lambda value: None if value is None else kind.read(value), kind.secret)


def whole(low: int, high: int | None = None) -> Kind:
    def read(value: Any) -> int:
        _demand(isinstance(value, int) and not isinstance(value, bool))
        _demand(low <= value <= (_MOST if high is None else high))
        return int(value)

    return Kind(f"a whole number from {low} {'on' if high is None else f'to {high}'}", read)


def _number(value: Any) -> float:
    _demand(isinstance(value, (int, float)) and not isinstance(value, bool))
    _demand(abs(value) <= _MOST)  # false for nan
    return float(value)


def number(low: float, high: float = math.inf, *, open_low: bool = False) -> Kind:
    def read(value: Any) -> float:
        found = _number(value)
        _demand((found > low if open_low else found >= low) and found <= high)
        return found

    above = f"above {low:g}" if open_low else f"from {low:g} on"
    return Kind(f"a number {above}" if high == math.inf else f"a number {above} and up to {high:g}", read)


def _seconds(value: Any) -> float:
    found = _number(value)
    _demand(0 < found <= _LONGEST_S)
    return found


def choice(*names: str | int) -> Kind:
    def read(value: Any) -> Any:
        _demand(not isinstance(value, bool) and isinstance(value, (str, int)) and value in names)
        return value

    return Kind(f"{'one of ' if len(names) > 1 else ''}{', '.join(map(str, names))}", read)


def choices(*names: str) -> Kind:
    def read(value: Any) -> tuple[str, ...]:
        found = _strings(value)
        _demand(len(set(found)) == len(found) and set(found) <= set(names))
        return found

    return Kind(f"a list, or one text with commas, of {', '.join(names)}, each at most once", read)


def _bool(value: Any) -> bool:
    _demand(isinstance(value, bool))
    return bool(value)


def _string(value: Any) -> str:
    _demand(isinstance(value, str) and value != "" and value.isprintable())
    return str(value)


def _secret(value: Any) -> str:
    _demand(isinstance(value, str) and value != "" and "\0" not in value)
    return str(value)


def _strings(value: Any) -> tuple[str, ...]:
    # a text with commas, since an environment variable holds no list
    items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    _demand(isinstance(items, (list, tuple)))
    return tuple(_string(item) for item in items)


def _tokens(value: Any) -> tuple[str, ...]:
    found = _strings(value)
    _demand(len(found) > 0 and all(_TOKEN.fullmatch(token) for token in found))
    return found


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    return Path(os.path.expanduser(_string(value)))


def _place(value: Any) -> Path | str:
    return value if isinstance(value, str) and "://" in value else _path(value)


def _prefix(value: Any) -> str:
    _demand(isinstance(value, str) and _PREFIX.fullmatch(value) is not None)
    return str(value)


def _pattern(value: Any) -> str:
    try:
        re.compile(_string(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise WrongKind from error
    return str(value)


def _ascending(value: Any) -> tuple[float, ...]:
    _demand(isinstance(value, (list, tuple)) and len(value) > 0)
    found = tuple(_number(item) for item in value)
    _demand(all(a < b for a, b in itertools.pairwise(found)))
    return found


def _cpu(value: Any) -> float | str:
    if value == SYSTEM:
        return SYSTEM
    if isinstance(value, str) and (match := _MILLI.fullmatch(value)):
        value = int(match[1]) / 1000
    found = _number(value)
    _demand(found > 0)
    return found


def _gpus(value: Any) -> float | tuple[int, ...] | str:
    if value == SYSTEM:
        return SYSTEM
    if isinstance(value, (list, tuple)):
        indices = tuple(whole(0, 1023).read(item) for item in value)
        _demand(len(set(indices)) == len(indices))
        return indices
    found = _number(value)
    _demand(found >= 0)
    return found


def _texts(value: Any) -> Mapping[str, str]:
    _demand(isinstance(value, Mapping))
    return {_string(key): _string(item) for key, item in value.items()}


def _values(value: Any) -> Mapping[str, Any]:
    _demand(isinstance(value, Mapping))
    return {_string(key): _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return _values(value)
    if not isinstance(value, (bool, str)):
        _number(value)
    return value


def _demand(fits: bool) -> None:
    if not fits:
        raise WrongKind


def _workers(value: Any) -> int | None:
    return None if value == CPU_COUNT else whole(1).read(value)


COUNT_OF_WORKERS = Kind("a whole number from 1 on, or 'cpu_count' for one for each CPU", _workers)
BOOL = Kind("true or false", _bool)
STRING = Kind("a text", _string)
SECRET = Kind("a text", _secret, secret=True)
STRINGS = Kind("a list of texts, or one text with commas", _strings)
TOKENS = Kind(
    "a list of tokens, or one text with commas, each of letters, digits, '-', '.', '_', '~', '+' and '/'",
    _tokens,
    secret=True,
)
TEXTS = Kind("a mapping from texts to texts", _texts, secret=True)
VALUES = Kind("a mapping from names to numbers, texts, lists or mappings of them", _values)
PATH = Kind("a path", _path)
PLACE = Kind("a path, or the address of object storage such as s3://bucket/prefix", _place)
SECONDS = Kind(f"a number of seconds above 0 and up to {_LONGEST_S:,.0f}", _seconds)
PREFIX = Kind("the beginning of a metric's name: letters, digits, '_' and ':'", _prefix)
PATTERN = Kind("a regular expression", _pattern)
BUCKETS = Kind("a list of ascending numbers", _ascending)
BATCH_SIZE, LATENCY_MS, WAIT_MS = whole(1), number(0, open_low=True), number(0)
PER_RESOURCE = number(0, 1024, open_low=True)
CPU = Kind("a number above 0, thousandths such as '500m', or 'system' for all that the machine has", _cpu)
GPUS = Kind("a number from 0 on, a list of the indices of GPUs, or 'system' for all that the machine has", _gpus)
