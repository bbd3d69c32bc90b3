"""What HTTP clients, gRPC clients and the log are told when a Runnable fails, in whatever way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from adapter import payload
from tests.e2e.conftest import Serve, Served

SERVICE = '''
import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import adapter
from adapter.exceptions import AdapterError, NotFound, RemoteException, ServiceUnavailable, TooManyRequests
from adapter.io import JSON, Text


class Teapot(AdapterError):
    error_code = 418


class Full(AdapterError):
    error_code = 507


class Busy(ServiceUnavailable):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class OwnUnprintable(NotFound):
    error_code = 422
    __str__ = __repr__ = Unprintable.__str__


class Lying(NotFound):
    @property
    def error_code(self) -> int:
        raise RuntimeError("no status")


class Rest:
    """A result that cannot be read."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise SystemExit(7)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Rest
        raise SystemExit(7)


def deeper(n: int) -> int:
    return deeper(n + 1) + 1


def fail(kind: str) -> Any:
    if kind == "missing":
        raise NotFound("There is no tea.")
    if kind == "teapot":
        raise Teapot("short and stout")
    if kind == "full":
        raise Full("The pot is full.")
    if kind == "busy":
        raise Busy("The kettle is on.", retry_after=7)
    if kind == "many":
        raise TooManyRequests("One at a time.", retry_after=2.5)
    if kind == "empty":
        raise NotFound("")
    if kind == "control":
        raise NotFound("a\\x1b[31m\\r\\n\\tb\\x07 \\u2615 \\udc80 \\0[500 X] c")
    if kind == "huge":
        raise NotFound("ü%" * 10_000_000)
    if kind == "unprintable own":
        raise OwnUnprintable("x")
    if kind == "lying":
        raise Lying("about its status")
    if kind == "value":
        raise ValueError("no tea in /srv/secret/place.txt")
    if kind == "file":
        open("/srv/secret/place.txt")
    if kind == "remote":
        raise RemoteException("not from /srv/secret/place.txt")
    if kind == "control foreign":
        raise ValueError("a\\x1b[31m\\r\\n[INFO] forged \\udc80")
    if kind == "huge foreign":
        raise ValueError("x" * 10_000_000)
    if kind == "unprintable":
        raise Unprintable
    if kind == "exit":
        raise SystemExit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "generator":
        raise GeneratorExit
    if kind == "cancelled":
        raise asyncio.CancelledError
    if kind == "stop":
        raise StopIteration(1)
    if kind == "memory":
        raise MemoryError("cannot allocate")
    if kind == "recursion":
        return deeper(0)
    if kind == "chained":
        try:
            open("/srv/secret/place.txt")
        except OSError as error:
            raise ValueError("no tea") from error
    return os.getpid()


KINDS = """ + repr(KINDS) + """


class Blob(adapter.Runnable):
    @adapter.Runnable.method(batchable=False)
    def one(self, kind: str) -> int:
        return fail(kind)

    @adapter.Runnable.method(batchable=False)
    async def awaited(self, kind: str) -> int:
        await asyncio.sleep(0)
        return fail(kind)

    @adapter.Runnable.method(batchable=True)
    def many(self, kinds: list[str]) -> list[int]:
        return [fail(kind) for kind in kinds]

    @adapter.Runnable.method(batchable=False)
    def unreadable(self, kind: str) -> Any:
        return Rest()


Numbers = Annotated[npt.NDArray[np.int64], adapter.TensorSpec("int64", (-1, 1))]


class Typed(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def check(self, x: Numbers) -> Numbers:
        return np.array([[fail(KINDS[n]) if n >= 0 else os.getpid()] for n in x[:, 0]])


class Stream(adapter.Runnable):
    @adapter.Runnable.method
    def poured(self, kind: str) -> Iterator[str]:
        yield str(fail(kind))

    @adapter.Runnable.method
    async def dripped(self, kind: str) -> AsyncIterator[str]:
        yield str(fail(kind))


blob = adapter.Runner(Blob, name="blob", cpu=1)
stream = adapter.Runner(Stream, name="stream", cpu=1)
here = adapter.Runner(Blob, name="here", embedded=True)
typed = adapter.Runner(Typed, name="typed", cpu=1)
svc = adapter.Service("tea", runners=[blob, here, typed, stream])


@svc.api(input=Text(), output=JSON())
async def one(kind: str) -> Any:
    return await blob.one.async_run(kind)


@svc.api(input=Text(), output=JSON())
def waiting(kind: str) -> Any:
    return blob.one.run(kind)


@svc.api(input=Text(), output=JSON())
async def gathered(kind: str) -> Any:
    return (await asyncio.gather(blob.awaited.async_run(kind)))[0]


@svc.api(input=Text(), output=JSON())
async def batch(kind: str) -> Any:
    return (await blob.many.async_run([kind]))[0]


@svc.api(input=Text(), output=JSON())
async def embedded(kind: str) -> Any:
    return (await asyncio.gather(here.one.async_run(kind)))[0]


@svc.api(input=Text(), output=JSON())
async def embedded_batch(kind: str) -> Any:
    return (await here.many.async_run([kind]))[0]


@svc.api(input=Text(), output=Text())
async def poured(kind: str) -> AsyncIterator[str]:
    async for text in stream.poured.async_stream(kind):
        yield text


@svc.api(input=Text(), output=Text())
async def dripped(kind: str) -> AsyncIterator[str]:
    async for text in stream.dripped.async_stream(kind):
        yield text


@svc.api(input=Text(), output=JSON())
async def tensor(kind: str) -> Any:
    x = np.array([[KINDS.index(kind) if kind else -1]])
    return int((await typed.check.async_run(x))[0, 0])


@svc.api(input=Text(), output=JSON())
async def unreadable(kind: str) -> Any:
    return await blob.unreadable.async_run(kind)
'''

TOLD = {  # those that say what the client is to know: status, message, Retry-After
    "missing": (404, "There is no tea.", None),
    "teapot": (418, "short and stout", None),
    "full": (507, "The pot is full.", None),
    "busy": (503, "The kettle is on.", "7"),
    "many": (429, "One at a time.", "3"),
    "empty": (404, "Not Found.", None),
    "control": (404, "a\x1b[31m\r\n\tb\x07 ☕ ? [500 X] c", None),
    "unprintable own": (422, "Unprocessable Entity.", None),
    "lying": (500, "about its status", None),
}
FAILED = {  # those that say it to nobody but the log: what the end of the traceback is
    "value": "ValueError: no tea in /srv/secret/place.txt",
    "file": "FileNotFoundError: [Errno 2] No such file or directory: '/srv/secret/place.txt'",
    "control foreign": "[INFO] forged",
    "huge foreign": "xxx",
    "unprintable": "Unprintable: <exception str() failed>",
    "exit": "SystemExit: 3",
    "interrupt": "KeyboardInterrupt",
    "generator": "GeneratorExit",
    "cancelled": "CancelledError",
    "stop": "StopIteration: 1",
    "memory": "MemoryError: cannot allocate",
    "recursion": "RecursionError: maximum recursion depth exceeded",
    "chained": "ValueError: no tea",
}
KINDS = [*TOLD, *FAILED, "remote", "huge"]
PATHS = ["one", "waiting", "gathered", "batch", "embedded", "embedded_batch", "tensor", "poured", "dripped"]
BAD = re.compile(r"Traceback|/srv|File \"|secret/|site-packages|runtime\.zip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tea")
    (folder / "tea.py").write_text(SERVICE.replace('""" + repr(KINDS) + """', repr(KINDS)))
    return folder


@pytest.fixture(scope="module")
def tea(serve: Serve, folder: Path) -> Served:
    return serve("tea:svc", "--api-workers", "1", "--log-format", "json", working_dir=folder)


@pytest.fixture(scope="module")
def client(tea: Served) -> Iterator[httpx.Client]:
    with tea.client as client:
        yield client


def _record(served: Served, identity: str, **wanted: object) -> dict[str, Any]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for line in list(served.lines):
            if identity in line:
                record = json.loads(line)
                if record.get("request_id") == identity and wanted.items() <= record.items():
                    return dict(record)
        time.sleep(0.02)
    raise AssertionError(f"{identity} {wanted}: {[line for line in served.lines if identity in line]}")


@pytest.mark.parametrize("path", PATHS)
def test_an_error_that_says_its_status_keeps_it_and_its_message(client: httpx.Client, path: str) -> None:
    process = client.post(f"/{path}", content="").json()
    for kind, (status, text, retry_after) in TOLD.items():
        answer = client.post(f"/{path}", content=kind)
        assert (answer.status_code, answer.json()) == (status, {"error": text}), kind
        assert answer.headers.get("retry-after") == retry_after
    assert client.post(f"/{path}", content="").json() == process


@pytest.mark.parametrize("path", PATHS)
def test_any_other_error_is_a_fixed_sentence_and_a_traceback_in_the_log(
    tea: Served, client: httpx.Client, path: str
) -> None:
    process = client.post(f"/{path}", content="").json()
    where = {"component": "api:1"} if path.startswith("embedded") else {"component": "runner"}
    for kind, end in FAILED.items():
        identity = f"{path}-{kind.replace(' ', '-')}"
        answer = client.post(f"/{path}", content=kind, headers={"x-request-id": identity})
        assert answer.status_code == 500, kind
        assert answer.json() == {
            "error": "The code of this service failed on the request; its log says why, under the request id "
            f"{identity}."
        }
        record = _record(tea, identity, level="ERROR", **where)
        assert record["exception"].startswith("Traceback"), kind
        if kind == "cancelled" and path == "gathered":
            end = ""  # asyncio makes another one
        assert end in record["exception"][-600:], kind
        assert len(record["exception"]) < 100_000 or path.startswith("embedded")
    assert client.post(f"/{path}", content="").json() == process


def test_a_remote_exception_is_no_message_to_the_client(tea: Served, client: httpx.Client) -> None:
    answer = client.post("/one", content="remote", headers={"x-request-id": "remote-1"})
    assert answer.status_code == 500
    assert "/srv" not in answer.text
    assert "not from …/place.txt" in _record(tea, "remote-1", level="ERROR", component="api:1")["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_message_is_cut(client: httpx.Client, path: str) -> None:
    answer = client.post(f"/{path}", content="huge")
    assert answer.status_code == 404
    text = answer.json()["error"]
    assert text.endswith("…")
    assert set(text[:-1]) == set("ü%")
    assert 1000 < len(text) <= 2000


def test_a_result_that_ends_the_process_when_it_is_read_hurts_its_call_only(client: httpx.Client) -> None:
    process = client.post("/one", content="").json()
    answer = client.post("/unreadable", content="x")
    assert answer.status_code == 500
    assert BAD.search(answer.text) is None
    assert client.post("/one", content="").json() == process


@pytest.mark.parametrize("path", ["batch", "tensor"])
def test_only_its_own_call_of_a_batch_fails(client: httpx.Client, path: str) -> None:
    kinds = ["", "teapot", "", "exit", "", "missing", "", "value", "", "busy"] * 8
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda kind: client.post(f"/{path}", content=kind), kinds))
    expected = {"": 200, "teapot": 418, "exit": 500, "missing": 404, "value": 500, "busy": 503}
    assert [a.status_code for a in answers] == [expected[kind] for kind in kinds]
    for kind, answer in zip(kinds, answers, strict=True):
        if kind in TOLD:
            assert answer.json() == {"error": TOLD[kind][1]}


def test_no_line_of_the_log_is_anything_but_a_record(tea: Served, client: httpx.Client) -> None:
    assert client.post("/one", content="control foreign").status_code == 500
    for line in list(tea.lines):
        assert {"time", "level", "message"} <= json.loads(line).keys()


# ---- clients of Triton's own protocol -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tea: Served) -> Iterator[triton.InferenceServerClient]:
    (server,) = tea.children("/tritonserver ")[:1]
    arguments = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    (port,) = [a.partition("=")[2] for a in arguments if a.startswith("--grpc-port=")]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def _refusal(client: triton.InferenceServerClient, entry: str, data: Any, **options: Any) -> str:
    tensor = triton.InferInput("x" if entry == "tea.typed" else "payload", data.shape, options.pop("kind", "UINT8"))
    tensor.set_data_from_numpy(data)
    with pytest.raises(triton.InferenceServerException) as refused:
        client.infer(entry, [tensor], **options)
    return str(refused.value)


def _blob(*args: Any) -> Any:
    found = np.frombuffer(payload.encode((args, {})), np.uint8)
    return found[None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_of_triton_sees_no_traceback_and_no_path(native: triton.InferenceServerClient, kind: str) -> None:
    status = TOLD[kind][0] if kind in TOLD else 404 if kind == "huge" else 500
    said = [
        _refusal(native, "tea.blob", _blob(kind), parameters={"method": "one"}),
        _refusal(native, "tea.blob", _blob([kind]), parameters={"method": "many"}),
        _refusal(native, "tea.typed", np.array([[KINDS.index(kind)]]), kind="INT64"),
    ]
    for text in said:
        assert f"[{status} " in text
        assert BAD.search(text) is None
        assert len(text.encode()) < 8000


BAD_REQUESTS: list[tuple[Any, dict[str, Any], str]] = [
    (_blob("x"), {"method": "none"}, "has no method 'none'"),
    (_blob("x"), {"method": 7}, "has no method 7"),
    (_blob("x"), {"method": True}, "has no method True"),
    (_blob(), {"method": "one"}, "missing a required argument"),
    (_blob(*"xyz"), {"method": "one"}, "too many positional arguments"),
    (np.frombuffer(payload.encode("x"), np.uint8)[None], {"method": "one"}, "is the arguments of a call"),
    (np.frombuffer(payload.encode((("x",), {1: 2})), np.uint8)[None], {"method": "one"}, "is the arguments of a call"),
    (np.zeros((1, 5), np.uint8), {"method": "one"}, ""),
    (np.zeros((1, 0), np.uint8), {"method": "one"}, ""),
    (np.zeros((3, 9), np.uint8), {"method": "one"}, "carries one blob, of shape [1, bytes]"),
    (np.frombuffer(b'{"a":' * 4000, np.uint8)[None], {"method": "one"}, ""),
]


@pytest.mark.parametrize(("data", "parameters", "says"), BAD_REQUESTS)
def test_a_request_of_a_client_of_triton_that_cannot_be_read_is_its_own_fault(
    native: triton.InferenceServerClient, data: Any, parameters: dict[str, Any], says: str
) -> None:
    text = _refusal(native, "tea.blob", data, parameters=parameters)
    assert re.search(r"\[4\d\d ", text), text
    assert says in text
    assert BAD.search(text) is None


ARGUMENTS = [
    "{",
    "7",
    "[]",
    3,
    True,
    "[" * 5000,
    '{"columns": 7}',
    '{"columns": {"x": 7}}',
    '{"columns": {"x": ["a", "b"]}}',
    '{"kwargs": [1]}',
    '{"kwargs": {"no": 1}}',
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_beside_tensors_that_cannot_be_read_are_refused(
    native: triton.InferenceServerClient, arguments: Any
) -> None:
    text = _refusal(native, "tea.typed", np.array([[-1]]), kind="INT64", parameters={"arguments": arguments})
    assert re.search(r"\[4\d\d ", text), text
    assert BAD.search(text) is None


# ---- in development, and where the worker cannot start --------------------------------------------------------------


def test_it_is_the_same_in_development(serve: Serve, folder: Path) -> None:
    tea = serve("tea:svc", "--development", "--log-format", "json", working_dir=folder)
    with tea.client as client:
        for path in ("one", "waiting", "gathered", "batch", "tensor", "poured", "dripped"):
            for kind, (status, text, retry_after) in TOLD.items():
                answer = client.post(f"/{path}", content=kind)
                assert (answer.status_code, answer.json()) == (status, {"error": text}), (path, kind)
                assert answer.headers.get("retry-after") == retry_after
            for kind in FAILED:
                answer = client.post(f"/{path}", content=kind)
                assert answer.status_code == 500, (path, kind)
                assert BAD.search(answer.text) is None
            assert client.post(f"/{path}", content="").status_code == 200


FRAGILE = """
import os
from pathlib import Path

import adapter
from adapter.io import JSON, Text


class Fragile(adapter.Runnable):
    def __init__(self, flag: str) -> None:
        if Path(flag).exists():
            raise {error}

    @adapter.Runnable.method(batchable=False)
    def run(self, kind: str) -> str:
        if kind == "end":
            os._exit(3)
        return kind


fragile = adapter.Runner(Fragile, name="fragile", cpu=1, runnable_init_params={{"flag": os.environ["FLAG"]}})
svc = adapter.Service("fragile", runners=[fragile])


@svc.api(input=Text(), output=JSON())
async def run(kind: str) -> str:
    return await fragile.run.async_run(kind)
"""


@pytest.mark.parametrize("error", ['ValueError("no /srv/secret/place.txt")', "KeyboardInterrupt"])
def test_a_worker_that_cannot_start_again_tells_the_log_why_and_clients_that_it_cannot(
    serve: Serve, tmp_path: Path, error: str
) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE.format(error=error))
    flag = tmp_path.parent / f"{tmp_path.name}-flag"
    served = serve("fragile:svc", working_dir=tmp_path, env={"FLAG": str(flag)})
    assert served.post("/run", content="x").json() == "x"
    flag.touch()
    for kind in ("end", "x", "x"):
        answer = served.post("/run", content=kind)
        assert answer.status_code == 503
        assert BAD.search(answer.text) is None, answer.text
    served.wait_for(re.escape(error.partition("(")[0]), 10)
    flag.unlink()
    until = time.monotonic() + 20  # the worker is started again, less and less often
    while served.post("/run", content="x").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_runnable_that_cannot_be_made_ends_the_start_with_its_traceback(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE.format(error='ValueError("no tea")'))
    flag = tmp_path / "flag"
    flag.touch()
    with pytest.raises(AssertionError, match="ended with 1") as ended:
        serve("fragile:svc", working_dir=tmp_path, env={"FLAG": str(flag)})
    assert "ValueError: no tea" in str(ended.value)
    assert "Traceback" in str(ended.value)
