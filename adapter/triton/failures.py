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
_OWN_ERROR = re.compile(r"\[(\d{3}) (\w+(?: [\d.]+)?)\] (.*)", re.DOTALL)
_GONE = re.compile(r"unknown model|no available versions|not ready|Server exiting|is not found")


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
    if code in (Code.UNAVAILABLE, Code.NOT_FOUND) or NOT_HEALTHY in text:
        return ServiceUnavailable(f"{entry} cannot be reached now: {text}")
    return RemoteException(f"{entry} failed: {code.name}: {text}")


def of_stream(text: str, entry: str) -> AdapterError:
    """The error that a message of a stream carries, which has no code beside its text."""
    return translated(RpcError(Code.UNAVAILABLE if _GONE.search(text) else Code.UNKNOWN, text), entry)
