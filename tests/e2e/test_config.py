"""`adapter.yaml` and what becomes of it: in the server, in its runners, and in what is exported."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve, Served

Run = Callable[..., subprocess.CompletedProcess[str]]
SERVICE = """
import asyncio
import time
from typing import Annotated

import numpy as np

import adapter
from adapter.io import JSON, NumpyNdarray, Text


class Counter(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def count(self, texts: list[str]) -> list[int]:
        time.sleep(0.02)
        return [len(texts)] * len(texts)


class Wide(adapter.Runnable):
    @adapter.Runnable.method(batchable=True, batch_dim=1)
    def weigh(
        self, x: Annotated[np.ndarray, adapter.TensorSpec("float32", (3, -1))]
    ) -> Annotated[np.ndarray, adapter.TensorSpec("float32", (3, -1))]:
        return x * np.array([[1], [2], [3]], dtype="float32")


alone = adapter.Runner(Counter, name="alone", max_batch_size=30)
few = adapter.Runner(Counter, name="few", max_batch_size=30)
wide = adapter.Runner(Wide)
svc = adapter.Service("counting", runners=[alone, few, wide])


@svc.api(input=Text(), output=JSON())
async def count_alone(text: str) -> int:
    return (await alone.count.async_run([text]))[0]


@svc.api(input=Text(), output=JSON())
async def count_few(text: str) -> int:
    return (await few.count.async_run([text]))[0]


@svc.api(input=NumpyNdarray(dtype="float32"), output=NumpyNdarray())
async def weigh(x: np.ndarray) -> np.ndarray:
    return await wide.weigh.async_run(x)


@svc.api(input=Text(), output=Text())
async def nap(text: str) -> str:
    await asyncio.sleep(float(text))
    return text
"""
CONFIG = """
api_server:
  workers: 1
  backlog: 3
  traffic:
    timeout: ${LONGEST:-60}
  http:
    port: ${A_PORT}
runners:
  batching: {max_batch_size: 7}
  traffic: {timeout: 30}
  alone:
    resources: {cpu: 1}
    batching: {enabled: false}
  few:
    cpu: 2
  wide:
    batching: {enabled: false}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "service.py").write_text(SERVICE)
    (folder / "adapter.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def served(serve: Serve, project: Path) -> Served:
    """Told by a file, by the environment, and by no flag but the port 0 that every test here gives."""
    env = {"A_PORT": "1", "LONGEST": "3", "ADAPTER_CONFIG_OPTIONS": "runners.few.max_batch_size=2"}
    return serve("service:svc", working_dir=project, env=env)


def together(served: Served, api: str) -> list[int]:
    """The sizes of the batches that twelve requests at the same time came into."""
    with served.client as client, ThreadPoolExecutor(12) as pool:
        return list(pool.map(lambda n: client.post(f"/{api}", content=str(n)).json(), range(12)))


def test_runners_batch_as_the_settings_say(served: Served) -> None:
    assert set(together(served, "count_alone")) == {1}
    sizes = together(served, "count_few")
    assert set(sizes) <= {1, 2}
    assert 2 in sizes


def test_method_that_is_not_batched_gets_its_arrays_as_they_were_sent(served: Served) -> None:
    answer = served.post("/weigh", json=[[1, 1], [1, 1], [1, 2]])
    assert answer.json() == [[1, 1], [2, 2], [3, 6]]


def test_front_and_entries_agree_on_the_settings(served: Served) -> None:
    assert served.get("/readyz").status_code == 200
    assert len(served.children("adapter.server.front")) == 1


def test_timeout_is_that_of_the_file(served: Served) -> None:
    answer = served.post("/nap", content="9")
    assert (answer.status_code, answer.json()) == (504, {"error": "/nap did not answer within 3 seconds."})


def test_queue_of_connections_is_as_long_as_the_file_says(served: Served) -> None:
    (front,) = served.children("adapter.server.front")
    port = int(served.url.rpartition(":")[2])
    sockets = [socket.socket() for _ in range(12)]
    os.kill(front, signal.SIGSTOP)
    try:
        for client in sockets:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        time.sleep(0.3)
        connected = [s for s in sockets if _is_connected(s)]
    finally:
        os.kill(front, signal.SIGCONT)
        for client in sockets:
            client.close()
    assert len(connected) == 4  # Linux lets one more wait than it is told


def _is_connected(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError:
        return False
    return True


def test_port_is_that_of_the_file(project: Path, run_adapter: Run) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ended = run_adapter("serve", "service:svc", working_dir=project, env={"A_PORT": str(port)})
    assert ended.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on: another program uses it" in ended.stderr


def test_exported_entries_are_as_the_settings_say(project: Path, run_adapter: Run, tmp_path: Path) -> None:
    env = {"A_PORT": "1", "ADAPTER_CONFIG_OPTIONS": "runners.few.max_latency_ms=250"}
    ended = run_adapter("export", "service:svc", "--repository", str(tmp_path), working_dir=project, env=env)
    assert ended.returncode == 0, ended.stderr
    alone, few = ((tmp_path / f"counting.{name}/config.pbtxt").read_text() for name in ("alone", "few"))
    assert re.search(r"^max_batch_size: 0$", alone, re.M)
    assert "dynamic_batching" not in alone
    assert re.search(r"^max_batch_size: 30$", few, re.M)  # code beats the file's default of 7
    assert "dynamic_batching" in few
    assert [re.findall(r"count: (\d+)", text) for text in (alone, few)] == [["1"], ["2"]]
    spec = json.loads((tmp_path / "counting.few/1/spec.json").read_text())
    assert spec["call_timeout_s"] == 30.0
    assert spec["methods"][0]["max_latency_ms"] == 250.0


def test_repository_of_the_file_is_exported_to(project: Path, run_adapter: Run, tmp_path: Path) -> None:
    config = tmp_path / "there.yaml"
    config.write_text("triton: {repository: entries}\nrunners: {few: {max_batch_size: 5}}")
    ended = run_adapter("export", "service:svc", "--config", str(config), working_dir=project)
    assert ended.returncode == 0, ended.stderr
    assert "max_batch_size: 5\n" in (tmp_path / "entries/counting.few/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("command", "config", "words"),
    [
        (
            "serve",
            "runners: {fwe: {cpu: 1}}",
            "settings for the runner 'fwe', but the service 'counting' has alone, few, wide.",
        ),
        (
            "export",
            "runners: {few: {method_configs: {cuont: {max_batch_size: 1}}}}",
            "the method 'cuont' of the runner 'few'",
        ),
    ],
)
def test_wrong_settings_end_the_command_with_a_sentence(
    command: str, config: str, words: str, project: Path, run_adapter: Run, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(config)
    options = ["--port", "0"] if command == "serve" else []
    ended = run_adapter(command, "service:svc", "--config", str(file), *options, working_dir=project)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_names_that_people_know_are_taken(project: Path, run_adapter: Run) -> None:
    ended = run_adapter("serve-http", "none:svc", "--port", "0", "--production", "--working-dir", str(project.parent))
    assert ended.returncode == 1
    said, error = ended.stderr.splitlines()
    assert said == "--production is the default: leave it out."
    assert error.startswith("Error: There is no module 'none'")
