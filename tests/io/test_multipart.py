from __future__ import annotations

import asyncio
import io
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from email.message import Message
from email.parser import BytesParser
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnsupportedMediaType
from adapter.io import JSON, File, Image, IODescriptor, Multipart, NumpyNdarray, Text, from_spec
from adapter.io.upload import IN_MEMORY_BYTES
from tests.io.forms import form, written
from tests.io.wire import Sent, read, request, send


class IrisFeatures(BaseModel):
    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Shouted(IODescriptor[str]):
    """A descriptor of one's own, which reads the request as starlette does."""

    mime_type = "text/plain"

    async def from_http_request(self, request: Request) -> str:
        return f"{request.headers['content-type']} {request.method} {(await request.body()).decode().upper()}"

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return StreamingResponse(iter([str(obj)]), media_type=self.mime_type)

    def python_type(self) -> type:
        return str

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string"}


FEATURES = b'{"sepal_length": 5.9, "sepal_width": 3, "petal_length": 5.1, "petal_width": 1.8}'
IRIS = Multipart(
    arr=NumpyNdarray(shape=(-1, 4), dtype=np.float32, enforce_dtype=True, enforce_shape=True),
    json=JSON(pydantic_model=IrisFeatures),
)


def named(name: str, content_type: str = "") -> str:
    return f'content-disposition: form-data; name="{name}"' + (
        f"\r\ncontent-type: {content_type}" if content_type else ""
    )


def received(sent: Sent) -> dict[str, Message]:
    """The parts of a response, as another library reads them."""
    message = BytesParser().parsebytes(f"content-type: {sent.all('content-type')[0]}\r\n\r\n".encode() + sent.body)
    parts = {str(part.get_param("name", header="content-disposition")): part for part in message.walk()}
    return {name: part for name, part in parts.items() if name != "None"}


# ---- in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["", "application/json", "application/octet-stream", "text/plain"])
def test_parts_are_read_by_the_descriptors_of_their_names(content_type: str) -> None:
    body, of_form = written(
        (named("json", content_type), FEATURES), (named("arr", content_type), b"[[5.9, 3, 5.1, 1.8]]")
    )
    value = read(IRIS, body, of_form)
    assert list(value) == ["arr", "json"]
    assert value["arr"].dtype == np.float32
    assert value["arr"].tolist() == [[np.float32(x) for x in (5.9, 3, 5.1, 1.8)]]
    assert value["json"] == IrisFeatures(sepal_length=5.9, sepal_width=3, petal_length=5.1, petal_width=1.8)


def test_every_descriptor_reads_its_part() -> None:
    picture = io.BytesIO()
    PIL.Image.new("RGBA", (3, 2)).save(picture, "PNG")
    descriptor = Multipart(image=Image(), file=File(), text=Text(), number=JSON(), own=Shouted())
    body, content_type = form(
        files={
            "image": ("a.png", picture.getvalue()),
            "file": ("b.bin", b"\0\1"),
            "own": ("c", b"loud", "text/x-loud"),
        },
        data={"text": "Grüße", "number": "5"},
    )
    value = read(descriptor, body, content_type)
    assert (value["image"].size, value["image"].mode) == ((3, 2), "RGB")
    assert (value["file"].name, value["file"].read()) == ("b.bin", b"\0\1")
    assert (value["text"], value["number"], value["own"]) == ("Grüße", 5, "text/x-loud POST LOUD")


def test_part_is_decoded_in_its_own_charset() -> None:
    body, content_type = written((named("text", "text/plain; charset=latin-1"), "Grüße".encode("latin-1")))
    assert read(Multipart(text=Text()), body, content_type) == {"text": "Grüße"}


@pytest.mark.parametrize("boundary", ["b", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "a'()+_,-./:=?"])
def test_boundary_is_any_that_clients_choose(boundary: str) -> None:
    body, _ = written((named("x"), b"1"), boundary=boundary)
    assert read(Multipart(x=JSON()), body, f'multipart/form-data; charset=utf-8; boundary="{boundary}"') == {"x": 1}


def test_data_that_looks_like_a_boundary_stays_data() -> None:
    data = b"\r\n--b\n--bb\r\n--c--\r\n--"
    body, content_type = written((named("file"), data), boundary="bbb")
    assert read(Multipart(file=File()), body, content_type)["file"].read() == data


GOOD = [(named("arr"), b"[[1, 2, 3, 4]]"), (named("json"), FEATURES)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (GOOD[:1], "The form lacks the part 'json'; its parts are 'arr', 'json'"),
        ([], "The form lacks the part 'arr', 'json'"),
        ([*GOOD, (named("more"), b"")], "The form has a part 'more', but its parts are 'arr', 'json'"),
        ([*GOOD, (named("x" * 500), b"")], r"The form has a part 'x+…', but"),
        ([*GOOD, GOOD[0]], "The form has the part 'arr' twice; send it once"),
        ([("content-type: text/plain", b""), *GOOD], "Part 1 of the form has no name: give it 'content-disposition"),
        ([(named("arr"), b"[[1, 2]]"), GOOD[1]], r"In the part 'arr': The body has the shape \(1, 2\), but"),
        ([GOOD[0], (named("json"), b"{")], "In the part 'json': The body is not JSON"),
        ([GOOD[0], (named("json"), b"")], "In the part 'json': The body is empty, but JSON was expected"),
    ],
)
def test_form_of_other_parts_is_refused(parts: list[tuple[str, bytes]], message: str) -> None:
    body, content_type = written(*parts)
    with pytest.raises(BadInput, match=message):
        read(IRIS, body, content_type)


def test_part_of_another_content_type_is_refused() -> None:
    body, content_type = written((named("arr", "image/png"), b"[[1, 2, 3, 4]]"), GOOD[1])
    with pytest.raises(UnsupportedMediaType, match="In the part 'arr': The body came as 'image/png'"):
        read(IRIS, body, content_type)


@pytest.mark.parametrize(
    ("content_type", "error", "message"),
    [
        (None, BadInput, r"names no boundary: send 'content-type: multipart/form-data; boundary=…'"),
        ("multipart/form-data", BadInput, "names no boundary"),
        ("multipart/form-data; boundary=", BadInput, "names no boundary"),
        ("multipart/form-data; boundary=other", BadInput, "not a form that can be read: Expected boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, BadInput, "not a form that can be read"),
        ("multipart/form-data; boundary*=utf-8''%E4%B8%96", BadInput, "not a form that can be read"),
        ("multipart/mixed; boundary=b", UnsupportedMediaType, "'content-type: multipart/form-data'"),
        ("application/json", UnsupportedMediaType, "'application/json'"),
        ("application/x-www-form-urlencoded", UnsupportedMediaType, "'content-type: multipart/form-data'"),
    ],
)
def test_body_that_is_no_form_is_refused(content_type: str | None, error: type[Exception], message: str) -> None:
    body, _ = written(*GOOD)
    with pytest.raises(error, match=message):
        read(IRIS, body, content_type)


@pytest.mark.parametrize("body", [b"", b"--b", b"--b\r\n", b"no form", written(*GOOD)[0][:-6], b"\0" * 100])
def test_form_that_breaks_off_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput, match="not a form that can be read"):
        read(IRIS, body, "multipart/form-data; boundary=b")


def test_form_of_very_many_parts_or_headers_is_refused() -> None:
    many, content_type = written(*[('content-disposition: form-data; name="x"', b"")] * 1100)
    with pytest.raises(BadInput, match="The form has more than 1000 parts"):
        read(Image(), many, content_type)
    wide, content_type = written((named("x") + "\r\nx-more: " + "x" * 20_000, b""))
    with pytest.raises(BadInput, match=r"headers of more than 16384 bytes|not a form that can be read"):
        read(Image(), wide, content_type)


def test_large_part_is_not_held_in_memory() -> None:
    size = 64 << 20
    chunk = bytes(1 << 16)
    head, end = written((named("file"), b"|"), boundary="b")[0].split(b"|")

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(size // len(chunk)):
            yield chunk
        yield end

    pieces = body()

    async def receive() -> Any:
        piece = await anext(pieces, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"multipart/form-data; boundary=b")]}
    tracemalloc.start()
    try:
        value = asyncio.run(Multipart(file=File()).from_http_request(Request(scope, receive)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value["file"].size == size
    assert value["file"].read(10) == bytes(10)
    assert peak < 8 * IN_MEMORY_BYTES


EVERYTHING = Multipart(image=Image(), file=File(), text=Text(), number=JSON(), rows=NumpyNdarray())


@settings(deadline=None, max_examples=200)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from([*EVERYTHING.parts, "other", 'x"; y="']),
            st.sampled_from(["", "image/png", "application/json", "text/plain; charset=x", "\0", ";;=", "a/b\tc"]),
            st.binary(max_size=60) | st.sampled_from([b"[1]", b"5", b"\x89PNG\r\n\x1a\n"]),
        ),
        max_size=6,
    ),
    cut=st.integers(0, 30),
    boundary=st.text(max_size=10),
)
def test_any_form_is_read_or_the_fault_of_its_sender(parts: Any, cut: int, boundary: str) -> None:
    body, content_type = written(*[(named(name, of_part), data) for name, of_part, data in parts])
    for header in (content_type, "multipart/form-data; boundary=" + boundary.encode().decode("latin-1")):
        try:
            read(EVERYTHING, body[: len(body) - cut], "".join(c for c in header if ord(c) < 128))
        except AdapterError as error:
            assert 400 <= error.error_code < 500  # noqa: PT017  # either is right


# ---- out ------------------------------------------------------------------------------------------------------------


def test_result_is_sent_as_a_form_with_the_headers_of_each_part() -> None:
    descriptor = Multipart(rows=NumpyNdarray(), text=Text(), image=Image(mime_type="image/png"))
    sent = send(descriptor, {"image": PIL.Image.new("L", (3, 2)), "text": "Grüße", "rows": np.eye(2)})
    parts = received(sent)
    assert [(name, part.get_content_type()) for name, part in parts.items()] == [
        ("rows", "application/json"),
        ("text", "text/plain"),
        ("image", "image/png"),
    ]
    assert parts["rows"].get_payload(decode=True) == b"[[1.0,0.0],[0.0,1.0]]"
    assert parts["rows"]["content-length"] == "21"
    assert parts["text"].get_payload(decode=True) == "Grüße".encode()
    assert parts["image"].get_filename() == "output.png"
    assert sent.all("content-length") == [str(len(sent.body))]


def test_what_is_sent_can_be_read_again() -> None:
    descriptor = Multipart(rows=NumpyNdarray(), text=Text(), image=Image(mime_type="image/png"), file=File())
    value = {"image": PIL.Image.new("RGB", (3, 2), (1, 2, 3)), "text": "ü\r\n--x", "rows": np.eye(2), "file": b"\0\r\n"}
    sent = send(descriptor, value)
    again = read(descriptor, sent.body, sent.all("content-type")[0])
    assert (again["text"], again["rows"].tolist(), again["file"].read()) == (
        value["text"],
        np.eye(2).tolist(),
        b"\0\r\n",
    )
    assert (again["image"].getpixel((0, 0)), again["file"].name) == ((1, 2, 3), "file")


def test_streams_among_the_parts_are_streamed_and_closed() -> None:
    closed = []

    def pieces() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    file = io.BytesIO(b"\0\1")
    descriptor = Multipart(text=Text(), file=File(), own=Shouted())
    sent = send(descriptor, {"text": pieces(), "file": file, "own": "loud"})
    parts = received(sent)
    assert {name: part.get_payload(decode=True) for name, part in parts.items()} == {
        "text": b"ab",
        "file": b"\0\1",
        "own": b"loud",
    }
    assert (closed, file.closed, sent.all("content-length")) == ([True], True, [])


def test_large_result_is_sent_part_by_part() -> None:
    data = bytes(IN_MEMORY_BYTES)
    sent = send(Multipart(one=File(), two=File()), {"one": data, "two": b"x"})
    assert data in sent.chunks
    assert sent.all("content-length") == [str(len(sent.body))]
    assert received(sent)["two"].get_payload(decode=True) == b"x"


def test_context_shapes_the_response() -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 201
    ctx.response.headers["x-model"] = "iris"
    sent = send(Multipart(x=JSON()), {"x": 1}, ctx)
    assert (sent.status, sent.all("x-model"), len(received(sent))) == (201, ["iris"], 1)


@pytest.mark.parametrize("result", [None, [1, 2], {"x": 1}, {"x": 1, "y": 2, "z": 3}, {}, "xy"])
def test_result_is_an_error_of_the_service_when_it_has_other_names(result: Any) -> None:
    with pytest.raises(InternalServerError, match="The result is to be a dict with 'x', 'y', not"):
        send(Multipart(x=JSON(), y=JSON()), result)


def test_error_names_the_part_whose_value_cannot_be_sent() -> None:
    with pytest.raises(InternalServerError, match="In the part 'y': The result cannot be written as JSON"):
        send(Multipart(x=JSON(), y=JSON()), {"x": 1, "y": float("nan")})


# ---- the descriptor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("descriptors", "message"),
    [
        ({}, r"A Multipart has at least one part: write for example Multipart\(rows=JSON\(\)\)"),
        ({"a": Multipart(b=JSON())}, "The part 'a' is a Multipart again; put its parts beside the others"),
        ({"a": JSON}, "is not an IO descriptor: write for example a=adapter"),
        ({"a b": JSON()}, "'a b' cannot be the name of a part"),
    ],
)
def test_parts_that_cannot_be_used_are_refused(descriptors: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Multipart(**descriptors)


def test_part_may_have_any_name_a_parameter_has() -> None:
    descriptor = Multipart(self=JSON(), parts=Text(), ünï=JSON())
    body, content_type = written((named("self"), b"1"), (named("parts"), b"2"), (named("ünï"), b"3"))
    assert read(descriptor, body, content_type) == {"self": 1, "parts": "2", "ünï": 3}


def test_from_sample_belongs_to_the_parts() -> None:
    with pytest.raises(InvalidArgument, match=r"Multipart\(rows=NumpyNdarray\.from_sample\(…\)\)"):
        Multipart.from_sample({"rows": [1]})
    assert Multipart(rows=JSON.from_sample({"a": 1})).schema()["properties"]["rows"]["example"] == {"a": 1}


def test_schema_names_the_parts_and_brings_their_models() -> None:
    schema = IRIS.schema()
    assert (schema["type"], schema["required"], list(schema["properties"])) == (
        "object",
        ["arr", "json"],
        ["arr", "json"],
    )
    assert schema["properties"]["json"] == {"$ref": "#/components/schemas/IrisFeatures"}
    assert "$defs" not in schema
    nested = Multipart(rows=JSON(pydantic_model=list[IrisFeatures]))
    assert list(nested.components()) == ["IrisFeatures"]
    assert nested.schema()["properties"]["rows"]["items"] == {"$ref": "#/components/schemas/IrisFeatures"}


def test_spec_round_trips() -> None:
    descriptor = Multipart(rows=NumpyNdarray(dtype="float32"), image=Image(pilmode="L"))
    spec = {
        "id": "adapter.io.Multipart",
        "args": {
            "rows": {"id": "adapter.io.NumpyNdarray", "args": {"dtype": "float32"}},
            "image": {"id": "adapter.io.Image", "args": {"pilmode": "L"}},
        },
    }
    assert descriptor.to_spec() == spec
    assert from_spec(spec).to_spec() == spec
    assert repr(from_spec(spec)) == "Multipart(rows=NumpyNdarray(dtype='float32'), image=Image(pilmode='L'))"
    with pytest.raises(InvalidArgument, match=r"There is no descriptor 'os\.system'"):
        from_spec({"id": "adapter.io.Multipart", "args": {"x": {"id": "os.system", "args": {}}}})
    for args in ({"x": 5}, ["x"], None):
        with pytest.raises(InvalidArgument, match="are not the specs of descriptors"):
            from_spec({"id": "adapter.io.Multipart", "args": args})
