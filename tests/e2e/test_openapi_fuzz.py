"""The OpenAPI document is true of every descriptor: requests made from it and their answers, by schemathesis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.schemas import BaseSchema

from tests.e2e.conftest import Serve, Served
from tests.e2e.services import described

SERVICES = Path(described.__file__).parent
EXAMPLES = 12
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
ROUTES = {api.name: api.route for api in described.svc.apis.values()}
DOCUMENT = described.svc.openapi_spec
PATHS = [path for path, item in DOCUMENT["paths"].items() if "post" in item]

# these describe what they expect and enforce nothing: what does not fit goes through them as it is, and comes back
FREE = ("/json", "/json_sample", "/array", "/array_sample", "/array_text", "/frame", "/frame_sample", "/series_sample")
# schemathesis holds each event against the schema of the whole text
STREAMED = ("/events",)

load_all_checks()
CONFORM: list[Any] = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
    )
]
FULLY = [*CONFORM, CHECKS.get_one("response_schema_conformance")]


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve("described.py:svc", "--development", working_dir=SERVICES)


@pytest.fixture(scope="module")
def schema(served: Served) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/docs.json")


def test_document_is_valid(served: Served) -> None:
    document = served.get("/docs.json").json()
    OpenAPIV31SpecValidator(document).validate()
    assert document == DOCUMENT


@pytest.mark.parametrize(
    ("path", "mode"),
    # any bytes at all are a file
    [(path, mode) for path in PATHS for mode in MODES if (path, mode) != ("/file", GenerationMode.NEGATIVE)],
)
def test_no_request_of_the_document_is_an_error_of_the_server(
    schema: BaseSchema, served: Served, path: str, mode: GenerationMode
) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path]["POST"].as_strategy(mode))
    def ask(case: Case[Any]) -> None:
        response = case.call(base_url=served.url, timeout=30)
        case.validate_response(response, checks=CONFORM if path in (*FREE, *STREAMED) else FULLY)
        assert response.headers["x-adapter-request-id"]
        if response.status_code >= 400:
            assert list(response.json()) in (["error"], ["error", "detail"])  # the second where pydantic names fields

    ask()


def examples() -> list[tuple[str, str, Any]]:
    return [
        (path, name, media["schema"]["example"])
        for path in PATHS
        for name, media in DOCUMENT["paths"][path]["post"]["requestBody"]["content"].items()
        if "example" in media["schema"]
    ]


@pytest.mark.parametrize(("path", "content_type", "example"), examples())
def test_examples_of_the_document_are_served(served: Served, path: str, content_type: str, example: Any) -> None:
    body = json.dumps(example) if content_type == "application/json" else example
    answer = served.post(path, content=body.encode(), headers={"content-type": content_type})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, content_type)
    assert (answer.json() if content_type == "application/json" else answer.text) == example


def test_there_are_examples_of_every_sample() -> None:
    assert {path.strip("/") for path, _, _ in examples()} == {name for name in described.ECHOES if "sample" in name}
