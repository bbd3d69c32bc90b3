from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pytest
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBasic, HTTPBearer
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, Field, create_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.io import JSON, File, Image, IODescriptor, Multipart, NumpyNdarray, PandasDataFrame, PandasSeries, Text
from adapter.server.openapi import Components, document, rewritten
from adapter.services import Service


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(gt=0, lt=10)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Node(BaseModel):
    children: list[Node] = []
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    color: Color = Color.RED
    pair: tuple[int, str] = (1, "a")


def other_models() -> type[BaseModel]:
    """Models with the names of those above, and of the server's own."""

    class Cat(BaseModel):
        whiskers: int

    class Node(BaseModel):
        cat: Cat

    class Error(BaseModel):
        code: int
        node: Node

    return Error


class Lines(IODescriptor[list[str]]):
    """A descriptor of a person's own."""

    mime_type = "text/x-lines"
    accepts = ("text/x-lines", "text/x-rows")

    async def from_http_request(self, request: Request) -> list[str]:
        return (await self.body_of(request)).decode().splitlines()

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        return self.respond("\n".join(obj).encode(), ctx)

    def python_type(self) -> type:
        return list

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "\n"}


def echo(value: Any) -> Any:
    """Give back what came."""
    return value


def valid(service: Service) -> dict[str, Any]:
    made = document(service)
    OpenAPIV31SpecValidator(made).validate()
    return made


def of_api(*arguments: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a service with one API, and what it says of that API."""
    service = Service("s")
    service.api(*arguments, name="f", **options)(echo)
    made = valid(service)
    return made, next(item["post"] for item in made["paths"].values() if "post" in item)


def contents(operation: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return operation["requestBody"]["content"], operation["responses"]["200"]["content"]


def test_document_of_a_service_with_everything_is_valid() -> None:
    service = Service("everything")
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    descriptors: list[IODescriptor[Any]] = [
        JSON(),
        JSON(pydantic_model=Node),
        JSON(pydantic_model=other_models()),
        JSON(pydantic_model=list[Node]),
        JSON.from_sample({"a": [1, None]}),
        JSON.from_sample(Dog(kind="dog")),
        NumpyNdarray(),
        NumpyNdarray(dtype="float32", shape=(-1, 4), enforce_dtype=True, enforce_shape=True),
        NumpyNdarray.from_sample(np.array([["a"]])),
        PandasDataFrame(),
        PandasDataFrame.from_sample(frame),
        PandasDataFrame(default_format="csv"),
        PandasDataFrame(orient="split", default_format="parquet"),
        PandasSeries.from_sample(frame["a"]),
        Text(),
        Text(content_type="text/event-stream"),
        Text.from_sample("hello"),
        File(),
        File(mime_type="application/pdf"),
        Image(),
        Image(mime_type="image/png", allowed_mime_types=["image/png"]),
        Multipart(rows=NumpyNdarray.from_sample([[1.5]]), node=JSON(pydantic_model=Node), image=Image(), note=Text()),
        Lines(),
    ]
    for number, descriptor in enumerate(descriptors):
        service.api(descriptor, descriptor, name=f"f{number}", route=f"/{{a}}/f{number}/{{b:int}}/{{c:path}}")(
            takes(descriptor)
        )
    service.mount_asgi_app(fast("one"), "/one")
    service.mount_asgi_app(fast("two"), "/two")
    service.mount_asgi_app(Starlette(), "/other")
    made = valid(service)
    identities = [o["operationId"] for item in made["paths"].values() for o in item.values()]
    assert len(identities) == len(set(identities)) == len(descriptors) + 4 + 2 * 2


def takes(descriptor: IODescriptor[Any]) -> Any:
    if not descriptor.parts:
        return echo

    def function(rows: Any, node: Any, image: Any, note: Any) -> Any: ...

    return function


# ---- an API ---------------------------------------------------------------------------------------------------------


def test_operation_says_what_clients_need() -> None:
    made, operation = of_api(NumpyNdarray(dtype="float32"), JSON(), doc="Text.")
    assert made["info"] == {"title": "s", "version": "0", "description": "f: Text."}
    assert made["servers"] == [{"url": "."}]
    assert (operation["operationId"], operation["x-adapter-name"], operation["tags"]) == ("s__f", "f", ["Service APIs"])
    assert (operation["summary"], operation["description"]) == ("f (NumpyNdarray → JSON)", "Text.")
    assert operation["requestBody"]["required"] is True
    assert operation["requestBody"]["x-adapter-io-descriptor"] == {
        "id": "adapter.io.NumpyNdarray",
        "args": {"dtype": "float32"},
    }
    assert operation["responses"]["200"]["x-adapter-io-descriptor"] == {"id": "adapter.io.JSON", "args": {}}


def test_every_error_is_described_once() -> None:
    made, operation = of_api(JSON(), JSON())
    statuses = ["200", "400", "413", "415", "429", "4XX", "500", "503", "504"]
    assert list(operation["responses"]) == statuses
    for status in statuses[1:]:
        name = operation["responses"][status]["$ref"].rpartition("/")[2]
        answer = made["components"]["responses"][name]
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
        assert "x-adapter-request-id" in answer["headers"]
        assert ("retry-after" in answer["headers"]) == (status in ("429", "503"))


def test_other_statuses_are_described_where_the_function_can_set_them() -> None:
    service = Service("s")

    @service.api(JSON(), Text())
    def f(value: Any, ctx: Context) -> str:
        return ""

    answers = valid(service)["paths"]["/f"]["post"]["responses"]
    assert answers["2XX"]["content"] == answers["200"]["content"]


def test_parameters_of_the_path_are_described_by_their_kind() -> None:
    made, operation = of_api(JSON(), JSON(), route="/a/{b}/{c:int}/{d:float}/{e:uuid}/{f:path}")
    assert "/a/{b}/{c}/{d}/{e}/{f}" in made["paths"]
    assert [(p["name"], p["in"], p["required"]) for p in operation["parameters"]] == [
        (name, "path", True) for name in "bcdef"
    ]
    assert [p["schema"] for p in operation["parameters"]] == [
        {"type": "string", "pattern": "^[^/]+$"},
        {"type": "integer", "minimum": 0},
        {"type": "number", "minimum": 0},
        {"type": "string", "format": "uuid"},
        {"type": "string"},
    ]


BINARY = {"type": "string", "format": "binary"}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("descriptor", "read", "sent"),
    [
        (JSON(), ["application/json"], ["application/json"]),
        (NumpyNdarray(), ["application/json", "application/x-npy"], ["application/json", "application/x-npy"]),
        (
            PandasDataFrame(),
            ["application/json", "text/csv", "application/vnd.apache.parquet"],
            ["application/json", "text/csv", "application/vnd.apache.parquet"],
        ),
        (Text(), ["text/plain"], ["text/plain"]),
        (Text(content_type="text/event-stream"), ["text/plain", "text/event-stream"], ["text/event-stream"]),
        (File(), ["application/octet-stream"], ["application/octet-stream"]),
        (File(mime_type="application/pdf"), ["application/pdf", "multipart/form-data"], ["application/pdf"]),
        # an Image that reads PNG alone sends JPEG all the same
        (
            Image(allowed_mime_types=["image/png"]),
            ["image/png", "multipart/form-data"],
            ["image/jpeg"],
        ),
        (Lines(), ["text/x-lines", "text/x-rows"], ["text/x-lines"]),
    ],
    ids=lambda value: repr(value) if isinstance(value, IODescriptor) else "",
)
def test_content_types_are_those_that_are_read_and_sent(
    descriptor: IODescriptor[Any], read: list[str], sent: list[str]
) -> None:
    _, operation = of_api(descriptor, descriptor)
    assert [list(content) for content in contents(operation)] == [read, sent]


def test_schemas_are_those_of_the_content_types() -> None:
    sample = np.array([[1.5, 2.5]])
    _, operation = of_api(NumpyNdarray.from_sample(sample), PandasDataFrame.from_sample(pd.DataFrame({"a": [1]})))
    read, sent = contents(operation)
    assert read["application/json"]["schema"]["example"] == [[1.5, 2.5]]
    assert read["application/x-npy"]["schema"] == BINARY
    assert sent["application/json"]["schema"]["type"] == "array"
    assert sent["text/csv"]["schema"] == TEXT
    assert sent["application/vnd.apache.parquet"]["schema"] == BINARY


def test_form_of_a_file_has_one_part() -> None:
    _, operation = of_api(Image(), Image(mime_type="image/png"))
    read, sent = contents(operation)
    assert read["multipart/form-data"]["schema"] == {
        "type": "object",
        "properties": {"file": BINARY},
        "required": ["file"],
    }
    assert read["image/jpeg"]["schema"] == BINARY
    assert sent == {"image/png": {"schema": BINARY}}


def test_parts_of_a_form_have_their_content_types() -> None:
    service = Service("s")
    descriptor = Multipart(
        rows=NumpyNdarray.from_sample([[1.5]]),
        node=JSON(pydantic_model=Node),
        image=Image(allowed_mime_types=["image/png", "image/gif"]),
        note=Text(),
    )
    service.api(descriptor, descriptor, name="f")(takes(descriptor))
    made = valid(service)
    form = made["paths"]["/f"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["rows", "node", "image", "note"]
    assert form["schema"]["properties"]["rows"]["example"] == [[1.5]]
    assert form["schema"]["properties"]["node"] == {"$ref": "#/components/schemas/Node"}
    types = {part: encoding["contentType"] for part, encoding in form["encoding"].items()}
    image = types.pop("image").split(", ")
    assert {"image/png", "image/gif"} <= set(image)
    assert "multipart/form-data" not in image
    assert types == {"rows": "application/json", "node": "application/json", "note": "text/plain"}
    assert set(made["components"]["schemas"]) == {"Error", "Node", "Cat", "Dog", "Color"}


# ---- components -----------------------------------------------------------------------------------------------------


def test_models_of_one_name_are_told_apart_and_one_model_is_kept_once() -> None:
    service = Service("s")
    other = other_models()
    for name, sent, answered in [("a", Node, other), ("b", other, Node), ("c", Node, Cat)]:
        service.api(JSON(pydantic_model=sent), JSON(pydantic_model=answered), name=name)(echo)
    made = valid(service)
    schemas = made["components"]["schemas"]
    assert set(schemas) == {"Error", "Cat", "Node", "Dog", "Color", "Error2", "Cat2", "Node2"}
    assert list(schemas["Cat2"]["properties"]) == ["whiskers"]
    assert schemas["Node2"]["properties"] == {"cat": {"$ref": "#/components/schemas/Cat2"}}
    assert schemas["Error2"]["properties"]["node"] == {"$ref": "#/components/schemas/Node2"}
    assert schemas["Node"]["properties"]["children"]["items"] == {"$ref": "#/components/schemas/Node"}
    bodies = {path: contents(item["post"]) for path, item in made["paths"].items() if "post" in item}
    refs = {path: [side["application/json"]["schema"].get("$ref") for side in both] for path, both in bodies.items()}
    assert refs["/a"] == ["#/components/schemas/Node", "#/components/schemas/Error2"]
    assert refs["/b"] == ["#/components/schemas/Error2", "#/components/schemas/Node"]
    assert refs["/c"][0] == "#/components/schemas/Node"


def test_component_that_differs_only_in_what_it_refers_to_is_another() -> None:
    components = Components()
    outer = {"$ref": "#/components/schemas/B"}
    assert components.add("schemas", {"A": outer, "B": {"type": "string"}}) == {}
    moved = components.add("schemas", {"A": outer, "B": {"type": "integer"}})
    assert moved == {
        "#/components/schemas/A": "#/components/schemas/A2",
        "#/components/schemas/B": "#/components/schemas/B2",
    }
    assert components.sections["schemas"]["A2"] == {"$ref": "#/components/schemas/B2"}
    assert components.add("schemas", {"A": outer, "B": {"type": "integer"}}) == moved
    assert list(components.sections["schemas"]) == ["A", "B", "A2", "B2"]


def test_mapping_of_a_discriminator_is_rewritten() -> None:
    moved = {"#/components/schemas/A": "#/components/schemas/A2"}
    schema = {"discriminator": {"mapping": {"a": "#/components/schemas/A"}}, "oneOf": [{"$ref": "x"}, 1, None]}
    assert rewritten(schema, moved) == {
        "discriminator": {"mapping": {"a": "#/components/schemas/A2"}},
        "oneOf": [{"$ref": "x"}, 1, None],
    }


# ---- the server and what is mounted ---------------------------------------------------------------------------------


def fast(kind: str) -> FastAPI:
    """An application whose model and security scheme have names that another of these uses as well."""
    scheme = HTTPBearer(scheme_name="key") if kind == "one" else HTTPBasic(scheme_name="key")
    fields: dict[str, Any] = {kind: (int, ...)}
    item = create_model("Item", **fields)
    app = FastAPI(openapi_tags=[{"name": kind, "description": "x"}])

    @app.get("/items/{number}", dependencies=[Depends(scheme)], tags=[kind])
    def read(number: int) -> Any: ...

    def write(item: Any) -> Any: ...

    write.__annotations__["item"] = item
    app.post("/items")(write)
    return app


def test_paths_of_the_server_are_described() -> None:
    made = valid(Service("s"))
    assert list(made["paths"]) == ["/livez", "/healthz", "/readyz", "/metrics"]
    for item in made["paths"].values():
        assert item["get"]["tags"] == ["Infrastructure"]
    assert made["paths"]["/readyz"]["get"]["responses"]["503"] == {"$ref": "#/components/responses/ServiceUnavailable"}


def test_paths_of_mounted_applications_are_where_they_are_reached() -> None:
    service = Service("s")
    service.mount_asgi_app(fast("one"), "/one")
    service.mount_asgi_app(fast("two"), "/two", name="second")
    made = valid(service)
    first, second = made["paths"]["/one/items/{number}"]["get"], made["paths"]["/two/items/{number}"]["get"]
    assert first["operationId"] == "read_items__number__get"
    assert second["operationId"] == "second__read_items__number__get"
    assert [tag["name"] for tag in made["tags"]] == ["Service APIs", "Infrastructure", "one", "two"]
    schemes = made["components"]["securitySchemes"]
    assert (schemes["key"]["scheme"], schemes["key2"]["scheme"]) == ("bearer", "basic")
    assert (first["security"], second["security"]) == ([{"key": []}], [{"key2": []}])


def test_mounted_path_is_left_out_where_something_else_answers() -> None:
    app = FastAPI()
    for path in ("/f", "/livez", "/docs.json", "/", "/mine"):
        app.get(path)(lambda: None)
    service = Service("s")
    service.api(JSON(), JSON(), name="f")(echo)
    service.mount_asgi_app(app)
    made = valid(service)
    assert list(made["paths"]) == ["/f", "/livez", "/healthz", "/readyz", "/metrics", "/mine"]
    assert list(made["paths"]["/f"]) == ["post"]


def test_mounted_application_that_cannot_describe_itself_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FastAPI):
        def openapi(self) -> dict[str, Any]:
            raise RuntimeError("no document")

    service = Service("s")
    service.mount_asgi_app(Broken(), "/broken")
    assert "/livez" in valid(service)["paths"]
    assert "The OpenAPI document of the application at /broken cannot be made" in caplog.text


def test_service_gives_its_document() -> None:
    service = Service("s")
    assert service.openapi_spec == document(service)
