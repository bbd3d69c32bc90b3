"""What Triton says of a call that failed, as an error of adapter's own."""

from __future__ import annotations

import re

from adapter.exceptions import (
    AdapterError,
    DeadlineExceeded,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
    raised,
    without_folders,
)
from adapter.triton.rpc import Code, RpcError

NOT_HEALTHY = "is not healthy"  # what Triton says of a python stub that died
_RESTRICTED = re.compile(r"protocol is restricted, expecting header '([^']+)'")
_OWN_ERROR = re.compile(r"\[(\d{3}) (\w+(?: [\d.]+)?)\] (.*)", re.DOTALL)
_GONE = re.compile(r"unknown model|no available versions|not ready|Server exiting|Server is stopping|is not found")


class NotBegun(ServiceUnavailable):
    """A call that Triton has not begun with, so that another one can be asked."""


class Unserved(NotBegun):
    """A call of an entry that this Triton does not serve now."""


class Restricted(ServiceUnavailable):
    """Triton wants a key that it was not given; to ask again does not help."""


def is_own(text: str) -> bool:
    """Whether adapter's own code in Triton wrote it."""
    return _OWN_ERROR.search(text) is not None


def translated(error: RpcError, entry: str) -> AdapterError:
    """The error of a gRPC call as adapter's own: what a Runnable raised, or what Triton says."""
    code, text = error.code, error.details
    own = _OWN_ERROR.search(text)
    if own is not None:
        return raised(int(own[1]), own[2], own[3])
    text = without_folders(text)
    if code is Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{entry} did not answer in time.")
    if code is Code.INVALID_ARGUMENT:
        return InvalidArgument(f"{entry} cannot take this call: {text}")
    if key := _RESTRICTED.search(text):
        return Restricted(f"{entry} cannot be called: {_wants(key[1])}.")
    if code in (Code.UNAVAILABLE, Code.NOT_FOUND) or NOT_HEALTHY in text:
        kind = NotBegun if error.unbegun else Unserved if _GONE.search(text) else ServiceUnavailable
        return kind(f"{entry} cannot be reached now: {text}")
    return RemoteException(f"{entry} failed: {code.name}: {text}")


def reason_of(error: RpcError) -> str:
    """Why Triton did not answer a question, for whoever runs it."""
    return explained(error.details)


def explained(details: str) -> str:
    """What Triton says, or the way out where it wants a key."""
    key = _RESTRICTED.search(details)
    return details if key is None else _wants(key[1])


def _wants(header: str) -> str:
    return f"Triton wants the header {header!r} with its key: set triton.headers (ADAPTER_TRITON_HEADERS)"


def of_stream(text: str, entry: str) -> AdapterError:
    """The error that a message of a stream carries, which has no code beside its text."""
    return translated(RpcError(Code.UNAVAILABLE if _GONE.search(text) else Code.UNKNOWN, text), entry)
