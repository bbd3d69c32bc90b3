"""Who may call a server: whoever sends one of its bearer tokens. Source: RFC 6750, the header alone."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.exceptions import ConfigException, Unauthorized
from adapter.kinds import TOKENS, WrongKind
from adapter.server.endpoint import error_response
from adapter.settings import ApiServer

logger = logging.getLogger("adapter.server")

HEALTH = frozenset({"/livez", "/healthz", "/readyz"})
_READING = ("GET", "HEAD")  # what else is sent to the path of a health route may reach an application that is mounted
_LOOK_S = 1.0  # how old what is known of the file may be
_LONGEST_FILE = 1 << 20
_HOW = "send the header `Authorization: Bearer <token>`"


class Guard:
    """Lets requests pass that have a token, and those for the paths of `health`.

    `page` is what a browser gets at `/` without one: people cannot tell it to send a header.
    """

    def __init__(self, tokens: Tokens, *, health: frozenset[str] = HEALTH, page: Response | None = None) -> None:
        self._tokens = tokens
        self._health = health
        self._page = page

    def refusal(self, scope: Scope, path: str) -> Response | None:
        """What is answered in place of a request for `path`; None where it may pass."""
        if path in self._health and scope["method"] in _READING:
            return None
        reason = self._reason(scope)
        if not reason:
            return None
        if self._page is not None and path == "/" and scope["method"] == "GET" and _is_browser(scope):
            return self._page
        return error_response(Unauthorized(reason))

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application for WebSockets and the server's own events; no WebSocket is for health."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "websocket" or not (reason := self._reason(scope)):
                await app(scope, receive, send)
            elif "websocket.http.response" in scope.get("extensions", {}):
                refused = error_response(Unauthorized(reason))
                start = {"type": "websocket.http.response.start", "status": 401, "headers": refused.raw_headers}
                await send(start)
                await send({"type": "websocket.http.response.body", "body": refused.body})
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": reason})

        return guarded

    def _reason(self, scope: Scope) -> str:
        """Why a request may not pass; "" where it may. What it sent is not in the words."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            return f"This server answers requests that have a token: {_HOW}."
        if len(given) > 1:
            return f"The request has {len(given)} Authorization headers: send one."
        scheme, _, token = given[0].partition(b" ")
        token = token.strip(b" ")
        if scheme.lower() != b"bearer" or not token:
            return f"The Authorization header of the request has no bearer token: {_HOW}."
        return "" if self._tokens.has(token) else "The token of the request is none that this server takes."


class Tokens:
    """The tokens that are valid now: those that were set, and those of a file, which is read again when it changes.

    ConfigException where the file cannot be used. When that happens later, the tokens that it had stay, and the log
    tells: a file that somebody is writing locks nobody out.
    """

    def __init__(self, fixed: Iterable[str], file: Path | None = None) -> None:
        self._fixed = _digests(fixed)
        self._file = file
        self._state: object = None
        self._look_at = math.inf
        self._valid = self._fixed
        if file is not None:
            self._state = _state(file)
            self._valid = self._fixed + _read(file)
            self._look_at = time.monotonic() + _LOOK_S

    def has(self, token: bytes) -> bool:
        """Whether a token is valid; it takes as long for one as for another."""
        if time.monotonic() > self._look_at:
            self._look()
        digest = hashlib.sha256(token).digest()
        return sum(hmac.compare_digest(digest, valid) for valid in self._valid) > 0

    def _look(self) -> None:
        assert self._file is not None
        self._look_at = time.monotonic() + _LOOK_S
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._valid = self._fixed + _read(self._file)
        except ConfigException as error:
            logger.error("%s The tokens that it had before stay valid.", error)
        else:
            logger.info("The tokens of %s are those that it has now.", self._file)


def tokens_of(settings: ApiServer) -> Tokens | None:
    """The tokens of a server; None where it asks for none."""
    if settings.tokens is None and settings.tokens_file is None:
        return None
    return Tokens(settings.tokens or (), settings.tokens_file)


def _is_browser(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _digests(tokens: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(token.encode()).digest() for token in tokens)


def _state(file: Path) -> tuple[int, ...] | None:
    """What is another one when the file is; a mounted secret is a link that leads elsewhere then."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read(file: Path) -> tuple[bytes, ...]:
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST_FILE).decode()
        lines = [line.strip() for line in text.splitlines()]
        return _digests(TOKENS.read([line for line in lines if line and not line.startswith("#")]))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"each line of it can only be {_line(error)}"
        raise ConfigException(
            f"The file of tokens {str(file)!r} (api_server.tokens_file) cannot be used: {reason}."
        ) from None  # what was read may be in what goes before


def _line(error: ValueError) -> str:
    if isinstance(error, WrongKind):
        return "a token of letters, digits and -._~+/, and one is needed"
    return "text in UTF-8"
