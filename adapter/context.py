"""The context of one request: what came with it, what goes out beside the result, and the state of the process."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from starlette.datastructures import URL, Address, Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from adapter.exceptions import InternalServerError, StateException

_SAME_SITE = ("lax", "strict", "none")
# the server computes these from the body; another value would break the connection
_OF_THE_SERVER = (b"content-length", b"transfer-encoding")
# RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5: a response with one of these has no content
_WITHOUT_BODY = (204, 205, 304)
_making = threading.Lock()  # two threads of one request may ask for its folder at the same time


@dataclass(frozen=True)
class Cookie:
    """One cookie of a response.

    `max_age` is in seconds; `expires` a time, the text of one, or seconds from now; `samesite` is `lax`, `strict`,
    `none` in any case, or None to leave the choice to the browser, which takes `none` only with `secure=True`.
    """

    key: str
    value: str = ""
    max_age: int | None = None
    expires: datetime | str | int | None = None
    path: str | None = "/"
    domain: str | None = None
    secure: bool = False
    httponly: bool = False
    samesite: str | None = "lax"

    def __post_init__(self) -> None:
        # a ValueError, not an InvalidArgument: made while a request is served, that one would blame the client
        if self.samesite is not None and str(self.samesite).lower() not in _SAME_SITE:
            raise ValueError(
                f"The samesite of the cookie {self.key!r} is {self.samesite!r}; it can be 'lax', 'strict', 'none' "
                "or None."
            )

    def put_on(self, response: Response) -> None:
        """Add the `set-cookie` header to a response."""
        response.set_cookie(
            self.key,
            self.value,
            max_age=self.max_age,
            expires=self.expires,
            path=self.path,
            domain=self.domain,
            secure=self.secure,
            httponly=self.httponly,
            # written as given ("None" as well as "none"); starlette's own check knows no case either
            samesite=cast(Literal["lax", "strict", "none"] | None, self.samesite),
        )


class RequestContext:
    """What came with a request, as starlette reads it; its other attributes answer here as well (`await body()`)."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def headers(self) -> Headers:
        """The headers, read-only and found in any case."""
        return self._request.headers

    @property
    def metadata(self) -> Headers:
        """Another name of `headers`."""
        return self._request.headers

    @property
    def query_params(self) -> QueryParams:
        return self._request.query_params

    @property
    def path_params(self) -> dict[str, Any]:
        return self._request.path_params

    @property
    def cookies(self) -> dict[str, str]:
        return self._request.cookies

    @property
    def method(self) -> str:
        return self._request.method

    @property
    def url(self) -> URL:
        return self._request.url

    @property
    def client(self) -> Address | None:
        return self._request.client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask for these before `_request` exists
            raise AttributeError(name)
        return getattr(self._request, name)


class ResponseContext:
    """What goes out beside the result of an API function: status code, headers and cookies.

    Nothing of it is used where the function raises.
    """

    __slots__ = ("_headers", "cookies", "status_code")

    def __init__(self) -> None:
        self.status_code: int = 200
        self.cookies: list[Cookie] = []
        self._headers = MutableHeaders()

    @property
    def headers(self) -> MutableHeaders:
        """The headers to send; `append` keeps what is there, `[]=` and `update` replace it."""
        return self._headers

    @property
    def metadata(self) -> MutableHeaders:
        """Another name of `headers`."""
        return self._headers

    def set_cookie(
        self,
        key: str,
        value: str = "",
        max_age: int | None = None,
        expires: datetime | str | int | None = None,
        path: str | None = "/",
        domain: str | None = None,
        secure: bool = False,
        httponly: bool = False,
        samesite: str | None = "lax",
    ) -> None:
        """Add a cookie; the arguments are those of `adapter.Cookie`."""
        self.cookies.append(Cookie(key, value, max_age, expires, path, domain, secure, httponly, samesite))

    def apply(self, response: Response) -> Response:
        """Put all this on a response: a header set here replaces the response's own of that name.

        Returns another response where the status code forbids a body, and raises InternalServerError for what
        cannot be sent.
        """
        status = self.status_code
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
            raise InternalServerError(
                f"ctx.response.status_code is {status!r}; a response has a whole number from 200 to 599."
            )
        if status in _WITHOUT_BODY:
            response = Response(status_code=status, background=response.background)
        response.status_code = int(status)
        headers = [(name, value) for name, value in self._headers.raw if name not in _OF_THE_SERVER]
        if headers:
            replaced = {name for name, _ in headers}
            kept = [pair for pair in response.raw_headers if pair[0] not in replaced]
            response.raw_headers[:] = kept + headers  # in place: a `response.headers` taken earlier shares the list
        for cookie in self.cookies:
            cookie.put_on(response)
        for name, value in response.raw_headers:
            # not every server checks this, and a line break would let a value write headers of its own
            if any(mark in part for part in (name, value) for mark in (b"\r", b"\n", b"\0")):
                raise InternalServerError(
                    f"The header {name.decode('latin-1')!r} has a line break or a NUL in its value {value[:80]!r}; "
                    "take it out before it is set on ctx.response."
                )
        return response


class Context:
    """The context of one request, or of one lifecycle hook, where there is no request.

    `state` is the dict of this process: what one API function or hook writes, the others read.
    """

    __slots__ = ("_closed", "_request", "_request_context", "_response", "_temp_dir", "state")

    def __init__(self, state: dict[str, Any], request: Request | None = None) -> None:
        self.state = state
        self._request = request
        # both are made when first asked for: most requests ask for neither
        self._request_context: RequestContext | None = None
        self._response: ResponseContext | None = None
        self._temp_dir: str | None = None
        self._closed = False

    @property
    def request(self) -> RequestContext:
        """What came with the request; raises LookupError inside a lifecycle hook."""
        if self._request_context is None:
            if self._request is None:
                raise LookupError(_no_request("request"))
            self._request_context = RequestContext(self._request)
        return self._request_context

    @property
    def response(self) -> ResponseContext:
        """What goes out beside the result; raises LookupError inside a lifecycle hook."""
        if self._response is None:
            if self._request is None:
                raise LookupError(_no_request("response"))
            self._response = ResponseContext()
        return self._response

    @property
    def temp_dir(self) -> str:
        """A folder of this request alone, removed with all that is in it when the response has been sent.

        Raises LookupError inside a lifecycle hook, and StateException when the request is over.
        """
        if self._request is None:
            raise LookupError(_no_request("temp_dir"))
        with _making:
            if self._closed:
                raise StateException("The request is over, and its temp_dir with it; keep what must stay elsewhere.")
            if self._temp_dir is None:
                self._temp_dir = tempfile.mkdtemp(prefix="adapter-request-")
            return self._temp_dir

    def apply(self, response: Response) -> Response:
        """Put what the API function set on `ctx.response` onto a response; see `ResponseContext.apply`."""
        return response if self._response is None else self._response.apply(response)

    def close(self) -> None:
        """End the request: its folder is removed, on a thread of its own, since that takes as long as it is large."""
        with _making:
            self._closed = True
        if self._temp_dir is not None:
            threading.Thread(target=shutil.rmtree, args=(self._temp_dir, True), name="remove-temp-dir").start()


def _no_request(what: str) -> str:
    return (
        f"ctx.{what} exists only while a request is served, and a lifecycle hook runs before or after all of them; "
        "use ctx.state to hand something to the API functions."
    )
