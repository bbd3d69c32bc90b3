"""New versions of a service, and the ones of before, in a Triton that answers 16 connections all the while."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import fsspec
import httpx
import pytest
from tritonclient.grpc import service_pb2

from adapter.exceptions import DeploymentError
from adapter.loader import load_service
from adapter.triton.address import parse
from adapter.triton.deployment import Row, deploy, rollback
from adapter.triton.engine import Engine, Ports
from adapter.triton.export import plan, write
from adapter.triton.installation import Installation
from adapter.triton.manifest import Manifest, served
from tests.e2e.conftest import ADAPTER, Serve, Served, wait_until
from tests.e2e.load import Load, load
from tests.triton.project import MACHINE

CONNECTIONS = 16
ENTRY, TRIAL, TARGET = "deployed.word", "_check.deployed.word", "deployed_service:svc"
SOURCE = dedent(
    """
    import time
    import adapter
    from adapter.io import Text

    class Word(adapter.Runnable):
        SUPPORT_CPU_MULTI_THREADING = True  # one instance is loaded and unloaded sooner than two

        def __init__(self):
            {start}

        @adapter.Runnable.method(batchable=True)
        def say(self, texts):
            {call}
            return [f"{{text}} {word}" for text in texts]

    word = adapter.Runner(Word, name="word", warmup={{"say": ["sample"]}})
    svc = adapter.Service("deployed", runners=[word])

    @svc.api(input=Text(), output=Text())
    async def say(text: str) -> str:
        return (await word.say.async_run([text]))[0]
    """
)


def source(word: str, *, start: str = "pass", call: str = "pass") -> str:
    return SOURCE.format(word=word, start=start, call=call)


@dataclass(frozen=True)
class Place:
    """A service whose code changes, its repository, and the Tritons that serve it."""

    folder: Path
    repository: Path
    engine: Engine
    tritons: str

    def write(self, text: str) -> None:
        (self.folder / "deployed_service.py").write_text(text)

    def begin(self, command: str, *options: str) -> subprocess.Popen[str]:
        """Start the command line."""
        (key, value), *_ = self.engine.metadata
        return subprocess.Popen(
            [str(ADAPTER), command, TARGET, "--repository", str(self.repository), "--triton", self.tritons, *options],
            cwd=self.folder,
            env={**os.environ, "ADAPTER_CONFIG_OPTIONS": f"triton.headers={key}={value}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def deploy(self, text: str, repository: str | None = None, **options: Any) -> list[Row]:
        """Deploy some code, as `adapter deploy` does it."""
        self.write(text)
        sys.modules.pop("deployed_service", None)
        service = load_service(TARGET, self.folder)
        planned = plan(service, folder=self.folder, machine=MACHINE)
        address = parse(self.tritons, headers=dict(self.engine.metadata))
        return deploy(service, planned, repository or self.repository, lambda _: address, tell=print, **options)

    def rollback(self, **options: Any) -> list[Row]:
        address = parse(self.tritons, headers=dict(self.engine.metadata))
        return rollback("deployed", self.repository, lambda _: address, tell=print, **options)

    @property
    def ready(self) -> bool:
        """Whether Triton calls itself ready."""
        with self.engine.control.triton() as triton:
            return bool(triton.ServerReady(service_pb2.ServerReadyRequest()).ready)

    @property
    def listed(self) -> list[str]:
        return sorted(p.relative_to(self.repository).as_posix() for p in self.repository.rglob("*"))

    @property
    def version(self) -> int:
        return served(Manifest.read(self.repository).services["deployed"])[ENTRY]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, engine_of: Callable[..., Engine]) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("deployed")
    repository = folder / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        (folder / "deployed_service.py").write_text(source("one"))
        command = [str(ADAPTER), "export", TARGET, "--repository", str(repository)]
        subprocess.run(command, cwd=folder, check=True, timeout=60, capture_output=True)
        engine = engine_of(repository, [ENTRY])
        yield Place(folder, repository, engine, f"grpc://{engine.url}")
        sys.modules.pop("deployed_service", None)


@pytest.fixture(scope="module")
def front(serve: Serve, place: Place) -> Served:
    given = ("--triton", place.tritons, "--manifest", str(place.repository), "--api-workers", "1")
    return serve(TARGET, *given, working_dir=place.folder)


@contextlib.contextmanager
def unbroken(front: Served) -> Iterator[Load]:
    """A load of which no request may fail, while the front stays ready."""
    stopping, states = threading.Event(), set()

    def ask() -> None:
        with httpx.Client(base_url=front.url, timeout=10) as client:
            while True:
                states.add(client.get("/readyz").status_code)
                if stopping.wait(0.05):
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with load(front.url, {"/say": CONNECTIONS}, pause=0.02) as found:
            found.wait_for_answer("/say", time.monotonic(), 10)
            yield found
            found.wait_for_answer("/say", time.monotonic(), 10)
    finally:
        stopping.set()
        thread.join()
    assert found.failed("/say") == []
    assert states == {200}


def words(found: Load) -> list[str]:
    """The words that were answered, as they changed.

    What ran at the moment when one was answered for the first time may have been answered by either version.
    """
    answers = sorted(found.answers, key=lambda a: a.begun)
    first: dict[str, float] = {}
    for answer in answers:
        first[answer.text] = min(answer.ended, first.get(answer.text, answer.ended))
    settled = [a.text for a in answers if not any(a.begun < moment < a.ended for moment in first.values())]
    return [text.rpartition(" ")[2] for text, _ in itertools.groupby(settled)]


def test_deployment_changes_the_answers_once_and_a_second_one_waits(place: Place, front: Served) -> None:
    place.write(source("two"))
    with unbroken(front) as found:
        first = place.begin("deploy")
        wait_until(lambda: any("_check" in name for name in place.listed), 30)
        second = place.begin("deploy")
        code, out, err = ended(first)
        assert (code, err) == (0, "")
        assert re.search(r"^deployed\.word +1 -> 2 +1 +sample of say\(\) +\d", out, re.MULTILINE)
        code, out, err = ended(second)
    assert code == 0
    assert "is being written by another process; this one waits until that is done." in err
    assert re.search(r"^deployed\.word +2 +1 +unchanged", out, re.MULTILINE)
    assert words(found) == ["one", "two"]
    assert (place.version, place.ready) == (2, True)
    assert not [name for name in place.listed if "_check" in name]


BROKEN = {
    "raises at load": (source("bad", start="raise ValueError('no weights')"), "ValueError: no weights"),
    "hangs at load": (source("bad", start="time.sleep(1000)"), "it was not ready after 2 s"),
    "answers too few": (source("bad", call="texts = texts[1:]"), "The warm-up call of say() failed: "),
}


def loads(times: int, mark: Path) -> str:
    """Code that can be loaded so many times: what has been tried fails when it should serve."""
    return source("bad", start=f"mark = open({str(mark)!r}, 'ab', 0); mark.write(b'x'); assert mark.tell() <= {times}")


def test_broken_version_never_serves_and_leaves_nothing(place: Place, front: Served, tmp_path: Path) -> None:
    before = place.listed
    with unbroken(front) as found:
        with pytest.raises(DeploymentError, match=r"says: AssertionError\. Version 2 goes on serving\."):
            place.deploy(loads(1, tmp_path / "loaded"))
        assert (place.listed, place.ready) == (before, True)
        for how, (text, reason) in BROKEN.items():
            with pytest.raises(DeploymentError) as caught:
                place.deploy(text, limit_s=2 if how == "hangs at load" else 60)
            told, *trace = caught.value.message.splitlines()
            assert told.startswith("Version 3 of deployed.word was not deployed: the Triton at 127.0.0.1:"), how
            assert reason in told, how
            assert told.endswith(" Version 2 goes on serving."), how
            assert bool(trace) == (how == "raises at load")
            assert place.ready, how
    assert words(found) == ["two"]
    assert place.listed == before
    assert place.version == 2


def test_rollback_changes_the_answers_back_once(place: Place, front: Served) -> None:
    place.write(source("two"))
    with unbroken(front) as found:
        code, out, err = ended(place.begin("rollback"))
    assert (code, err) == (0, "")
    assert re.search(r"^deployed\.word +2 -> 1 +1 +sample of say\(\)", out, re.MULTILINE)
    assert words(found) == ["two", "one"]
    assert (place.version, place.ready) == (1, True)
    with pytest.raises(DeploymentError, match="does not know of a version of 'deployed' before this one"):
        place.rollback()


def test_deployment_that_is_killed_is_put_right_by_the_next(place: Place, front: Served) -> None:
    place.write(source("bad", start="time.sleep(1000)"))
    with unbroken(front) as found:
        command = place.begin("deploy", "--load-timeout", "2")
        wait_until(lambda: TRIAL in place.engine.control.versions(), 30)
        command.kill()
        ended(command)
        # what a Triton does that starts now and loads all that it finds
        place.engine.control.load([TRIAL])
        assert place.engine.control.versions()[TRIAL] == {1: "READY"}
        rows = place.deploy(source("two"))  # which was rolled back
    assert [(row.entry, row.before, row.version) for row in rows] == [(ENTRY, 1, 2)]
    assert words(found) == ["one", "two"]
    assert not [name for name in place.listed if "_check" in name]
    assert TRIAL not in place.engine.control.versions()
    assert place.ready


class KeyedEngine(Engine):
    """A Triton with the same key as others, as all of one cluster have it."""

    key = ""

    def _spawn(self, ports: Ports) -> None:
        self._key = self.key
        super()._spawn(ports)


def test_all_tritons_are_switched_or_none(
    place: Place, front: Served, installation: Installation, tmp_path: Path
) -> None:
    KeyedEngine.key = place.engine.metadata[0][1]
    with KeyedEngine(installation, place.repository, [ENTRY], env=os.environ) as other:
        other.wait_ready()
        both = replace(place, tritons=f"{place.tritons},grpc://{other.url}")
        with unbroken(front) as found, pytest.raises(DeploymentError, match=r"Version 3 of deployed\.word was not"):
            both.deploy(loads(3, tmp_path / "loaded"))  # tried twice, and then by one of them
        assert words(found) in (["two"], ["two", "bad", "two"])
        for engine in (place.engine, other):
            assert engine.control.versions()[ENTRY] == {2: "READY"}
        rows = both.deploy(source("three"), keep=1)
        assert [(row.before, row.version, row.replicas, row.check) for row in rows] == [(2, 3, 2, "sample of say()")]
        for engine in (place.engine, other):
            assert engine.control.versions()[ENTRY] == {3: "READY"}
    before = both.listed
    assert [name for name in before if re.fullmatch(r"deployed\.word/\d+", name)] == [f"{ENTRY}/2", f"{ENTRY}/3"]
    with unbroken(front) as found, pytest.raises(DeploymentError) as caught:
        both.deploy(source("four"))
    assert f"The Triton at {other.url} does not tell what it serves" in caught.value.message
    assert "so nothing was changed" in caught.value.message
    assert words(found) == ["three"]
    assert both.listed == before


class BucketEngine(Engine):
    """A Triton that reads its models from a bucket itself."""

    def _spawn(self, ports: Ports) -> None:
        self._repository = f"s3://{os.environ['AWS_ENDPOINT_URL']}/bucket/models"  # type: ignore[assignment]  # no path
        super()._spawn(ports)


def test_deployment_by_way_of_a_bucket(place: Place, serve: Serve, s3: str, installation: Installation) -> None:
    there = f"s3://{s3}/models"
    place.write(source("one"))
    sys.modules.pop("deployed_service", None)
    write(plan(load_service(TARGET, place.folder), folder=place.folder, machine=MACHINE), there)
    with BucketEngine(installation, place.repository, [ENTRY], env=os.environ) as engine:
        engine.wait_ready()
        given = ("--triton", f"grpc://{engine.url}", "--manifest", there, "--api-workers", "1")
        with unbroken(serve(TARGET, *given, working_dir=place.folder)) as found:
            rows = replace(place, engine=engine, tritons=f"grpc://{engine.url}").deploy(source("two"), there)
        states = engine.control.versions()
    assert [(row.before, row.version, row.check) for row in rows] == [(1, 2, "sample of say()")]
    assert words(found) == ["one", "two"]
    assert states == {ENTRY: {2: "READY"}}
    files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    assert {path.split("/")[2] for path in files.find(there)} == {ENTRY, "manifest.json"}


def test_fronts_of_old_and_new_code_share_one_triton(place: Place, front: Served, serve: Serve, tmp_path: Path) -> None:
    word = front.post("/say", content="x").text.split()[1]
    before = place.listed
    with unbroken(front) as old:
        with pytest.raises(DeploymentError, match=r"Version 1 of deployed\.word\.[0-9a-f]{8} was not .* Nothing was"):
            place.deploy(loads(1, tmp_path / "loaded").replace("(batchable=True)", ""))
        assert (place.listed, place.ready) == (before, True)
        rows = place.deploy(source("other").replace("(batchable=True)", ""))
        assert [(row.before, row.version) for row in rows] == [(None, 1)]
        assert re.fullmatch(r"deployed\.word\.[0-9a-f]{8}", rows[0].entry)
        given = ("--triton", place.tritons, "--manifest", str(place.repository), "--api-workers", "1")
        with unbroken(serve(TARGET, *given, working_dir=place.folder)) as new:
            time.sleep(0.3)
    assert (words(old), words(new)) == ([word], ["other"])
