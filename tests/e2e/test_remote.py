"""Fronts whose Tritons run elsewhere: several of them, by name, over TLS, restricted, stale, and for single runners.

Times that are asserted are those that are promised, and more: the machine that runs this may be busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from adapter.layers import load as load_settings
from adapter.triton.address import Address, parse
from adapter.triton.client import TritonClient
from adapter.triton.engine import Engine, Ports, command
from adapter.triton.environment import environment
from adapter.triton.installation import Installation
from adapter.triton.plain_paths import PlainPaths
from adapter.triton.stub_memory import SHM_FOLDER
from adapter.triton.stubs import stubs_of
from tests.e2e.conftest import ADAPTER, Serve, Served, wait_until
from tests.e2e.load import load

SERVICES = Path(__file__).parent / "services"
ENTRIES = ("remote.one", "remote.one.stream", "remote.two")
HEADER = "triton-grpc-protocol-door"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, run_module: Run) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    run_module("export", "remote:svc", "--repository", str(folder))
    return folder


@pytest.fixture(scope="module")
def run_module(installation: Installation) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = [str(ADAPTER), *arguments]
        done = subprocess.run(given, cwd=SERVICES, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


class Twins:
    """Two tritonservers on one repository, each on a port of its own, which it has again when it is started again."""

    def __init__(self, installation: Installation, repository: Path) -> None:
        self._installation = installation
        self._repository = repository
        self._ports = [Ports.free(), Ports.free()]
        self._engines: list[Engine | None] = [None, None]
        for index in range(2):
            self.start(index)
        self.wait()

    @property
    def address(self) -> str:
        return ",".join(f"grpc://127.0.0.1:{ports.grpc}" for ports in self._ports)

    def url(self, index: int) -> str:
        return f"127.0.0.1:{self._ports[index].grpc}"

    def start(self, index: int) -> None:
        ports = self._ports[index]
        self._engines[index] = Engine(self._installation, self._repository, ENTRIES, env=os.environ, ports=ports)

    def wait(self) -> None:
        for engine in self._engines:
            if engine is not None:
                engine.wait_ready()

    def kill(self, index: int) -> None:
        engine = self._engines[index]
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)

    def stop(self, index: int) -> None:
        engine, self._engines[index] = self._engines[index], None
        if engine is not None:
            engine.stop()


@pytest.fixture(scope="module")
def twins(installation: Installation, repository: Path) -> Iterator[Twins]:
    found = Twins(installation, repository)
    yield found
    for index in range(2):
        found.stop(index)


@pytest.fixture(scope="module")
def front(serve: Serve, twins: Twins, repository: Path) -> Served:
    options = ("--triton", twins.address, "--manifest", str(repository), "--api-workers", "1")
    return serve("remote:svc", *options, working_dir=SERVICES)


def answered_by(served: Served, path: str = "/one", calls: int = 20) -> set[str]:
    return {served.post(path, content="x").raise_for_status().text.rpartition(" ")[2] for _ in range(calls)}


def page(served: Served, name: str) -> dict[str, float]:
    lines = served.get("/metrics").text.splitlines()
    found = (re.fullmatch(rf'{name}{{.*address="([^"]*)".*}} (\S+)', line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


# ---- several --------------------------------------------------------------------------------------------------------


def test_both_are_used(front: Served, twins: Twins) -> None:
    assert front.get("/readyz").status_code == 200, front.log
    assert len(answered_by(front)) == 2
    streamed = {front.post("/count", content="2").raise_for_status().text for _ in range(6)}
    assert len(streamed) == 2
    assert all(len(set(text.splitlines())) == 1 and text.count("\n") == 2 for text in streamed)
    assert page(front, "adapter_runner_triton_replicas_up") == {twins.url(0): 1, twins.url(1): 1}


def test_one_that_is_killed_fails_only_what_is_under_way_there_and_is_used_again(front: Served, twins: Twins) -> None:
    lines = len(front.lines)
    with load(front.url, {"/one": 8, "/two": 8}, seconds=60) as running:
        time.sleep(0.5)
        killed = time.monotonic()
        twins.kill(0)
        time.sleep(1)
        assert page(front, "adapter_runner_triton_replicas_up") == {twins.url(0): 0, twins.url(1): 1}
        assert front.get("/readyz").status_code == 200
        twins.stop(0)
        twins.start(0)
        twins.wait()
        back = time.monotonic()
        wait_until(lambda: page(front, "adapter_runner_triton_replicas_up")[twins.url(0)] == 1, 10)
        time.sleep(1)
    assert len(answered_by(front)) == len(answered_by(front, "/two")) == 2
    for path in ("/one", "/two"):
        failed = running.failed(path)
        # as many requests as there were instances, and one more; those that carried several calls are sent again
        assert len(failed) <= 3, failed
        assert {a.status for a in failed} <= {503}
        assert all(a.retry_after for a in failed)
        assert all(a.begun <= killed + 0.5 for a in failed)
        assert len(running.since(killed + 0.5, path)) > 100
        assert len({a.text for a in running.since(back, path) if a.status == 200}) == 2
    told = [line for line in front.lines[lines:] if twins.url(0) in line]
    assert len(told) == 2, told
    assert "is not called" in told[0]
    assert "is called again" in told[1]


def test_one_that_is_told_to_end_fails_nothing(front: Served, twins: Twins) -> None:
    with load(front.url, {"/one": 8, "/two": 8}, seconds=60) as running:
        time.sleep(0.5)
        twins.stop(1)
        time.sleep(1)
        twins.start(1)
        twins.wait()
        wait_until(lambda: len(answered_by(front, calls=4)) == 2, 10)
    assert running.failed("/one") + running.failed("/two") == []


def test_front_without_any_triton_is_told_so_once_and_recovers(
    serve: Serve, installation: Installation, repository: Path
) -> None:
    ports = Ports.free()
    options = ("--triton", f"127.0.0.1:{ports.grpc}", "--manifest", str(repository), "--api-workers", "1")
    served = serve("remote:svc", *options, working_dir=SERVICES)
    answer = served.get("/readyz")
    assert answer.status_code == 503
    assert f"The Triton at 127.0.0.1:{ports.grpc} is not called" in answer.json()["error"]
    called = served.post("/one", content="x")
    assert (called.status_code, called.headers["retry-after"]) == (503, "1")
    time.sleep(1.5)
    assert served.get("/readyz").status_code == 503
    assert len([line for line in served.lines if "is not called" in line]) == 1
    with contextlib.closing(_Ended(Engine(installation, repository, ENTRIES, env=os.environ, ports=ports))) as made:
        made.engine.wait_ready()
        wait_until(lambda: served.get("/readyz").status_code == 200, 5)
        assert len(answered_by(served)) == 1
        served.wait_for("is called again", 5)


class _Ended:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        self.engine.stop()


# ---- TLS and the header ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    for name, issuer in (("triton.example", authority), ("front.example", authority), ("stranger", trustme.CA())):
        made = issuer.issue_cert(name)
        (folder / f"{name}.crt").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        (folder / f"{name}.key").write_bytes(made.private_key_pem.bytes())
        if name == "stranger":
            (folder / "stranger-ca.pem").write_bytes(issuer.cert_pem.bytes())
    return folder


@contextlib.contextmanager
def guarded(installation: Installation, repository: Path, *options: str) -> Iterator[int]:
    """A tritonserver with options of its own, on a port of 127.0.0.1."""
    ports, paths = Ports.free(), PlainPaths(os.environ)
    backends = installation.backends()
    given = command(
        installation,
        paths.of(repository),
        ENTRIES,
        backends=None if backends is None else paths.of(backends),
        ports=ports,
        server_id="guarded",
        key="k",
    )
    given = [option for option in given if not option.startswith("--grpc-restricted-protocol")]
    env = environment(installation, os.environ, plain=paths.of)
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen([*given, *options], env=env, stdout=nowhere, stderr=nowhere)
    try:
        yield ports.grpc
    finally:
        regions = {stub.region for stub in stubs_of(process.pid)}
        process.kill()  # after the clients that it refused here it takes more than 30 s to end; its stubs see it
        process.wait()
        for region in regions:
            (SHM_FOLDER / region.lstrip("/")).unlink(missing_ok=True)
        paths.remove()


@pytest.fixture(scope="module")
def vault(installation: Installation, repository: Path, tls: Path) -> Iterator[int]:
    """It has TLS, wants certificates, and a key for everything."""
    options = (
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={tls / 'triton.example.crt'}",
        f"--grpc-server-key={tls / 'triton.example.key'}",
        f"--grpc-root-cert={tls / 'ca.pem'}",
        "--grpc-restricted-protocol=health,metadata,inference,model-config,model-repository:door=open sesame",
    )
    with guarded(installation, repository, *options) as port:
        yield port


def config_of(
    folder: Path, port: int, tls: Path, *, ca: str = "ca.pem", own: str = "front.example", **more: str
) -> str:
    own_files = f", certificate: {tls / own}.crt, key: {tls / own}.key" if own else ""
    header = f"  headers: {{{HEADER}: {more['key']}}}\n" if "key" in more else ""
    text = (
        f"triton:\n  url: grpcs://127.0.0.1:{port}\n  manifest: {more['manifest']}\n{header}"
        f"  tls: {{ca: {tls / ca}, server_name: {more.get('name', 'triton.example')}{own_files}}}\n"
        "api_server: {workers: 1}\n"
    )
    file = folder / "adapter.yaml"
    file.write_text(text)
    return str(file)


def test_tls_with_certificates_on_both_sides_and_the_key(
    serve: Serve, vault: int, tls: Path, repository: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, vault, tls, manifest=str(repository), key="open sesame")
    served = serve("remote:svc", "--config", config, working_dir=SERVICES)
    wait_until(lambda: served.get("/readyz").status_code == 200, 30)
    assert len(answered_by(served)) == 1
    assert served.post("/count", content="3").raise_for_status().text.count("\n") == 3
    assert "open sesame" not in served.log


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": "open barley"}, f"Triton wants the header '{HEADER}' with its key: set triton.headers"),
        ({}, f"Triton wants the header '{HEADER}' with its key: set triton.headers"),
        ({"key": "open sesame", "ca": "stranger-ca.pem"}, "certificate verify failed"),
        ({"key": "open sesame", "name": "other.example"}, "certificate is not valid for 'other.example'"),
        ({"key": "open sesame", "own": ""}, "lost at once, as by a server that wants TLS, or a certificate"),
        ({"key": "open sesame", "own": "stranger"}, "lost at once, as by a server that wants TLS"),
    ],
    ids=["wrong key", "no key", "wrong authority", "wrong name", "no certificate", "wrong certificate"],
)
def test_what_is_wrong_with_tls_or_the_key_is_told(
    change: dict[str, str], reason: str, vault: int, tls: Path, repository: Path, tmp_path: Path
) -> None:
    """What /readyz of a front says, without the front."""
    config = config_of(tmp_path, vault, tls, manifest=str(repository), **change)
    triton = load_settings(Path(config), {}).settings.triton
    assert triton.url is not None
    assert reason in readiness(triton.at(triton.url), until=reason)


def test_front_without_tls_is_told_that_triton_may_want_it(vault: int) -> None:
    reason = "lost at once, as by a server that wants TLS"
    assert reason in readiness(parse(f"127.0.0.1:{vault}"), until=reason)


def readiness(address: Address, *, entry: str = "remote.one", until: str = "") -> str:
    """Why the Triton at an address is not ready, asked until the reason is the one that is expected."""

    async def ask() -> str:
        client = TritonClient(address, watch=True)
        client.expected[entry] = ""
        try:
            return await client.not_ready()
        finally:
            await client.close()

    end = time.monotonic() + 30  # it may still be loading
    while until not in (told := asyncio.run(ask())) and time.monotonic() < end:
        time.sleep(0.2)
    return told


# ---- stale repositories ---------------------------------------------------------------------------------------------


def test_stale_entry_is_named_with_the_command_that_mends_it(
    serve: Serve, twins: Twins, repository: Path, tmp_path: Path
) -> None:
    source = (SERVICES / "remote.py").read_text()
    (tmp_path / "remote.py").write_text(source.replace("method(batchable=True)", "method(batchable=False)"))
    options = ("--triton", twins.address, "--manifest", str(repository), "--api-workers", "1")
    served = serve("remote:svc", *options, working_dir=tmp_path)
    answer = served.get("/readyz")
    assert answer.status_code == 503
    told = answer.json()["error"]
    for index in range(2):
        assert f"The entry remote.one at {twins.url(index)} has another interface" in told
    assert told.endswith(f"run `adapter deploy remote:svc --triton {twins.address}`.")
    assert told.count("adapter deploy") == 1
    called = served.post("/one", content="x")  # it would not understand it
    assert called.status_code == 503


def test_missing_entry_is_named(twins: Twins) -> None:
    told = readiness(parse(twins.url(0)), entry="remote.none")
    assert told.startswith(f"There is no entry remote.none in the Triton at {twins.url(0)}: run `adapter")


# ---- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "environment and a name"])
def test_runner_has_tritons_of_its_own(
    place: str, serve: Serve, twins: Twins, repository: Path, tmp_path: Path
) -> None:
    first, second = twins.url(0), twins.url(1)
    text = f"triton: {{url: 'grpc://{first}', manifest: {repository}}}\napi_server: {{workers: 1}}\n"
    env = {}
    if place == "file":
        text = text.replace("manifest:", f"runners: {{two: {{url: 'grpc://{second}'}}}}, manifest:")
    else:  # of `localhost` there may be several addresses; tests/triton/test_replicas.py has names that change
        name = f"dns:///localhost:{first.rpartition(':')[2]}"
        text = text.replace(f"grpc://{first}", name)
        env = {"ADAPTER_CONFIG_OPTIONS": f"triton.runners.two.url=grpc://{second}"}
    (tmp_path / "adapter.yaml").write_text(text)
    served = serve("remote:svc", "--config", str(tmp_path / "adapter.yaml"), working_dir=SERVICES, env=env)
    wait_until(lambda: served.get("/readyz").status_code == 200, 10)
    one, two = answered_by(served, "/one"), answered_by(served, "/two")
    assert len(one) == len(two) == 1
    assert one != two
    assert page(served, "adapter_runner_triton_replicas_up") == {first if place == "file" else name: 1, second: 1}
    if place != "file":
        return
    twins.kill(1)
    wait_until(lambda: served.get("/readyz").status_code == 503, 5)
    assert second in served.get("/readyz").json()["error"]
    assert served.post("/one", content="x").status_code == 200
    assert served.post("/two", content="x").status_code == 503
    twins.stop(1)
    twins.start(1)
    twins.wait()
    wait_until(lambda: served.get("/readyz").status_code == 200, 10)
    assert len(answered_by(served, "/two")) == 1


def test_what_does_not_go_together_ends_the_command_with_a_sentence(run_adapter: Run, repository: Path) -> None:
    env = {"ADAPTER_CONFIG_OPTIONS": "triton.runners.two.url=h:1"}
    options = ("--port", "0", "--manifest", str(repository))
    ended = run_adapter("serve", "remote:svc", *options, working_dir=SERVICES, env=env)
    assert ended.returncode == 1
    assert "The runner 'one' has no Triton: set triton.url" in ended.stderr
    assert ended.stderr.count("\n") == 1
