"""One API as an ASGI application, and what a client sees of an error."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import logging
import math
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from adapter.context import Context
from adapter.exceptions import (
    AdapterError,
    ClientGone,
    DeadlineExceeded,
    RemoteException,
    ServiceUnavailable,
    message_of,
    one_line,
    sentence,
    status_of,
)
from adapter.server.threads import Threads
from adapter.services import API
from adapter.triton.request import request_id

logger = logging.getLogger("adapter.server")


class BrokenOff(Exception):
    """What is left to do for an answer that failed half-way, and is logged: the server closes the connection."""


class Endpoint:
    """Reads the body of a request, calls the API function, and writes what it returns."""

    def __init__(self, api: API, state: dict[str, Any], threads: Threads) -> None:
        self.api = api
        self._state = state
        self._threads = threads
        self._read = api.input.from_http_request
        self._write = api.output.to_http_response
        self._is_async = api.is_async
        # a call of a generator function runs none of it
        self._is_generator = inspect.isgeneratorfunction(api.func) or inspect.isasyncgenfunction(api.func)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            text = f"{scope['path']} does not answer {scope['method']}: send it a POST."
            await JSONResponse({"error": text}, 405, {"allow": "POST"})(scope, receive, send)
            return
        request = Request(scope, receive)
        if self.api.ctx_param is None:
            await self._respond(request, None, send)
            return
        context = Context(self._state, request)
        try:
            await self._respond(request, context, send)
        finally:
            context.close()

    async def _respond(self, request: Request, context: Context | None, send: Send) -> None:
        try:
            response = await self._answer(request, context)
        except ClientDisconnect:  # in the middle of its body: nobody is left to be answered
            return
        except asyncio.CancelledError:  # its time is over
            raise
        except BaseException as error:  # noqa: BLE001  # the edge: whatever user code raises is answered
            response = error_response(error, self.api.name)
        try:
            await response(request.scope, request.receive, send)
        except ClientGone:  # the API learned of it while it was streaming
            return
        except Exception as error:
            name, cause = self.api.name, None if isinstance(error, AdapterError) else error
            logger.error("request %s to /%s broke off: %s", request_id.get(), name, sentence(error), exc_info=cause)
            raise BrokenOff from error

    async def _answer(self, request: Request, context: Context | None) -> Response:
        value = await self._read(request)
        api = self.api
        arguments: tuple[Any, ...] = ()
        keywords: dict[str, Any] = {}
        if api.multi_input:
            keywords = dict(value)
            if api.ctx_param is not None:
                keywords[api.ctx_param] = context
        else:
            arguments = (value,) if context is None else (value, context)
        if self._is_async:
            result = await api.func(*arguments, **keywords)
        elif self._is_generator:
            result = api.func(*arguments, **keywords)
        else:
            result = await self._threads.run(api.func, *arguments, **keywords)
            if inspect.isawaitable(result):
                result = await result
        return await self._write(result, context)


def error_response(error: BaseException, api: str = "") -> Response:
    """What a client sees of an error: adapter's own with status and message, any other as a fixed sentence and 500."""
    identity = request_id.get()
    if isinstance(error, AdapterError) and not isinstance(error, RemoteException):
        status = status_of(error)
        if status >= 500 and not isinstance(error, (ServiceUnavailable, DeadlineExceeded)):
            logger.error("request %s to /%s: %s", identity, api, sentence(error))
        headers = {}
        if (seconds := getattr(error, "retry_after", None)) is not None:
            headers["retry-after"] = str(max(1, math.ceil(seconds)))
        if status == http.HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        text = message_of(error) or f"{http.client.responses.get(status, type(error).__name__)}."
        body: dict[str, Any] = {"error": text} if error.detail is None else {"error": text, "detail": error.detail}
        return JSONResponse(body, status_code=status, headers=headers)
    if isinstance(error, RemoteException):
        text = one_line(message_of(error))
        # where it was raised here, and not in Triton, whose log has the rest
        logger.error("request %s to /%s: the runner raised %s", identity, api, text, exc_info=error.__cause__)
    else:
        logger.error("request %s to /%s failed", identity, api, exc_info=error)
    text = f"The code of this service failed on the request; its log says why, under the request id {identity}."
    return JSONResponse({"error": text}, status_code=500)
