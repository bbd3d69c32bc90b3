"""Examples of calls: their text, and that they run is shown in tests/cli/test_server.py."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, HttpUrl

from adapter.endpoint import Service
from adapter.endpoint.documenter import DocumentationFormat, generate_usage_examples
from adapter.endpoint.service import endpoints_of
from adapter.endpoint.types import Audio, Image, Video
from adapter.exceptions import InvalidArgument


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Box(BaseModel):
    name: Annotated[str, Field(min_length=8, max_length=9)]
    corner: tuple[int, float]
    inner: list[Box] | None = None


def service_of(kind: Any) -> Service:
    def infer(self: Any, value: kind, other: int = 3) -> str:
        return ""

    infer.__annotations__["value"] = kind
    return type("Made", (Service,), {"infer": infer})()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind",
    [
        *(str, int, float, bool, bytes, Any, dict[str, int], list[str], set[int], tuple[int, str], tuple[int, ...]),
        *(Color, Literal["a", 3], int | None, int | str, Image, Audio, Video, Box, list[Box], HttpUrl),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, Decimal, dict[str, Any]),
        Annotated[int, Field(ge=7, le=9)],
        Annotated[int, Field(gt=7, lt=9, multiple_of=2)],
        Annotated[float, Field(gt=0, lt=1)],
        Annotated[float, Field(lt=-3)],
        Annotated[list[int], Field(min_length=3)],
        Annotated[str, Field(pattern="^x+$", examples=["xx"])],
    ],
    ids=str,
)
def test_an_example_is_valid(kind: Any) -> None:
    service = service_of(kind)
    made = generate_usage_examples(service, DocumentationFormat.CURL)
    body = json.loads(made.render().partition("<<'EOF'\n")[2].partition("\nEOF")[0])
    assert list(body) == ["value"]  # what has a default is left out
    (infer,) = endpoints_of(service)
    assert infer.input is not None
    infer.input.model_validate(body)
    compile(generate_usage_examples(service, DocumentationFormat.PYTHON).render(), "example.py", "exec")


def test_an_example_of_ones_own_comes_first() -> None:
    made = generate_usage_examples(
        service_of(Annotated[str, Field(examples=["it's '''me''' {{x}}", "b"])]), DocumentationFormat.PYTHON
    )
    assert made.template_hash["fields"] == {"value": repr("it's '''me''' {{x}}")}
    assert "{{{fields.value}}}" in made.generated_template
    compile(made.render(), "example.py", "exec")


def test_a_type_without_an_example_asks_for_one() -> None:
    with pytest.raises(InvalidArgument, match=r"Field\(examples="):
        generate_usage_examples(service_of(Annotated[str, Field(pattern="^x+$")]), DocumentationFormat.CURL)
