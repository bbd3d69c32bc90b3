"""What dies while requests come in, and how soon it is back: workers, stubs, tritonserver, fronts.

Times that are asserted are those that are promised, and more: the machine that runs this may be busy.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter.triton.stub_memory import SHM_FOLDER
from adapter.triton.stubs import Stub, mapped_regions, stubs_of
from tests.e2e.conftest import Serve, Served, alive, wait_until
from tests.e2e.load import load

SERVICES = Path(__file__).parent / "services"
MOST_IN_A_BATCH = 8
CALL_LIMIT_S = 1.0
LIMIT = f"{{traffic: {{timeout: {CALL_LIMIT_S:g}}}}}"
KILLS = 20


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files tell workers how to start."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def start(serve: Serve, faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Served]:
    config = tmp_path_factory.mktemp("config") / "adapter.yaml"
    config.write_text(
        "api_server: {workers: 2, traffic: {timeout: 10}, logging: {access: {enabled: false}}}\n"
        f"runners: {{one: {LIMIT}, two: {LIMIT}}}\n"
    )

    def start(*options: str) -> Served:
        arguments = ("--config", str(config), *options)
        return serve("faulty:svc", *arguments, working_dir=SERVICES, env={"FAULTS": str(faults)})

    return start


@pytest.fixture(scope="module")
def served(start: Callable[..., Served]) -> Served:
    found = start()
    for path in ("/one", "/two", "/calm"):
        assert found.post(path, content="work").status_code == 200
    return found


@pytest.fixture(autouse=True)
def in_order_again(request: pytest.FixtureRequest) -> None:
    """Each test begins with a service that is ready, whatever the one before it did."""
    if "served" in request.fixturenames:
        wait_ready(request.getfixturevalue("served"))


def wait_ready(served: Served, seconds: float = 20) -> None:
    wait_until(lambda: served.get("/readyz").status_code == 200, seconds)


def server_of(served: Served) -> int:
    """The tritonserver that serves now."""
    return max(pid for pid in children_of(served.process.pid) if "tritonserver" in command_of(pid))


def stubs(served: Served, entry: str) -> list[Stub]:
    return [stub for stub in stubs_of(server_of(served)) if stub.entry == f"faulty.{entry}"]


def workers(served: Served, entry: str) -> list[int]:
    found = (pid for stub in stubs(served, entry) for pid in children_of(stub.pid))
    return [pid for pid in found if "adapter.triton.worker" in command_of(pid)]


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
    return []


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def numbers_on_page(served: Served, name: str) -> dict[str, float]:
    lines = served.get("/metrics").text.splitlines()
    found = (re.fullmatch(rf"({name}(?:\{{.*\}})?) (\S+)", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


# ---- workers: user code that dies or hangs -------------------------------------------------------------------------

WAYS = ["exit", "segfault", "hang", "kill"]


@pytest.mark.parametrize("entry", ["one", "two"])
@pytest.mark.parametrize("way", WAYS)
def test_worker_that_dies_under_load_fails_what_it_ran_alone(served: Served, way: str, entry: str) -> None:
    with load(served.url, {f"/{entry}": 24, "/calm": 8}) as found:
        found.wait_for_answer(f"/{entry}", time.monotonic(), 5)
        before = workers(served, entry)
        begun = time.monotonic()
        if way == "kill":
            os.kill(before[0], signal.SIGKILL)
        else:
            assert served.post(f"/{entry}", content=way).status_code == 503
        wait_until(lambda: set(workers(served, entry)) - set(before) != set(), 8)
        new = {str(pid) for pid in set(workers(served, entry)) - set(before)}
        # promised is 1 s and the time to load, which is little more than that of numpy
        wait_until(lambda: any(a.text.rpartition(" ")[2] in new for a in found.since(begun, f"/{entry}")), 8)
    assert found.failed("/calm") == []
    failed = found.failed(f"/{entry}")
    # a call that ends the worker does so again when it is sent once more by itself, in another batch of Triton's
    assert len(failed) <= (1 if way == "kill" else 2) * MOST_IN_A_BATCH
    assert {(answer.status, answer.retry_after) for answer in failed} <= {(503, "1")}


@pytest.mark.parametrize("entry", ["one", "two"])
def test_worker_killed_while_idle_costs_no_request(served: Served, entry: str) -> None:
    for _ in range(3):
        for pid in workers(served, entry):
            os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        assert served.post(f"/{entry}", content="work").status_code == 200
        assert time.monotonic() - begun < 4


def test_code_that_runs_out_of_memory_fails_its_request_alone(served: Served) -> None:
    before = workers(served, "one")
    assert served.post("/one", content="memory").status_code == 500
    assert served.post("/one", content="work").status_code == 200
    assert workers(served, "one") == before


def test_many_kills_leave_nothing_behind(served: Served) -> None:
    server = server_of(served)
    instances = stubs(served, "two")

    def held() -> dict[str, int]:
        pids = [served.process.pid, server, *(stub.pid for stub in instances)]
        return {
            **{f"descriptors of {pid}": len(os.listdir(f"/proc/{pid}/fd")) for pid in pids},
            **{f"threads of {pid}": len(os.listdir(f"/proc/{pid}/task")) for pid in pids},
            "regions": len([name for name in mapped_regions(server) if (SHM_FOLDER / name).exists()]),
            "processes": sum(len(children_of(pid)) for pid in pids),
        }

    def serving(victims: list[int]) -> bool:
        """Whether there are two others, and both have answered."""
        now = workers(served, "two")
        answered = {answer.text.rpartition(" ")[2] for answer in found.answers[-1000:]}
        return len(now) == 2 and not set(now) & set(victims) and {str(pid) for pid in now} <= answered

    wait_until(lambda: len(workers(served, "two")) == 2, 10)
    before = held()
    with load(served.url, {"/two": 24}) as found:
        victims: list[int] = []
        for _ in range(KILLS // 2):
            wait_until(functools.partial(serving, victims), 10)
            victims = workers(served, "two")
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
        wait_until(functools.partial(serving, victims), 10)
    assert {answer.status for answer in found.failed("/two")} <= {503}
    with contextlib.suppress(AssertionError):  # the difference tells more
        wait_until(lambda: held() == before, 10)
    assert held() == before
    counted = numbers_on_page(served, "adapter_worker_restarts_total")
    assert counted['adapter_worker_restarts_total{entry="faulty.two",reason="killed by signal 9"}'] >= KILLS


def test_worker_that_cannot_start_is_not_ready_and_is_not_tried_without_pause(served: Served, faults: Path) -> None:
    sign = faults / "one-dies-at-its-start"
    sign.touch()
    lines = len(served.lines)
    try:
        (pid,) = workers(served, "one")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: served.get("/readyz").status_code == 503, 5)
        assert "faulty.one" in served.get("/readyz").json()["error"]
        for _ in range(20):
            answer = served.post("/one", content="work")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert str(SERVICES) not in answer.text
        assert served.post("/calm", content="work").status_code == 200
        time.sleep(1)
        assert served.get("/readyz").status_code == 503
    finally:
        sign.unlink()
    assert 2 <= len([line for line in served.lines[lines:] if "cannot start" in line]) < 10
    wait_ready(served, 10)
    assert served.post("/one", content="work").status_code == 200


def test_one_of_two_instances_that_cannot_start_leaves_the_other_serving(served: Served, faults: Path) -> None:
    sign = faults / "two-dies-at-its-start"
    sign.touch()
    try:
        victim, other = workers(served, "two")
        os.kill(victim, signal.SIGKILL)
        served.wait_for("the worker of faulty.two cannot start; the next attempt is in 0.4 s")  # it keeps dying
        assert served.get("/readyz").status_code == 200
        with load(served.url, {"/two": 24}) as found:
            # what the broken instance takes stays with it for a while, so that the other takes nearly all that comes
            wait_until(lambda: len([a for a in list(found.answers) if a.status == 200]) > 200, 30)
            good = [a for a in list(found.answers) if a.status == 200]
            sign.unlink()
        assert {(a.status, a.retry_after) for a in found.failed("/two")} <= {(503, "1")}
        assert {a.text for a in good} == {f"work {other}"}
    finally:
        sign.unlink(missing_ok=True)
    wait_until(lambda: len(workers(served, "two")) == 2, 10)


# ---- stubs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["one", "two"])
def test_stub_that_is_killed_under_load_is_back_in_seconds(served: Served, entry: str) -> None:
    restarts = numbers_on_page(served, "adapter_stub_restarts_total")
    before = stubs(served, entry)
    with load(served.url, {f"/{entry}": 24, "/calm": 8}) as found:
        found.wait_for_answer(f"/{entry}", time.monotonic(), 5)
        os.kill(before[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: {s.pid for s in stubs(served, entry)} - {s.pid for s in before} != set(), 10)
        found.wait_for_answer(f"/{entry}", time.monotonic(), 8)
        assert time.monotonic() - killed < 10  # 3 s where nothing else runs
        time.sleep(0.5)
    assert found.failed("/calm") == []
    assert {(answer.status, answer.retry_after) for answer in found.failed(f"/{entry}")} <= {(503, "1")}
    if entry == "two":  # the other instance goes on
        assert len(found.failed("/two")) <= 3 * MOST_IN_A_BATCH
    wait_ready(served, 5)
    key = f'adapter_stub_restarts_total{{entry="faulty.{entry}"}}'
    assert numbers_on_page(served, "adapter_stub_restarts_total")[key] == restarts.get(key, 0) + 1


def test_calls_of_an_entry_without_a_stub_are_refused_at_once(served: Served) -> None:
    (stub,) = stubs(served, "one")
    os.kill(stub.pid, signal.SIGKILL)
    served.wait_for(f"faulty.one: its stub {stub.pid} died")
    with served.client as client:
        begun = time.monotonic()
        answer = client.post("/one", content="work")
        ready = client.get("/readyz")
        took = time.monotonic() - begun
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1")
    assert "it is being started again" in answer.json()["error"]
    assert ready.status_code == 503
    assert took < 1  # Triton itself would take from 1 to 3 s to notice


def test_entry_that_cannot_be_loaded_anew_is_tried_again_later(served: Served, faults: Path) -> None:
    sign = faults / "one-dies-at-its-start"
    sign.touch()
    try:
        (stub,) = stubs(served, "one")
        os.kill(stub.pid, signal.SIGKILL)
        served.wait_for("The next attempt is in 0.5 s")
        assert served.get("/readyz").status_code == 503
        assert served.post("/one", content="work").status_code == 503
        assert served.post("/calm", content="work").status_code == 200
    finally:
        sign.unlink()
    wait_ready(served)
    assert served.post("/one", content="work").status_code == 200


# ---- tritonserver --------------------------------------------------------------------------------------------------


def test_engine_that_keeps_too_many_dead_versions_is_exchanged_without_an_error(served: Served) -> None:
    def exchanging() -> bool:
        return any(re.search("a new tritonserver takes over", line) for line in served.lines)

    def replaced(victim: int) -> bool:
        now = [stub.pid for stub in stubs(served, "one")]
        return exchanging() or (now != [] and victim not in now)

    before = server_of(served)
    regions = mapped_regions(before)
    taken_over = "Triton serves .* again"
    with load(served.url, {"/one": 8, "/calm": 4}) as found:
        for _ in range(12):  # each may leave one version behind
            victims = stubs(served, "one")
            if exchanging() or not victims:  # a new one has none yet
                break
            os.kill(victims[0].pid, signal.SIGKILL)
            wait_until(functools.partial(replaced, victims[0].pid), 10)
            found.wait_for_answer("/one", time.monotonic(), 10)
        served.wait_for("a new tritonserver takes over", 15)
        served.wait_for(taken_over, 30)
        # the one of before has as long as a request and 5 s to finish, and 8 s to end
        wait_until(lambda: not Path(f"/proc/{before}").exists(), 60)
        found.wait_for_answer("/one", time.monotonic(), 5)
    assert found.failed("/calm") == []
    wait_until(lambda: not any((SHM_FOLDER / name).exists() for name in regions), 5)
    wait_ready(served, 5)
    assert numbers_on_page(served, "adapter_leaked_versions") == {"adapter_leaked_versions": 0.0}
    assert numbers_on_page(served, "adapter_engine_restarts_total")[
        'adapter_engine_restarts_total{reason="recycled"}'
    ] == 1.0  # fmt: skip


def test_tritonserver_that_is_killed_under_load_is_back_in_seconds(served: Served) -> None:
    before = server_of(served)
    regions = mapped_regions(before)
    old = [pid for entry in ("one", "two", "calm") for pid in workers(served, entry)]
    old += [stub.pid for entry in ("one", "two", "calm") for stub in stubs(served, entry)]
    with load(served.url, {"/one": 24, "/calm": 8}) as found:
        found.wait_for_answer("/one", time.monotonic(), 5)
        os.kill(before, signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(0.3)
        assert served.get("/readyz").status_code == 503
        found.wait_for_answer("/one", time.monotonic(), 30)
        found.wait_for_answer("/calm", time.monotonic(), 5)
        assert time.monotonic() - killed < 30  # 10 s where nothing else runs
    failed = [*found.failed("/one"), *found.failed("/calm")]
    assert failed
    assert {(answer.status, answer.retry_after) for answer in failed} == {(503, "1")}
    wait_until(lambda: not any(alive(pid) for pid in old), 5)
    wait_until(lambda: not any((SHM_FOLDER / name).exists() for name in regions), 5)
    wait_ready(served, 5)
    assert numbers_on_page(served, "adapter_engine_restarts_total")['adapter_engine_restarts_total{reason="died"}'] == 1


# ---- fronts --------------------------------------------------------------------------------------------------------


def test_front_that_is_killed_under_load_loses_its_own_connections_alone(served: Served) -> None:
    restarts = numbers_on_page(served, "adapter_front_restarts_total").get("adapter_front_restarts_total", 0)
    with load(served.url, {"/one": 16, "/calm": 16}) as found:
        found.wait_for_answer("/one", time.monotonic(), 5)
        before = set(served.children("adapter.server.front"))
        busiest = max(before, key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))  # it has taken most connections
        os.kill(busiest, signal.SIGKILL)
        wait_until(lambda: len(set(served.children("adapter.server.front")) - before) == 1, 10)
        time.sleep(0.5)
    failed = [*found.failed("/one"), *found.failed("/calm")]
    assert 0 < len(failed) < 32 + 1
    assert {answer.status for answer in failed} == {0}
    wait_until(
        lambda: (
            numbers_on_page(served, "adapter_front_restarts_total") == {"adapter_front_restarts_total": restarts + 1}
        ),
        10,
    )


# ---- the end, in the middle of it ----------------------------------------------------------------------------------


def test_engine_that_cannot_start_again_is_not_ready_and_ends_at_sigterm(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    served = start("--repository", str(repository), "--api-workers", "1")
    config = repository / "faulty.one" / "config.pbtxt"
    text = config.read_text()
    config.write_text("nothing that Triton can read")
    os.kill(server_of(served), signal.SIGKILL)
    served.wait_for("The next attempt is in 0.5 s", 60)
    assert served.get("/readyz").status_code == 503
    assert served.get("/livez").status_code == 200
    assert served.post("/calm", content="work").status_code == 503
    config.write_text(text)
    wait_ready(served, 60)
    assert served.post("/calm", content="work").status_code == 200
    before = len(served.lines)
    os.kill(server_of(served), signal.SIGKILL)
    wait_until(lambda: any("tritonserver was killed by SIGKILL" in line for line in served.lines[before:]), 5)
    time.sleep(0.3)  # another one is starting
    begun = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - begun < 20


def test_sigterm_while_a_stub_is_being_replaced_ends_in_order(start: Callable[..., Served], faults: Path) -> None:
    served = start("--api-workers", "1")
    sign = faults / "one-starts-slowly"
    sign.touch()
    try:
        (stub,) = stubs(served, "one")
        os.kill(stub.pid, signal.SIGKILL)
        served.wait_for("the entry is loaded anew now")
        time.sleep(0.5)
        begun = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - begun < 25
    finally:
        sign.unlink()


def test_launcher_and_engine_killed_together_leave_nothing(served: Served) -> None:
    """Stands last: nothing is left for other tests."""
    server = server_of(served)
    regions = mapped_regions(server)
    assert regions
    left = [*served.children("tritonserver"), *served.children("stub"), *served.children("adapter")]
    for pid in (served.process.pid, server):
        os.kill(pid, signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), 20)
    wait_until(lambda: not any((SHM_FOLDER / name).exists() for name in regions), 5)
