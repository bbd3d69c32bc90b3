from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from adapter.server.corked import _Corked


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_answer_to_a_client_that_has_just_gone_is_dropped(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    failures: list[dict[str, Any]] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            corked = _Corked(transport, asyncio.get_running_loop())
            transport.abort()  # the protocol is told of it on the loop's next turn, and writes until then
            corked.write(b"head")
            corked.write(b"body")

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        server = await loop.create_server(Server, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = await reader.read()
            writer.close()
        return found

    loop = new_loop()
    try:
        assert loop.run_until_complete(main()) == b""
    finally:
        loop.close()
    assert failures == []
