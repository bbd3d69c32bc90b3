"""Which of the content types that a descriptor can send the client asks for."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from adapter.io.base import accept


def negotiated(sends: tuple[str, ...], default: str) -> str:
    """The one of `sends` that the Accept header of the request prefers.

    By quality first, then a type that is named in full before one that a wildcard allows, then `default`. Where the
    client accepts none of them it gets `default` as well: a body in another form says more than a 406 without one.
    Source: RFC 9110, section 12.5.1.
    """
    header = accept.get()
    return _preferred(header, sends, default) if header else default


@functools.lru_cache(maxsize=128)
def _preferred(header: str, sends: tuple[str, ...], default: str) -> str:
    ranges = list(_ranges(header))

    def rank(media_type: str) -> tuple[float, int, bool]:
        patterns = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        for precision, pattern in zip((2, 1, 0), patterns, strict=True):
            qualities = [quality for name, quality in ranges if name == pattern]
            if qualities:
                return max(qualities), precision, media_type == default
        return 0.0, 0, media_type == default

    best = max(sends, key=rank)
    return best if rank(best)[0] > 0 else default


def _ranges(header: str) -> Iterator[tuple[str, float]]:
    for part in header.split(","):
        name, *parameters = part.split(";")
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                quality = _quality(value)
        yield name.strip().lower(), quality


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 1.0
    return quality if 0.0 <= quality <= 1.0 else 1.0
