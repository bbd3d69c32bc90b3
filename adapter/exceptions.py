"""Every error that adapter raises on purpose.

AdapterError                      500
├── InvalidArgument               400   a caller sent something that cannot be used
│   ├── BadInput                  400   the body of a request cannot be read as what its API expects
│   └── UnsupportedMediaType      415   the body of a request has a content type that its API does not read
├── Unauthorized                  401   a request without a token that the server takes
├── PayloadTypeError              500   a value has a type that cannot cross to a runner (also a TypeError)
├── NotFound                      404   no such model, API or entry
├── AlreadyExists                 409   the name is taken
├── BodyTooLarge                  413   the body of a request is longer than the server takes
├── UnprocessableEntity           422
├── TooManyRequests               429   try again later (`retry_after` seconds)
├── ClientGone                    499   the client went away before it was answered, so a call of a runner was ended
├── ServiceUnavailable            503   try again later (`retry_after` seconds)
├── DeadlineExceeded              504   the time that the caller allowed is over
├── InternalServerError           500
├── RemoteException               500   user code in a runner raised
├── StateException                500   something was used before it was ready, or in the wrong place
├── MissingDependencyException    500   an optional library is not installed
├── ConfigException               500   a setting has a value that cannot be used
├── ImportServiceError            500   "module:attr" does not lead to a Service
├── ExportError                   500   a service cannot be written into a model repository
├── DeploymentError               500   Tritons that run cannot be brought to serve a service as it is now
└── EngineError                   500   tritonserver cannot be found, installed or started

A class of your own with another `error_code` reaches the HTTP client with that status and its message.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

_MAX_MESSAGE = 2000
_MAX_ENCODED = 7000  # a gRPC client takes 8 KiB of headers, the message among them
# "/srv/models/x.bin", and no address: what comes before its last part
_FOLDERS = re.compile(r"""(?<![\w:/.])/(?:[^\s/'"<>:;,()]+/)+""")


class AdapterError(Exception):
    """Base of every error of adapter; `error_code` is the HTTP status it becomes."""

    error_code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    message: str = ""
    detail: list[dict[str, Any]] | None = None
    """What was wrong, field by field, for programs: an HTTP answer has it beside the sentence."""
    request_id: str | None = None
    """The id of the HTTP request that a server answered with this error; `adapter.client` sets it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(AdapterError):
    error_code: int = HTTPStatus.BAD_REQUEST


class BadInput(InvalidArgument):
    pass


class UnsupportedMediaType(InvalidArgument):
    error_code: int = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Unauthorized(AdapterError):
    error_code: int = HTTPStatus.UNAUTHORIZED


class PayloadTypeError(AdapterError, TypeError):
    pass


class NotFound(AdapterError):
    error_code: int = HTTPStatus.NOT_FOUND


class AlreadyExists(AdapterError):
    error_code: int = HTTPStatus.CONFLICT


class BodyTooLarge(AdapterError):
    error_code: int = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnprocessableEntity(AdapterError):
    error_code: int = HTTPStatus.UNPROCESSABLE_ENTITY


class _TryAgain(AdapterError):
    def __init__(self, message: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRequests(_TryAgain):
    error_code: int = HTTPStatus.TOO_MANY_REQUESTS


class ClientGone(AdapterError):
    error_code = 499  # no status of HTTP; the log has it where the client was gone


class ServiceUnavailable(_TryAgain):
    error_code: int = HTTPStatus.SERVICE_UNAVAILABLE


class DeadlineExceeded(AdapterError):
    error_code: int = HTTPStatus.GATEWAY_TIMEOUT


class InternalServerError(AdapterError):
    pass


class RemoteException(AdapterError):
    pass


class StateException(AdapterError):
    pass


class MissingDependencyException(AdapterError):
    def __init__(self, library: str, *, extra: str, feature: str = "") -> None:
        what = feature or f"adapter.{extra}"
        super().__init__(
            f"{library} is not installed, and {what} needs it: run `pip install 'triton-adapter[{extra}]'`."
        )


class ConfigException(AdapterError):
    pass


class ImportServiceError(AdapterError):
    pass


class ExportError(AdapterError):
    pass


class DeploymentError(AdapterError):
    pass


class EngineError(AdapterError):
    pass


def sentence(error: BaseException) -> str:
    """One line that names an error a person did not expect: its type and its message."""
    text = one_line(message_of(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException) -> str:
    """The message of any error, even one of a class that cannot tell it, as text that every protocol takes.

    It has at most 2,000 characters.
    """
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # a class of the user's own
        return ""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


def one_line(text: str) -> str:
    """A text for a line of a log: it begins no other line, and does nothing to a terminal."""
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_folders(text: str) -> str:
    """A text for somebody who need not know where files lie here: of each absolute path only the end."""
    return _FOLDERS.sub("…/", text)


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Raise a ConfigException that says `what` is wrong, and why, where a file or a value cannot be used."""
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigException(f"{what}: {error}.") from error


def told(error: AdapterError) -> tuple[int, str, str]:
    """What travels of an error to its caller, who need not have its class: status, a class from here, message."""
    kind = next(cls for cls in type(error).__mro__ if cls.__module__ == __name__).__name__
    after = getattr(error, "retry_after", None)
    if isinstance(after, (int, float)) and math.isfinite(after):
        kind = f"{kind} {max(0.0, after):.3f}"
    message = message_of(error)
    if isinstance(error, RemoteException):
        message = without_folders(message)
    return status_of(error), kind, _fitting(message)


def _fitting(text: str) -> str:
    """A text, or the beginning of it, that gRPC can carry in a header."""
    if 3 * 4 * len(text) <= _MAX_ENCODED:
        return text
    left = _MAX_ENCODED
    for i, char in enumerate(text):
        left -= sum(1 if 32 <= byte < 127 and byte != ord("%") else 3 for byte in char.encode())
        if left < 0:
            return f"{text[:i]}…"
    return text


def raised(status: int, kind: str, message: str) -> AdapterError:
    """An error that was raised elsewhere, made anew of what was told of it."""
    name, _, after = kind.partition(" ")
    cls = globals().get(name)
    if not (isinstance(cls, type) and issubclass(cls, AdapterError)):  # of another version of adapter
        cls = RemoteException if status >= 500 else InvalidArgument
    found = cls.__new__(cls)
    AdapterError.__init__(found, message)
    if cls.error_code != status:
        found.error_code = status
    if isinstance(found, _TryAgain):
        found.retry_after = float(after or 1.0)
    return found


def status_of(error: AdapterError) -> int:
    """The HTTP status of an error; 500 where a class has an `error_code` that is no status of an error."""
    try:
        code = error.error_code
    except Exception:  # noqa: BLE001  # a class of the user's own
        return 500
    return int(code) if isinstance(code, int) and 400 <= code < 600 else 500
