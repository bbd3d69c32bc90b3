"""What went wrong between a client and a server, as the errors of adapter."""

from __future__ import annotations

import email.utils
import math
import time

import httpx

from adapter.exceptions import (
    AdapterError,
    AlreadyExists,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RemoteException,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnprocessableEntity,
    UnsupportedMediaType,
)

_REQUEST_ID = "x-adapter-request-id"
_MAX_SHOWN = 200
_ERRORS: dict[int, type[AdapterError]] = {
    400: InvalidArgument,
    401: Unauthorized,
    404: NotFound,
    409: AlreadyExists,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
    422: UnprocessableEntity,
    429: TooManyRequests,
    503: ServiceUnavailable,
    504: DeadlineExceeded,
}


def error_of(response: httpx.Response) -> AdapterError:
    status = response.status_code
    error = _ERRORS.get(status, RemoteException if status >= 500 else AdapterError)(sentence_of(response))
    error.error_code = status
    error.request_id = response.headers.get(_REQUEST_ID)
    if isinstance(error, (TooManyRequests, ServiceUnavailable)):
        error.retry_after = _retry_after(response.headers.get("retry-after", ""))
    return error


def sentence_of(response: httpx.Response) -> str:
    """What the server says is wrong; another server between here and there may say it in another form."""
    try:
        return str(response.json()["error"])
    except (ValueError, TypeError, KeyError):
        pass
    status, text = response.status_code, " ".join(response.text.split())
    where = f" and points to {response.headers['location']}" if "location" in response.headers else ""
    return f"{response.request.url} answered {status} {response.reason_phrase}{where}: {text[:_MAX_SHOWN]}".rstrip(": ")


def _retry_after(header: str) -> float:
    """Seconds, from a number of them or a date; 1 where a server says nothing that can be read."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return 1.0
    return max(0.0, seconds) if math.isfinite(seconds) else 1.0


def broken(url: str, error: httpx.TransportError) -> AdapterError:
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{url} did not answer in time: {why}.")
    return ServiceUnavailable(
        f"The connection to {url} broke before it answered ({why}); it may have served the request."
    )
