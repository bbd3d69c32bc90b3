from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

import adapter.io
from adapter.context import Context
from adapter.exceptions import BadInput, InvalidArgument, UnsupportedMediaType
from adapter.io import JSON, IODescriptor, NumpyNdarray, Text, from_spec
from adapter.io.base import media_type_of
from tests.io.wire import read, request, send


class Point(BaseModel):
    x: float
    y: float


class Csv(IODescriptor[list[str]]):
    """A descriptor as people write one of their own."""

    mime_type = "text/csv"
    accepts = ("text/csv", "text/plain")

    def __init__(self, separator: str = ",", model: type | None = None) -> None:
        self.separator = separator
        self.model = model

    async def from_http_request(self, request: Request) -> list[str]:
        body = await self.body_of(request)
        if not body:
            raise BadInput(f"The body is empty; {self.advice}.")
        return body.decode().split(self.separator)

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return self.respond(self.separator.join(obj).encode(), ctx)

    def python_type(self) -> type:
        return list

    def json_schema(self) -> dict[str, Any]:
        return {"$ref": "#/components/schemas/Row", "$defs": {"Row": {"type": "string"}}}


def test_descriptor_of_ones_own_reads_and_sends() -> None:
    assert read(Csv(), "a,b", "text/csv; charset=utf-8") == ["a", "b"]
    sent = send(Csv(";"), ["a", "b"])
    assert (sent.body, sent.all("content-type")) == (b"a;b", ["text/csv; charset=utf-8"])


def test_descriptor_of_ones_own_has_schema_components_and_spec() -> None:
    assert Csv().schema() == {"$ref": "#/components/schemas/Row"}
    assert Csv().components() == {"Row": {"type": "string"}}
    assert Csv(";", model=Point).to_spec() == {"id": "tests.io.test_base.Csv", "args": {"separator": ";"}}
    assert Csv.from_spec(Csv(";").to_spec()).separator == ";"
    assert repr(Csv(";")) == "Csv(separator=';')"


def test_from_sample_keeps_the_sample() -> None:
    descriptor = Csv.from_sample(["a", "b"], separator=";")
    assert (descriptor.sample, descriptor.separator) == (["a", "b"], ";")
    assert Csv().sample is None


def test_advice_names_the_content_type_when_there_is_no_example() -> None:
    with pytest.raises(BadInput, match=r"The body is empty; send text/csv\."):
        read(Csv(), "", None)


def test_content_type_is_refused_when_it_is_not_accepted() -> None:
    with pytest.raises(UnsupportedMediaType) as raised:
        read(Csv(), "a,b", "Image/PNG")
    assert raised.value.error_code == 415
    assert str(raised.value) == (
        "The body came as 'image/png', which this API does not read: send it with the header 'content-type: text/csv'."
    )


@pytest.mark.parametrize("content_type", [None, "", " ", "TEXT/CSV", "text/plain ; charset=utf-8"])
def test_content_type_is_fine_when_it_is_missing_or_accepted(content_type: str | None) -> None:
    assert read(Csv(), "a", content_type) == ["a"]


def test_context_is_applied_when_it_is_given() -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 201
    ctx.response.headers["x-rows"] = "2"
    sent = send(Csv(), ["a", "b"], ctx)
    assert (sent.status, sent.all("x-rows"), sent.body) == (201, ["2"], b"a,b")


@pytest.mark.parametrize(
    ("descriptor", "spec"),
    [
        (NumpyNdarray(), {"id": "adapter.io.NumpyNdarray", "args": {}}),
        (
            NumpyNdarray(dtype=np.float32, shape=(-1, 4), enforce_shape=True),
            {"id": "adapter.io.NumpyNdarray", "args": {"dtype": "float32", "shape": [-1, 4], "enforce_shape": True}},
        ),
        (NumpyNdarray(dtype="<U3"), {"id": "adapter.io.NumpyNdarray", "args": {"dtype": "<U3"}}),
        (JSON(pydantic_model=Point), {"id": "adapter.io.JSON", "args": {}}),
        (
            Text(content_type="text/event-stream"),
            {"id": "adapter.io.Text", "args": {"content_type": "text/event-stream"}},
        ),
    ],
)
def test_spec_round_trips(descriptor: IODescriptor[Any], spec: dict[str, Any]) -> None:
    assert descriptor.to_spec() == spec
    again = from_spec(spec)
    assert type(again) is type(descriptor)
    assert again.to_spec() == spec


@pytest.mark.parametrize("id_", ["adapter.io.Nothing", "os.system", "adapter.io.IODescriptor", "adapter.io.SSE", None])
def test_from_spec_refuses_when_the_id_is_not_a_descriptor_of_adapter(id_: Any) -> None:
    with pytest.raises(InvalidArgument, match="There is no descriptor"):
        from_spec({"id": id_, "args": {}})


def test_from_spec_refuses_when_class_or_arguments_are_others() -> None:
    with pytest.raises(InvalidArgument, match=r"'adapter\.io\.Text' was expected, but 'adapter\.io\.JSON' came"):
        Text.from_spec({"id": "adapter.io.JSON"})
    with pytest.raises(InvalidArgument, match="are not those of Text"):
        from_spec({"id": "adapter.io.Text", "args": {"colour": "red"}})


def test_module_names_what_it_has_when_a_name_is_unknown() -> None:
    with pytest.raises(AttributeError, match=r"adapter\.io has no 'Strings'; it has JSON"):
        _ = adapter.io.Strings  # type: ignore[attr-defined]  # that is the point
    assert set(adapter.io.__all__) <= set(dir(adapter.io))


def test_string_is_another_name_of_text() -> None:
    assert adapter.io.String is Text


def test_import_leaves_other_descriptors_out() -> None:
    program = "import sys, adapter.io; sys.exit('pydantic' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_body_of_reads_what_is_there_when_nothing_is_declared() -> None:
    assert asyncio.run(Csv().body_of(request(b"raw"))) == b"raw"


def messages(*received: dict[str, Any]) -> Request:
    pending = [*received]

    async def receive() -> Any:
        return pending.pop(0)

    return Request({"type": "http", "headers": []}, receive)


def test_body_that_comes_in_pieces_is_read_whole_and_stays_with_the_request() -> None:
    async def read_twice() -> None:
        request = messages(
            {"type": "http.request", "body": b"a,", "more_body": True},
            {"type": "http.request", "more_body": True},
            {"type": "http.request", "body": b"b"},
        )
        assert await Csv().body_of(request) == b"a,b"
        assert await request.body() == b"a,b"
        assert [chunk async for chunk in request.stream()] == [b"a,b", b""]
        assert await Csv().body_of(request) == b"a,b"

    asyncio.run(read_twice())


def test_body_that_somebody_has_read_is_read_again() -> None:
    async def read_twice() -> None:
        request = messages({"type": "http.request", "body": b"a"})
        assert await request.body() == b"a"
        assert await Csv().body_of(request) == b"a"

    asyncio.run(read_twice())


def test_body_is_not_half_a_value_when_the_client_goes_away() -> None:
    request = messages({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        asyncio.run(Csv().body_of(request))


@pytest.mark.parametrize(
    ("header", "name", "parameters"),
    [
        ("Text/CSV; Charset=UTF-8", "text/csv", {"charset": "UTF-8"}),
        ('multipart/form-data; boundary="a;b=c"', "multipart/form-data", {"boundary": "a;b=c"}),
        ("a/b; c; d=", "a/b", {"c": "", "d": ""}),
        ("a/b; c=1; c=2", "a/b", {"c": "1"}),
        ("a/b; c*=utf-8''%C3%BC", "a/b", {"c": "Ã¼"}),
        ("nonsense", "nonsense", {}),
        (";charset=utf-8", "", {"charset": "utf-8"}),
        ("", "", {}),
        ("a/b; c=1;" + " " * 1000 + "; d=2", "a/b", {"c": "1", "": ""}),
    ],
)
def test_content_type_has_a_name_and_parameters(header: str, name: str, parameters: dict[str, str]) -> None:
    assert media_type_of(request(b"", header)) == (name, parameters)


def test_response_has_the_type_and_headers_that_it_is_given() -> None:
    response = Csv().respond(b"x", None, mime_type="text/tab-separated-values", headers={"x-rows": "1"})
    assert response.headers["content-type"] == "text/tab-separated-values; charset=utf-8"
    assert response.headers["x-rows"] == "1"
