"""What is known of the HTTP request in whose name a runner is called; the server sets it for each."""

from __future__ import annotations

from contextvars import ContextVar

deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
"""When its time is over (time.monotonic)."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id that logs name it by; calls are told apart by the object, since clients may send the same id twice."""


class SentId(str):
    """An id that a client sent: an object of its own, even where it is one character, which Python keeps only once."""

    __slots__ = ()
