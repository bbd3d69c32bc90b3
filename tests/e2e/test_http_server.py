from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

import adapter
from adapter import HTTPServer
from adapter.exceptions import (
    AdapterError,
    ConfigException,
    DeadlineExceeded,
    InvalidArgument,
    ServiceUnavailable,
    StateException,
)
from adapter.io import JSON

SERVICE = """
import os, sys, time
import adapter
from adapter.io import JSON

svc = adapter.Service("little")

@svc.api(input=JSON(), output=JSON())
def wait(seconds):
    time.sleep(seconds)
    return [os.environ.get("MARK"), os.getcwd()]
"""

svc = adapter.Service("of_this_file")
svc.api(input=JSON(), output=JSON(), name="same")(lambda value: value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "little_service.py").write_text(SERVICE)
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def test_service_is_served_from_a_program(folder: Path) -> None:
    server = HTTPServer("little_service:svc", port=0, working_dir=folder, api_workers=1, env={"MARK": "here"})
    with pytest.raises(StateException, match="is not being served: call start"):
        server.stop()
    with server.start() as client:
        assert client.wait(0) == ["here", str(folder)]
        assert client.server_url == server.url == f"http://127.0.0.1:{server.port}"
        assert server.process is not None
        assert server.process.poll() is None
        with server.get_client(timeout=5) as other:
            assert other.endpoints == ["wait"]
        with pytest.raises(StateException, match=r"is being served on .* already"):
            server.start()
    assert server.process.returncode == 0
    with pytest.raises(AdapterError, match="is closed"):
        client.wait(0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/livez")
    with server as client:  # and again, at the same port
        assert client.wait(0)[0] == "here"


def test_service_object_is_found_where_it_was_made(folder: Path) -> None:
    with HTTPServer(svc, port=0, production=False) as client:
        assert client.same({"a": 1}) == {"a": 1}
    with pytest.raises(InvalidArgument, match="The service 'nowhere' is no global of a module"):
        HTTPServer(adapter.Service("nowhere"))


def test_service_may_speak_https(folder: Path) -> None:
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    server = HTTPServer(svc, port=0, production=False, ssl_certfile=folder / "both.pem")
    with server as client:
        assert client.server_url == server.url == f"https://127.0.0.1:{server.port}"
        assert client.same([1]) == [1]
        with pytest.raises(ServiceUnavailable, match="certificate verify failed"):
            server.get_client(verify=True, retries=0)


def test_service_that_cannot_start_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer("little_service:nothing", port=0, working_dir=folder)
    with pytest.raises(StateException, match=r"'little_service:nothing' ended with exit code 1 before it was ready"):
        server.start()
    assert "has no 'nothing'" in capfd.readouterr().err
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigException, match=r"cannot be listened on: .* in use"),
    ):
        HTTPServer("little_service:svc", port=taken.getsockname()[1], working_dir=folder).start()
    with pytest.raises(ConfigException, match="cannot be listened on"):
        HTTPServer("little_service:svc", host="256.0.0.1", port=0).start()


def test_service_that_takes_too_long_to_start_is_ended(folder: Path) -> None:
    (folder / "slow_service.py").write_text(SERVICE + "\ntime.sleep(60)\n")
    server = HTTPServer("slow_service:svc", port=0, working_dir=folder, timeout=0.5)
    with pytest.raises(DeadlineExceeded, match=r"was not ready on http://127.0.0.1:\d+ within 0.5 seconds"):
        server.start()
    assert server.process is not None
    assert not alive(server.process.pid)


def test_requests_that_take_too_long_are_given_up(folder: Path) -> None:
    server = HTTPServer("little_service:svc", port=0, working_dir=folder, production=False)
    client = server.start().get_client(retries=0)
    ended = threading.Event()

    def ask() -> None:
        with contextlib.suppress(AdapterError):
            client.wait(60)
        ended.set()

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    assert server.process is not None
    server.stop(grace=0.5)
    assert not alive(server.process.pid)
    assert ended.wait(10)
    thread.join()
    client.close()


def test_server_ends_with_the_program_that_started_it(folder: Path) -> None:
    script = folder / "program.py"
    script.write_text(
        SERVICE + "\nif __name__ == '__main__':\n"
        "    server = adapter.HTTPServer(svc, port=0, production=False)\n"
        "    with server.start() as client:\n"
        "        print(server.url, server.process.pid, client.wait(0) is not None, flush=True)\n"
        "        time.sleep(60)\n"
    )
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd="/")
    assert program.stdout is not None
    url, pid, served = program.stdout.readline().split()
    try:
        assert served == "True"
        assert httpx.get(f"{url}/livez").status_code == 200
    finally:
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        program.stdout.close()
    assert eventually(lambda: not alive(int(pid)))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_fixture_serves_a_service_of_the_test_itself(folder: Path) -> None:
    """As a person has it: nothing imported, nothing configured, the code in `src`."""
    source = folder / "src" / "shop"
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    (source / "prices.py").write_text("FACTOR = 3\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_shop.py").write_text(
        "import adapter\n"
        "from adapter.io import JSON\n"
        "from shop.prices import FACTOR\n\n\n"
        "svc = adapter.Service('shop')\n\n\n"
        "@svc.api(input=JSON(), output=JSON())\n"
        "def times(n: int):\n"
        "    return n * FACTOR\n\n\n"
        "def test_one(served):\n"
        "    assert served(svc).times(2) == 6\n\n\n"
        "def test_two(served):\n"
        "    assert served(svc) is served(svc)\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = src\nfilterwarnings = error\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout
