"""The client against a real server with a real engine: every descriptor, both ways."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL.Image
import pytest
from pydantic import BaseModel

import adapter
from adapter.client import AsyncHTTPClient, SyncHTTPClient
from adapter.exceptions import InvalidArgument, NotFound, RemoteException, ServiceUnavailable
from adapter.io import JSON, SSE, File, Image, Multipart, NumpyNdarray, PandasDataFrame, PandasSeries, Text
from adapter.pytest_plugin import Serve

Array = npt.NDArray[Any]


class Row(BaseModel):
    name: str
    size: float = 1.0


@dataclasses.dataclass
class Box:
    rows: list[Row]
    day: datetime.date


class Scaler(adapter.Runnable):
    @adapter.Runnable.method(batchable=True)
    def scale(self, rows: Array) -> Array:
        if np.isnan(rows).any():
            raise ValueError("not a number")
        return rows * 2


runner = adapter.Runner(Scaler)
svc = adapter.Service("values", runners=[runner])


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
async def scale(rows: Array) -> Array:
    result: Array = await runner.scale.async_run(rows)
    return result


@svc.api(input=NumpyNdarray(), output=NumpyNdarray())
def array(value: Array, ctx: adapter.Context) -> Array:
    ctx.response.headers["x-was"] = ctx.request.headers.get("content-type", "")
    return value


@svc.api(input=JSON(pydantic_model=Box), output=JSON())
def box(value: Box) -> Box:
    return Box([*value.rows, Row(name="last")], value.day)


@svc.api(input=JSON(), output=JSON())
def json(value: Any) -> Any:
    return value


@svc.api(input=Text(), output=Text())
def text(value: str) -> str:
    return value[::-1]


@svc.api(input=Text(), output=Text())
async def letters(value: str) -> AsyncIterator[str]:
    async def pieces() -> AsyncIterator[str]:
        for letter in value:
            yield letter
            await asyncio.sleep(0.01)

    return pieces()


@svc.api(input=JSON(), output=Text(content_type="text/event-stream"))
def events(count: int) -> Iterator[SSE]:
    return (SSE(f"line\n{n}", event="token", id=str(n)) for n in range(count))


@svc.api(input=Image(pilmode=None), output=Image(pilmode=None, mime_type="image/png"))
def image(value: PIL.Image.Image) -> PIL.Image.Image:
    return value


@svc.api(input=File(), output=File())
def file(value: Any) -> bytes:
    return bytes(value.read())


@svc.api(input=PandasDataFrame(), output=PandasDataFrame())
def frame(value: pd.DataFrame) -> pd.DataFrame:
    value["total"] = value.select_dtypes("number").sum(axis=1)
    return value


@svc.api(input=PandasSeries(), output=PandasSeries())
def series(value: pd.Series[Any]) -> pd.Series[Any]:
    return value * 2


@svc.api(
    input=Multipart(picture=Image(), rows=NumpyNdarray(), note=Text(), meta=JSON(), doc=File()),
    output=Multipart(rows=NumpyNdarray(), size=JSON(), doc=File(), picture=Image(mime_type="image/png")),
)
def form(picture: PIL.Image.Image, rows: Array, note: str, meta: dict[str, Any], doc: Any) -> dict[str, Any]:
    return {"rows": rows, "size": [picture.size, note, meta], "doc": doc, "picture": picture}


@svc.api(input=JSON(), output=JSON(), route="/v2/{kind}/find")
def find(value: Any, ctx: adapter.Context) -> Any:
    ctx.response.status_code = 202
    return [value, ctx.request.path_params["kind"], ctx.request.query_params["limit"], ctx.request.headers["x-own"]]


@svc.api(input=JSON(), output=JSON())
def fail(kind: str) -> None:
    if kind == "missing":
        raise NotFound("There is no such thing.")
    if kind == "busy":
        raise ServiceUnavailable("Busy.", retry_after=100)
    raise KeyError(kind)


@pytest.fixture
def client(served: Serve) -> SyncHTTPClient:
    """The service of this very file, which is started for the first test."""
    return served(svc)


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1.5, np.nan], [-np.inf, 0]], "float32"),
        np.arange(12, dtype="int16").reshape(3, 4)[:, ::2],
        np.array([True, False]),
        np.random.default_rng(1).random((300, 200)),
        np.asfortranarray(np.random.default_rng(1).random((300, 200)).astype("float32")),
        np.zeros((0, 3)),
        np.array(3.5),
        np.array([["a", "ü"]]),
        np.array(["2026-01-02"], "datetime64[D]"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays(client: SyncHTTPClient, value: Array) -> None:
    result = client.array(value)
    np.testing.assert_array_equal(result, value, strict=True)
    result[...] = result.ravel()[:1] if result.size else 0  # it can be written to


def test_what_makes_an_array_is_for_the_service_to_read(client: SyncHTTPClient) -> None:
    assert client.array([[1, 2]]).dtype == np.int64
    assert client.array(np.array([1, "a", None], dtype=object)[:1]).tolist() == [1]
    assert client.array(pd.DataFrame({"a": [0.5]})).tolist() == [[0.5]]


def test_arrays_cross_runners(client: SyncHTTPClient) -> None:
    assert client.scale([[1, 2], [3, 4]]).tolist() == [[2, 4], [6, 8]]
    with pytest.raises(RemoteException, match=r"under the request id [0-9a-f]{32}") as caught:
        client.scale([[np.nan]])
    assert caught.value.request_id is not None
    assert caught.value.request_id in str(caught.value)


def test_json(client: SyncHTTPClient) -> None:
    values: list[Any] = [None, True, 1, "ä", [1.5, None], {"a": {"b": []}}]
    for value in values:
        assert client.json(value) == value
    assert client.json({"array": np.arange(2), "row": Row(name="x")}) == {
        "array": [0, 1],
        "row": {"name": "x", "size": 1.0},
    }
    sent = Box([Row(name="first", size=2)], datetime.date(2026, 1, 2))
    assert client.box(sent) == {
        "rows": [{"name": "first", "size": 2.0}, {"name": "last", "size": 1.0}],
        "day": "2026-01-02",
    }
    with pytest.raises(InvalidArgument, match="does not fit Box: day"):
        client.box({"rows": []})


def test_text_and_streams(client: SyncHTTPClient) -> None:
    assert client.text("añ€") == "€ña"
    assert client.text("") == ""
    assert client.letters("abc") == "abc"
    assert "".join(client.call("letters", "abc", stream=True)) == "abc"
    assert list(client.events(2)) == [
        SSE("line\n0", event="token", id="0"),
        SSE("line\n1", event="token", id="1"),
    ]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_images_lose_nothing(client: SyncHTTPClient, mode: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (40, 30, len(mode)), "uint8")
    sent = PIL.Image.fromarray(noise.squeeze())
    values: list[Any] = [sent, noise]
    for value in values:
        result = client.image(value)
        assert result.mode == mode
        assert result.tobytes() == sent.tobytes()
    path = tmp_path / "noise.bmp" if mode == "RGB" else tmp_path / "noise.png"
    sent.save(path)
    assert client.image(path).tobytes() == sent.tobytes()
    assert client.image(path.read_bytes()).tobytes() == sent.tobytes()
    with pytest.raises(InvalidArgument):
        client.image(b"no image")


def test_files(client: SyncHTTPClient, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192  # on disk on the way
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    for value in (content, path, io.BytesIO(content)):
        with client.file(value) as result:
            assert result.read() == content
    with path.open("rb") as opened:
        with client.file(opened) as result:
            assert result.read() == content
        assert not opened.closed  # it is the caller's
    with client.file(b"") as result:
        assert result.read() == b""


def test_frames_and_series(client: SyncHTTPClient, tmp_path: Path) -> None:
    sent = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": ["x", "ü"]})
    expected = sent.assign(total=[1.5, 3.5])
    pd.testing.assert_frame_equal(client.frame(sent), expected)
    path = tmp_path / "rows.csv"
    sent.to_csv(path, index=False)
    pd.testing.assert_frame_equal(client.frame(path), expected)
    pd.testing.assert_series_equal(client.series(pd.Series([1, 2])), pd.Series([2, 4]))


def test_several_parts(client: SyncHTTPClient, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).random((200, 100)).astype("float32")
    picture = PIL.Image.fromarray(np.full((4, 6, 3), 200, "uint8"))
    path = tmp_path / "doc.txt"
    path.write_text("content")
    for result in (
        client.form(picture=picture, rows=rows, note="ä", meta={"k": [1]}, doc=path),
        client.form({"picture": np.asarray(picture), "rows": rows, "note": "ä", "meta": {"k": [1]}, "doc": b"content"}),
    ):
        np.testing.assert_array_equal(result["rows"], rows)
        assert result["rows"].dtype == np.float32
        assert result["size"] == [[6, 4], "ä", {"k": [1]}]
        assert result["picture"].tobytes() == picture.tobytes()
        with result["doc"] as doc:
            assert doc.read() == b"content"
    with pytest.raises(InvalidArgument, match="In the part 'picture': "):
        client.form(picture=b"no image", rows=[1], note="", meta=None, doc=b"")


def test_parameters_and_status(client: SyncHTTPClient) -> None:
    found = client.call(
        "find", {"a": 1}, path_params={"kind": "x y"}, query_params={"limit": 3}, headers={"x-own": "mine"}
    )
    assert found == [{"a": 1}, "x y", "3", "mine"]


def test_errors(client: SyncHTTPClient) -> None:
    with pytest.raises(NotFound, match=r"^There is no such thing\.$"):
        client.fail("missing")
    with pytest.raises(ServiceUnavailable, match=r"^Busy\.$") as caught:
        client.call("fail", "busy", timeout=5)
    assert caught.value.retry_after == 100
    with pytest.raises(RemoteException):
        client.fail("anything")
    assert client.health().status_code == 200


def test_async_client_makes_many_calls_at_once(client: SyncHTTPClient) -> None:
    async def use() -> None:
        async with AsyncHTTPClient.from_url(client.server_url) as twin:
            assert twin.endpoints == client.endpoints
            results = await asyncio.gather(*(twin.scale([[n, n + 0.5]]) for n in range(20)))
            assert [result.tolist() for result in results] == [[[2 * n, 2 * n + 1]] for n in range(20)]
            pictures = [PIL.Image.new("RGB", (9, 9), (n, n, n)) for n in range(20)]
            images = await asyncio.gather(*(twin.image(picture) for picture in pictures))
            assert [image.tobytes() for image in images] == [picture.tobytes() for picture in pictures]
            assert [event.id async for event in await twin.events(3)] == ["0", "1", "2"]
            with pytest.raises(NotFound):
                await twin.fail("missing")

    asyncio.run(use())
