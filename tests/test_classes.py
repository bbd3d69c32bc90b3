from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import time
import typing
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from fastapi import FastAPI, WebSocket
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import BaseModel, Field

import adapter
from adapter.classes import ClassService
from adapter.exceptions import InvalidArgument
from adapter.io.sse import SSE
from adapter.layers import load
from adapter.settings import Settings
from adapter.testing import TestClient
from adapter.tuning import tailored
from adapter.validators import ContentType, DataframeSchema, DType, Shape


class Item(BaseModel):
    name: str
    count: int = 1


class Options(BaseModel):
    size: int
    tags: list[str] = []


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


@adapter.service(name="everything")
class Everything:
    """One method for each kind of input and output."""

    @adapter.api
    def untyped(self, text) -> str:  # type: ignore[no-untyped-def]  # as the seed writes it
        return text if isinstance(text, str) else repr(text)

    @adapter.api
    def fields(
        self, item: Item, n: int = Field(2, ge=1, description="how often"), *rest: int, **more: str
    ) -> list[Any]:
        return [item.name, item.count, n, list(rest), more]

    @adapter.api
    async def root(self, item: Item, /) -> Item:
        return Item(name=item.name.upper(), count=item.count + 1)

    @adapter.api
    def shout(self, text: str, /) -> str:
        return text.upper()

    @adapter.api
    def raw(self, body: bytes, /) -> bytes:
        return body[::-1]

    @adapter.api
    def fitted(self, a: Annotated[np.ndarray, Shape((2, 2)), DType("float32")]) -> np.ndarray:
        assert a.dtype == np.float32
        return a + 0.5

    @adapter.api
    def item_type(self, a: NDArray[np.int8]) -> str:
        return str(a.dtype)

    @adapter.api
    def double(self, a: np.ndarray, /) -> np.ndarray:
        return 2 * a

    @adapter.api
    def frame(self, df: pd.DataFrame, k: int = 1) -> pd.DataFrame:
        frame: pd.DataFrame = df.assign(k=k)
        return frame

    @adapter.api
    def columns(self, df: Annotated[pd.DataFrame, DataframeSchema(columns=["b", "a"])]) -> list[str]:
        return list(df.columns)

    @adapter.api
    def nested(self, arrays: dict[str, np.ndarray], one: Optional[pd.DataFrame] = None) -> dict[str, np.ndarray]:  # noqa: UP045
        return {**{key: array + 1 for key, array in arrays.items()}, "n": np.array(0 if one is None else len(one))}

    @adapter.api
    def thumbnail(self, image: PIL.Image.Image, size: int = 1) -> PIL.Image.Image:
        return image.resize((size, size))

    @adapter.api
    def read(self, file: Path, more: list[Path] = [], name: str = "") -> list[str]:  # noqa: B006  # a default like any
        return [name, file.suffix, file.read_text(), *(each.read_text() for each in more)]

    @adapter.api
    def report(self, name: str, ctx: adapter.Context) -> Path:
        path = Path(ctx.temp_dir) / name
        path.write_text("a,b")
        return path

    @adapter.api
    def picture(self) -> Annotated[bytes, ContentType("image/png")]:
        return png()

    @adapter.api
    def only_png(self, image: Annotated[PIL.Image.Image, ContentType("image/png")]) -> str:
        return str(image.format)

    @adapter.api(input_spec=Options, output_spec=Item)
    def specified(self, size: int, tags: list[str]) -> Any:
        return {"name": "".join(tags), "count": size}

    @adapter.api
    def context(self, text: str, context: adapter.Context) -> str:
        context.response.status_code = 202
        context.response.headers["x-seen"] = context.request.headers["x-in"]
        context.state["calls"] = context.state.get("calls", 0) + 1
        return f"{text} {context.state['calls']}"

    @adapter.api
    def words(self, n: int) -> Iterator[str]:
        for i in range(n):
            yield f"word{i} "

    @adapter.api
    async def items(self, n: int) -> AsyncIterator[dict[str, int]]:
        for i in range(n):
            yield {"i": i}

    @adapter.api
    def chunks(self, n: int) -> Annotated[Iterator[bytes], ContentType("application/octet-stream")]:
        for i in range(n):
            yield bytes([255 - i])

    @adapter.api
    async def events(self) -> AsyncIterator[SSE]:
        yield SSE("a", event="token")

    @adapter.api
    def late(self) -> Iterator[str]:
        raise ValueError("before the first piece")
        yield ""

    @adapter.api
    def nothing(self) -> None:
        return None

    @adapter.api
    def number(self) -> float:
        return np.float32(1.5)  # type: ignore[no-any-return]  # as models return it

    @adapter.api
    def wrong(self) -> int:
        return "many"  # type: ignore[return-value]  # that is the point

    @adapter.api(route="/v1/other", name="renamed")
    def other(self, text: str) -> str:
        return self.shout(text)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Everything) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/untyped", {"text": "x", "ignored": 1}, "x"),
        ("/untyped", {"text": [1]}, "[1]"),
        ("/fields", {"item": {"name": "a"}}, ["a", 1, 2, [], {}]),
        ("/fields", {"item": {"name": "a"}, "n": "3", "rest": [1, 2], "x": "y"}, ["a", 1, 3, [1, 2], {"x": "y"}]),
        ("/root", {"name": "a"}, {"name": "A", "count": 2}),
        ("/fitted", {"a": [1, 2, 3, 4]}, [[1.5, 2.5], [3.5, 4.5]]),
        ("/item_type", {"a": [1]}, "int8"),
        ("/double", [[1, 2]], [[2, 4]]),
        ("/frame", {"df": [{"a": 1}], "k": 3}, [{"a": 1, "k": 3}]),
        ("/frame", {"df": {"a": [1, 2]}}, [{"a": 1, "k": 1}, {"a": 2, "k": 1}]),
        ("/columns", {"df": [{"a": 1, "b": 2}]}, ["b", "a"]),
        ("/nested", {"arrays": {"x": [1, 2]}, "one": [{"a": 1}]}, {"x": [2, 3], "n": 1}),
        ("/nested", {"arrays": {}}, {"n": 0}),
        ("/specified", {"size": 2, "tags": ["a", "b"]}, {"name": "ab", "count": 2}),
        ("/nothing", None, None),
        ("/number", {}, 1.5),
        ("/v1/other", {"text": "a"}, "A"),
    ],
)
def test_arguments_come_by_name_as_their_annotations_say(
    client: TestClient, path: str, body: Any, expected: Any
) -> None:
    answer = client.post(path, **({} if body is None else {"json": body}))
    assert answer.status_code == 200, answer.text
    is_text = answer.headers["content-type"].startswith("text/plain")
    assert (answer.text if is_text else answer.json()) == expected


def test_str_is_sent_as_it_is_and_a_root_str_is_the_body_itself(client: TestClient) -> None:
    assert client.post("/untyped", json={"text": '"x"'}).text == '"x"'
    assert client.post("/shout", content="hällo").text == "HÄLLO"
    # what came as JSON keeps its quotes
    assert client.post("/shout", content='"a"', headers={"content-type": "application/json"}).text == '"A"'
    answer = client.post("/raw", content=b"\x00\xff")
    assert (answer.content, answer.headers["content-type"]) == (b"\xff\x00", "application/octet-stream")


@pytest.mark.parametrize(
    ("path", "body", "words", "where"),
    [
        ("/untyped", {}, "The arguments of Everything.untyped() do not fit: text: Field required.", ["text"]),
        (
            "/fields",
            {"item": {"name": "a", "count": "x"}},
            "item.count: Input should be a valid integer",
            ["item", "count"],
        ),
        ("/fields", {"item": {"name": "a"}, "n": 0}, "n: Input should be greater than or equal to 1, not 0", ["n"]),
        ("/fields", [], "Input should be an object", []),
        ("/fitted", {"a": [1, 2, 3]}, "a: It has the shape (3,), but (2, 2) was expected", ["a"]),
        ("/fitted", {"a": [["x", 1], [1, 1]]}, "does not fit float32 without loss", ["a"]),
        ("/fitted", {"a": [[1], [1, 2]]}, "its lists differ in length", ["a"]),
        ("/frame", {"df": 3}, "it takes a list of objects, not 3", ["df"]),
        ("/columns", {"df": [{"a": 1}]}, "has no column 'b'", ["df"]),
        ("/specified", {"size": "x"}, "size: Input should be a valid integer", ["size"]),
    ],
)
def test_wrong_arguments_are_400_with_a_sentence_and_the_fields(
    client: TestClient, path: str, body: Any, words: str, where: list[str]
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert [failure["loc"] for failure in answer.json()["detail"]] == [where]
    assert all(failure.keys() == {"type", "loc", "msg"} for failure in answer.json()["detail"])


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nul", b'{"text": 1'])
def test_body_that_is_no_json_is_400(client: TestClient, body: bytes) -> None:
    answer = client.post("/untyped", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("The body is ")


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["item", "n", "rest", "name", "a"]), inner)
        ),
        max_leaves=8,
    ),
    path=st.sampled_from(["/fields", "/fitted", "/frame", "/nested", "/root", "/columns", "/specified", "/untyped"]),
)
def test_no_json_body_makes_the_server_fail(client: TestClient, body: Any, path: str) -> None:
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = client.post(path, content=text, headers={"content-type": "application/json"})
    # a surrogate is no Unicode, so a method that sends it back cannot be answered
    assert (
        answer.status_code in (200, 400) or "\\ud" in text.decode() or "NaN" in text.decode() or "Inf" in text.decode()
    )


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_and_images_come_as_a_form_with_the_other_arguments(client: TestClient) -> None:
    answer = client.post("/thumbnail", files={"image": ("a.png", png())}, data={"size": "4"})
    assert answer.headers["content-type"] == "image/png"
    assert PIL.Image.open(io.BytesIO(answer.content)).size == (4, 4)
    parts = [("file", ("a.tar.gz", b"one")), ("more", ("b", b"two")), ("more", ("c", b"three"))]
    # 5 is a text here, since the parameter is one
    assert client.post("/read", files=parts, data={"name": "5"}).json() == ["5", ".gz", "one", "two", "three"]


@pytest.mark.parametrize(
    ("path", "options", "status", "words"),
    [
        ("/thumbnail", {"files": {"image": b"no image"}}, 400, "In the part 'image': "),
        ("/thumbnail", {"files": {"other": b""}}, 400, "image: Field required"),
        (
            "/thumbnail",
            {"files": {"image": png()}, "data": {"size": "x"}},
            400,
            "size: Input should be a valid integer",
        ),
        ("/thumbnail", {"files": [("image", png()), ("image", png())]}, 400, "'image' twice"),
        ("/thumbnail", {"json": {"image": "x"}}, 415, "multipart/form-data"),
        ("/only_png", {"files": {"image": ("a.jpg", png(), "image/jpeg")}}, 415, "image/jpeg"),
    ],
)
def test_wrong_form_is_refused_with_a_sentence(
    client: TestClient, path: str, options: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post(path, **options)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_path_that_is_returned_is_sent_as_a_file_and_its_folder_goes(client: TestClient) -> None:
    answer = client.post("/report", json={"name": "ä b.csv"})
    assert answer.text == "a,b"
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4%20b.csv"
    picture = client.post("/picture")
    assert (picture.headers["content-type"], picture.content) == ("image/png", png())


# ---- context, streams, clients --------------------------------------------------------------------------------------


def test_context_is_no_argument_of_the_request(client: TestClient) -> None:
    for call in (1, 2):
        answer = client.post("/context", json={"text": "a"}, headers={"x-in": "b"})
        assert (answer.status_code, answer.text, answer.headers["x-seen"]) == (202, f"a {call}", "b")
    schema = client.get("/docs.json").json()["paths"]["/context"]["post"]["requestBody"]
    assert list(schema["content"]["application/json"]["schema"]["properties"]) == ["text"]


def test_generators_are_streamed_as_they_are(client: TestClient) -> None:
    words = client.post("/words", json={"n": 2})
    assert (words.text, words.headers["content-type"]) == ("word0 word1 ", "text/event-stream; charset=utf-8")
    assert client.post("/items", json={"n": 2}).text == 'data: {"i":0}\n\ndata: {"i":1}\n\n'
    chunks = client.post("/chunks", json={"n": 2})
    assert (chunks.content, chunks.headers["content-type"]) == (b"\xff\xfe", "application/octet-stream")
    assert client.post("/events").text == "event: token\ndata: a\n\n"
    assert client.post("/late").status_code == 500
    assert client.post("/words", json={}).status_code == 400


def test_client_has_the_methods_and_gives_streams_as_iterators(client: TestClient) -> None:
    assert client.untyped("a") == "a"
    assert client.fields({"name": "a"}, 3) == ["a", 1, 3, [], {}]
    assert client.fields(item={"name": "a"}, x="y") == ["a", 1, 2, [], {"x": "y"}]
    assert client.fitted(np.ones((2, 2))).tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert client.double(np.ones(2, np.float32)).dtype == np.float32
    assert client.frame(pd.DataFrame({"a": [1]}), k=2).to_dict("records") == [{"a": 1, "k": 2}]
    assert client.thumbnail(PIL.Image.new("RGB", (4, 4)), size=2).size == (2, 2)
    assert list(client.words(2)) == ["word0 ", "word1 "]
    assert list(client.items(2)) == [{"i": 0}, {"i": 1}]
    assert b"".join(client.chunks(2)) == b"\xff\xfe"
    assert client.renamed("a") == "A"
    assert client.nothing() is None


def test_client_sends_paths_bytes_and_open_files(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    with (tmp_path / "a.txt").open("rb") as opened:
        assert client.read(tmp_path / "a.txt", more=[b"two", opened], name="n") == ["n", ".txt", "one", "two", "one"]
    assert client.report("x.csv").read() == b"a,b"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.fields(), "needs the argument 'item'"),
        (lambda c: c.untyped("a", "b"), "takes the arguments text, but 2 values came"),
        (lambda c: c.untyped("a", text="b"), "got the argument 'text' twice"),
        (lambda c: c.untyped(txt="b"), "has no argument 'txt'; it takes text"),
        (lambda c: c.thumbnail("a"), "cannot be called with this value"),
        (lambda c: c.fitted([1]), "It has the shape (1,)"),
        (lambda c: c.words.submit(1), "is no task"),
    ],
)
def test_client_refuses_arguments_that_do_not_fit(client: TestClient, call: Any, words: str) -> None:
    with pytest.raises(adapter.exceptions.AdapterError) as caught:
        call(client)
    assert words in str(caught.value)


def test_result_that_does_not_fit_is_an_error_of_the_service(client: TestClient) -> None:
    answer = client.post("/wrong")
    assert answer.status_code == 500
    assert "does not fit" in answer.json()["error"]


def test_openapi_describes_fields_files_and_streams(client: TestClient) -> None:
    paths = client.get("/docs.json").json()["paths"]
    fields = paths["/fields"]["post"]["requestBody"]
    schema = fields["content"]["application/json"]["schema"]
    assert schema["properties"]["n"] == {
        "default": 2,
        "description": "how often",
        "minimum": 1,
        "title": "N",
        "type": "integer",
    }
    assert (schema["required"], fields["required"]) == (["item"], True)
    assert not paths["/nothing"]["post"]["requestBody"]["required"]
    form = paths["/read"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["file"]["format"] == "binary"
    assert form["more"]["items"]["format"] == "binary"
    assert list(paths["/words"]["post"]["responses"]["200"]["content"]) == ["text/event-stream"]
    assert "/v1/other" in paths


def test_calling_the_service_makes_an_object_for_unit_tests() -> None:
    assert Everything().shout("a") == "A"


# ---- the class ------------------------------------------------------------------------------------------------------


def test_hooks_run_in_the_order_of_their_definition_inherited_ones_first() -> None:
    said: list[str] = []

    class Base:
        @adapter.on_startup
        def z_first(self) -> None:
            said.append("z_first")

        @adapter.on_shutdown
        def ends_first(self) -> None:
            said.append("ends_first")
            raise RuntimeError("the others run all the same")

        @adapter.on_startup
        def hidden(self) -> None:
            said.append("hidden")

    @adapter.service
    class Hooks(Base):
        @adapter.on_deployment
        @staticmethod
        def z_prepare() -> None:
            said.append("z_prepare")

        @staticmethod
        @adapter.on_deployment
        def a_prepare() -> None:
            said.append("a_prepare")

        def __init__(self) -> None:
            said.append("__init__")

        @adapter.on_startup
        async def b_second(self) -> None:
            said.append("b_second")

        @adapter.on_startup
        def a_third(self) -> None:
            said.append("a_third")

        def hidden(self) -> None:
            said.append("not a hook any more")

        @adapter.api
        def x(self) -> str:
            return "x"

        @adapter.on_shutdown
        async def ends_last(self) -> None:
            said.append("ends_last")

    service: Any = Hooks
    for hook in service.deployment_hooks:
        hook()
    with TestClient(Hooks) as client:
        assert client.x() == "x"
    assert said == [
        *("z_prepare", "a_prepare", "__init__", "z_first", "b_second", "a_third", "ends_first", "ends_last")
    ]


def test_lifespan_of_a_mounted_application_lies_within_the_hooks() -> None:
    said: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        said.append("application begins")
        yield
        said.append("application ends")

    app = FastAPI(lifespan=lifespan)

    @adapter.service(path_prefix="/pre")
    @adapter.asgi_app(app, path="/v1")
    class Mounted:
        def __init__(self) -> None:
            self.name = "me"

        @adapter.on_startup
        def begin(self) -> None:
            said.append("startup")

        @adapter.on_shutdown
        def end(self) -> None:
            said.append("shutdown")

        @app.get("/hello")
        def hello(self, q: int = 1) -> str:
            return f"{self.name} {q}"

        @app.post("/items/{n}")
        async def items(self, n: int, item: Item) -> list[Any]:
            return [self.name, n, item.name]

        @app.websocket("/ws")
        async def ws(self, websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(self.name)
            await websocket.close()

        @adapter.api
        def x(self) -> str:
            return "x"

    with TestClient(Mounted) as client:
        assert client.get("/pre/v1/hello?q=3").json() == "me 3"
        assert client.get("/pre/v1/hello?self=you").json() == "me 1"
        assert client.post("/pre/v1/items/2", json={"name": "a"}).json() == ["me", 2, "a"]
        assert client.post("/pre/x").text == "x"
        assert client.post("/x").status_code == 404
        document = client.get("/docs.json").json()
        names = [p["name"] for p in document["paths"]["/pre/v1/hello"]["get"]["parameters"]]
        assert names == ["q"]
    assert said == ["startup", "application begins", "application ends", "shutdown"]


def test_class_says_itself_whether_it_is_alive_and_ready() -> None:
    @adapter.service
    class Health:
        ready = alive = True

        def __is_alive__(self) -> bool:
            return self.alive

        async def __is_ready__(self) -> bool:
            if not self.ready:
                raise RuntimeError("asked too early")
            return True

        @adapter.api
        def be(self, alive: bool, ready: bool) -> None:
            self.alive, self.ready = alive, ready

    with TestClient(Health) as client:
        assert [client.get(p).status_code for p in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]
        client.be(alive=False, ready=True)
        assert [client.get(p).status_code for p in ("/livez", "/readyz")] == [503, 200]
        client.be(alive=True, ready=False)
        assert client.get("/readyz").json() == {"error": "Health says that it is not ready."}


def test_one_object_of_a_dependency_in_each_worker(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    @adapter.service(workers=3)
    class Inner:
        def __init__(self) -> None:
            said.append("inner")

        @adapter.on_startup
        def begin(self) -> None:
            said.append("inner startup")

        @adapter.api
        def up(self, text: str) -> str:
            return text.upper()

        @adapter.api
        async def aup(self, text: str) -> str:
            return text.upper() + "!"

        @adapter.on_shutdown
        def end(self) -> None:
            said.append("inner shutdown")

    @adapter.service
    class Outer:
        inner = adapter.depends(Inner)
        again = adapter.depends(Inner)

        def __init__(self) -> None:
            said.append(self.inner.up("outer"))

        @adapter.api
        def plain(self, text: str) -> list[str]:
            return [self.inner.up(text), self.inner.aup(text)]

        @adapter.api
        async def asynchronous(self, text: str) -> list[str]:
            return [
                self.inner.up(text),
                await self.inner.aup(text),
                await self.inner.to_async.up(text),
                await self.again.to_async.aup(text),
            ]

        @adapter.on_shutdown
        def end(self) -> None:
            said.append("outer shutdown")

    with caplog.at_level(logging.WARNING), TestClient(Outer) as client:
        assert client.plain("a") == ["A", "A!"]
        assert client.asynchronous("a") == ["A", "A!", "A", "A!"]
        assert list(client.endpoints) == ["plain", "asynchronous"]
    assert said == ["inner", "inner startup", "OUTER", "outer shutdown", "inner shutdown"]
    assert "`workers` of Inner has no effect here: each worker of Outer has one object of it." in caplog.text
    assert typing.cast(Any, Outer)().inner.up("test") == "TEST"


def test_subclass_of_a_service_has_its_apis_and_hooks() -> None:
    @adapter.service
    class Parent:
        @adapter.api
        def hello(self) -> str:
            return f"hello from {type(self).__name__}"

    @adapter.service
    class Child(Parent):
        @adapter.api
        def more(self) -> str:
            return "more"

    with TestClient(Child) as client:
        assert (client.hello(), client.more()) == ("hello from Child", "more")
    # what goes into Triton is the class, and with it what it has of its parents
    parent, child = typing.cast(Any, Parent), typing.cast(Any, Child)
    assert child.inner.__bases__ == child.inner.__orig_bases__ == (parent.inner,)


# ---- arguments of the decorators ------------------------------------------------------------------------------------


def test_settings_in_code_are_stronger_than_those_of_all_and_weaker_than_those_by_name(tmp_path: Path) -> None:
    @adapter.service(workers=4, threads=2, traffic={"timeout": 5, "max_concurrency": 8}, http={"port": 4000})
    class Tuned:
        pass

    service: Any = Tuned
    file = tmp_path / "adapter.yaml"
    file.write_text(
        "api_server: {workers: 9, threads: 9, backlog: 77}\n"
        "services:\n  Tuned: {workers: 2, metrics: {enabled: false}}\n"
    )
    found = tailored(load(file, {}).settings, service).api_server
    assert (found.workers, found.threads, found.backlog, found.http.port) == (2, 2, 77, 4000)
    assert (found.traffic.timeout, found.traffic.max_concurrency, found.metrics.enabled) == (5.0, 4, False)
    environ = {"ADAPTER_CONFIG_OPTIONS": "api_server.workers=7 api_server.traffic.timeout=9"}
    strong = tailored(load(file, environ).settings, service)
    assert (strong.api_server.workers, strong.api_server.traffic.timeout, strong.api_server.threads) == (7, 9.0, 2)
    assert tailored(Settings.from_json(strong.to_json()), service) == strong


def test_one_worker_and_one_thread_unless_the_class_says_more() -> None:
    @adapter.service
    class Bare:
        pass

    found = tailored(Settings(), typing.cast(Any, Bare)).api_server
    assert (found.workers, found.threads) == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers is 0 (Options_), but can only be a whole number from 1 on, or 'cpu_count'"),
        ({"workers": "many"}, "but can only be a whole number from 1 on, or 'cpu_count'"),
        ({"traffic": {"timeout": -1}}, "traffic.timeout is -1"),
        ({"traffic": {"external_queue": True}}, "external_queue"),
        ({"http": {"prot": 1}}, "did you mean port?"),
        ({"resources": {"memory": "1Gi"}}, "resources={'memory': '1Gi'}"),
        ({"resources": {"tpu": 1}}, "has no 'tpu'"),
        ({"resources": {"gpu": -1}}, "resources['gpu'] is -1"),
        ({"path_prefix": 1}, "path_prefix is a path"),
        ({"envs": ["A"]}, "envs is a list of mappings"),
        ({"labels": "a"}, "labels of @adapter.service is a mapping"),
        ({"image": "x"}, "@adapter.service has no argument 'image': `adapter export`"),
        ({"name": "no name"}, "'no name' cannot be a service name"),
    ],
)
def test_wrong_argument_of_service_is_refused_with_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        adapter.service(**options)(type("Options_", (), {}))
    assert words in str(caught.value)


def test_service_twice_and_unknown_arguments_are_type_errors() -> None:
    cls = type("Twice", (), {})
    with pytest.raises(TypeError, match="is a service already"):
        adapter.service(typing.cast(Any, adapter.service(cls)))
    with pytest.raises(TypeError, match="has no argument 'wokers'"):
        adapter.service(wokers=1)(cls)  # type: ignore[call-overload]  # that is the point
    with pytest.raises(InvalidArgument, match="marks a class, not"):
        adapter.service(typing.cast(Any, 3))


def no_self() -> str:
    return ""


def two_roots(self: Any, a: int, b: int, /) -> int:
    return a


def two_contexts(self: Any, a: adapter.Context, ctx: Any) -> int:
    return 1


def starred(self: Any, ctx: adapter.Context, *more: int) -> int:
    return 1


def opaque(self: Any, a: threading.Event) -> int:
    return 1


def generator(self: Any) -> str:  # type: ignore[misc]  # that is the point
    yield ""


def several(self: Any, a: list[int], b: list[int]) -> list[int]:
    return a


def unknown(self: Any, a: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


def one(self: Any, a: list[int]) -> list[int]:
    return a


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (no_self, {}, "takes no self"),
        (two_roots, {}, "takes 'a' by position only"),
        (two_contexts, {}, "takes the Context twice"),
        (starred, {}, "takes the Context before *more: put 'ctx' behind it"),
        (opaque, {}, "is a type that no JSON can be checked against"),
        (generator, {}, "is a generator, so annotate what it returns as one"),
        (several, {"batchable": True}, "is batchable, so it takes one argument"),
        (one, {"batchable": True, "max_batch_size": 1}, "max_batch_size of Refused.one() is a whole number above 1"),
        (unknown, {}, "The annotations of Refused.unknown() cannot be read"),
        (one, {"route": "one"}, "begins with a slash"),
        (one, {"route": "/metrics"}, "the server uses it"),
        (one, {"input_spec": 3}, "is a pydantic model, not 3"),
    ],
)
def test_method_that_cannot_be_an_api_is_refused_with_a_sentence(function: Any, options: Any, words: str) -> None:
    copied = type(function)(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copied.__annotations__ = function.__annotations__
    with pytest.raises(InvalidArgument) as caught:
        adapter.service(type("Refused", (), {function.__name__: adapter.api(**options)(copied)}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (lambda: adapter.api(typing.cast(Any, 3)), "@adapter.api marks a function"),
        (lambda: adapter.api(batchabel=True), "has no argument 'batchabel'"),  # type: ignore[call-overload]
        (lambda: adapter.task(batchable=True), "@adapter.task has no argument 'batchable'"),  # type: ignore[call-overload]
        (lambda: adapter.on_startup(classmethod(one)), "marks a function"),  # type: ignore[type-var]
        (lambda: adapter.on_startup(no_self), "takes self and nothing else"),
        (lambda: adapter.on_deployment(one), "write it without parameters"),
        (lambda: adapter.depends(int), "takes a class marked with @adapter.service"),
        (lambda: adapter.asgi_app(FastAPI())(3), "marks a class, not 3"),
    ],
)
def test_wrong_mark_is_refused_with_a_sentence(mark: Any, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        mark()
    assert words in str(caught.value)


def test_method_cannot_be_api_and_hook() -> None:
    with pytest.raises(InvalidArgument, match="is a hook, so it cannot be an API"):
        adapter.api(adapter.on_startup(lambda self: None))
    with pytest.raises(InvalidArgument, match="is an API, so it cannot be a hook"):
        adapter.on_startup(adapter.api(lambda self: None))


def test_plain_methods_of_one_worker_run_one_at_a_time_unless_threads_say_more() -> None:
    def most_at_once(threads: int) -> int:
        running: list[int] = []
        most: list[int] = [0]

        @adapter.service(threads=threads)
        class Slow:
            @adapter.api
            def work(self) -> None:
                running.append(1)
                most[0] = max(most[0], len(running))
                time.sleep(0.05)
                running.pop()

        with TestClient(Slow) as client:
            callers = [threading.Thread(target=client.work) for _ in range(6)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        return most[0]

    assert most_at_once(1) == 1
    assert most_at_once(4) > 1


def test_repr_and_type_of_a_service_are_those_of_a_service() -> None:
    assert isinstance(Everything, ClassService)
    assert repr(Everything).startswith('adapter.Service(name="everything"')
