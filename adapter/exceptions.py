"""Every error that adapter raises on purpose.

AdapterError                      500
├── InvalidArgument               400   a caller sent something that cannot be used
│   ├── BadInput                  400   the body of a request cannot be read as what its API expects
│   └── UnsupportedMediaType      415   the body of a request has a content type that its API does not read
├── PayloadTypeError              500   a value has a type that cannot cross to a runner (also a TypeError)
├── NotFound                      404   no such model, API or entry
├── AlreadyExists                 409   the name is taken
├── BodyTooLarge                  413   the body of a request is longer than the server takes
├── UnprocessableEntity           422
├── TooManyRequests               429   try again later (`retry_after` seconds)
├── ServiceUnavailable            503   try again later (`retry_after` seconds)
├── DeadlineExceeded              504   the time that the caller allowed is over
├── InternalServerError           500
├── RemoteException               500   user code in a runner raised
├── StateException                500   something was used before it was ready, or in the wrong place
├── MissingDependencyException    500   an optional library is not installed
├── ConfigException               500   a setting has a value that cannot be used
├── ImportServiceError            500   "module:attr" does not lead to a Service
├── ExportError                   500   a service cannot be written into a model repository
└── EngineError                   500   tritonserver cannot be found, installed or started

A class of your own with another `error_code` reaches the HTTP client with that status and its message.
"""

from __future__ import annotations

from http import HTTPStatus

_MAX_MESSAGE = 2000


class AdapterError(Exception):
    """Base of every error of adapter; `error_code` is the HTTP status it becomes."""

    error_code: int = HTTPStatus.INTERNAL_SERVER_ERROR
    request_id: str | None = None
    """The id of the HTTP request that a server answered with this error; `adapter.client` sets it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class InvalidArgument(AdapterError):
    error_code = HTTPStatus.BAD_REQUEST


class BadInput(InvalidArgument):
    pass


class UnsupportedMediaType(InvalidArgument):
    error_code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class PayloadTypeError(AdapterError, TypeError):
    pass


class NotFound(AdapterError):
    error_code = HTTPStatus.NOT_FOUND


class AlreadyExists(AdapterError):
    error_code = HTTPStatus.CONFLICT


class BodyTooLarge(AdapterError):
    error_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnprocessableEntity(AdapterError):
    error_code = HTTPStatus.UNPROCESSABLE_ENTITY


class _TryAgain(AdapterError):
    def __init__(self, message: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRequests(_TryAgain):
    error_code = HTTPStatus.TOO_MANY_REQUESTS


class ServiceUnavailable(_TryAgain):
    error_code = HTTPStatus.SERVICE_UNAVAILABLE


class DeadlineExceeded(AdapterError):
    error_code = HTTPStatus.GATEWAY_TIMEOUT


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


class EngineError(AdapterError):
    pass


def sentence(error: BaseException) -> str:
    """One line that names an error a person did not expect: its type and its message."""
    text = " ".join(message_of(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException) -> str:
    """The message of any error, even one of a class that cannot tell it, as text that every protocol takes.

    It has at most 2,000 characters: gRPC carries it in a header.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a class of the user's own
        return ""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


def status_of(error: AdapterError) -> int:
    """The HTTP status of an error; 500 where a class has an `error_code` that is no status of an error."""
    code = error.error_code
    return int(code) if isinstance(code, int) and 400 <= code < 600 else 500
