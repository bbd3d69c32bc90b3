"""What Linux tells of processes and connections."""

from __future__ import annotations

import os
import socket
import time

import pytest

from adapter.triton.stubs import connected, ended_badly


@pytest.mark.parametrize(("code", "badly"), [(0, False), (3, True)])
def test_child_that_ended_is_told_by_its_exit_code_until_it_is_reaped(code: int, badly: bool) -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {code}"], os.environ)
    until = time.monotonic() + 10
    while ended_badly(pid) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert ended_badly(pid) is badly
    os.waitpid(pid, 0)
    assert ended_badly(pid) is None


def test_process_that_lives_has_not_ended() -> None:
    assert ended_badly(os.getpid()) is None


def test_port_is_connected_as_long_as_somebody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not connected(port)
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            assert connected(port)
        assert not connected(port)
