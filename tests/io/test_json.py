from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from collections import OrderedDict, namedtuple
from pathlib import PurePosixPath
from typing import Any

import attrs
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import TypedDict

from adapter.exceptions import BadInput, InternalServerError, InvalidArgument, UnsupportedMediaType
from adapter.io import JSON
from adapter.tensor import Array
from tests.io.wire import read, send


class Features(BaseModel):
    sepal_length: float
    sepal_width: float = 3.0


class Flower(BaseModel):
    features: Features
    names: list[str] = []


class WithArray(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    values: Array


class Movie(TypedDict):
    name: str


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@attrs.define
class Box:
    width: int


class Colour(enum.Enum):
    RED = "red"


class Level(str, enum.Enum):
    HIGH = "high"


class Unknown:
    """A class that pydantic cannot check."""


Pair = namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": [1, 2.5, null, true, "ü"]}', {"a": [1, 2.5, None, True, "ü"]}),
        ("null", None),
        ("3", 3),
        ("\ufeff[]", []),
        ('{"a": Infinity}', {"a": math.inf}),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_body_is_read_as_any_value(body: str, expected: Any) -> None:
    assert read(JSON(), body) == expected


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", 'The body is empty, but JSON was expected; send for example {"name": "value"}.'),
        (
            b"{'a': 1}",
            "The body is not JSON: Expecting property name enclosed in double quotes at line 1 column 2; "
            'send for example {"name": "value"}.',
        ),
        (
            b'"\\ud800"',
            'The body is not JSON: half a surrogate pair in a string; send for example {"name": "value"}.',
        ),
        (
            b'[NaN, "\\uD800"]',
            'The body is not JSON: half a surrogate pair in a string; send for example {"name": "value"}.',
        ),
        (
            b'"\xed\xa0\x80"',
            "The body is not UTF-8, as JSON must be: invalid continuation byte at byte 1; "
            'send for example {"name": "value"}.',
        ),
    ],
)
@pytest.mark.parametrize("model", [None, Features])
def test_body_is_refused_with_a_sentence_when_it_is_not_json(model: Any, body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(JSON(pydantic_model=model), body)
    assert str(raised.value) == sentence


def test_content_type_is_refused_when_it_is_no_json() -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json"):
        read(JSON(), "{}", "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (Features, '{"sepal_length": 5.9}', Features(sepal_length=5.9)),
        (Features, '\ufeff{"sepal_length": "5.9"}', Features(sepal_length=5.9)),
        (Flower, '{"features": {"sepal_length": 1}}', Flower(features=Features(sepal_length=1))),
        (Point, '{"x": 1}', Point(1.0)),
        (list[Features], '[{"sepal_length": 1}]', [Features(sepal_length=1)]),
        (Movie, '{"name": "Alien"}', {"name": "Alien"}),
    ],
)
def test_body_becomes_an_instance_of_the_model(model: Any, body: str, expected: Any) -> None:
    assert read(JSON(pydantic_model=model), body) == expected


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (
            Features,
            '{"sepal_length": "abc"}',
            "The body does not fit Features: sepal_length: Input should be a valid number, unable to parse string as "
            "a number, not 'abc'.",
        ),
        (
            Flower,
            '{"features": {}, "names": ["a", 3]}',
            "The body does not fit Flower: features.sepal_length: Field required; "
            "names.1: Input should be a valid string, not 3.",
        ),
        (list[int], '["a","b","c","d","e","f","g"]', "and 2 more."),
        (Features, "[1]", "The body does not fit Features: the whole: Input should be an object, not [1]."),
        (Features, "\ufeff[1]", "The body does not fit Features: the whole: Input should be"),
    ],
)
def test_body_is_refused_with_its_failing_fields(model: Any, body: str, sentence: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(JSON(pydantic_model=model), body)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_refusal_shows_the_sample_when_there_is_one() -> None:
    descriptor = JSON.from_sample(Features(sepal_length=5.9))
    with pytest.raises(BadInput, match=r'; send for example \{"sepal_length": 5.9, "sepal_width": 3.0\}\.'):
        read(descriptor, "{}")


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ({"a": 1}, '{"a":1}'),
        ({"label": "grün"}, '{"label":"grün"}'),
        (None, "null"),
        ({"a": None, "b": [1.5]}, '{"a":null,"b":[1.5]}'),
        ("null", '"null"'),
        ((1, 2), "[1,2]"),
        (2**70, str(2**70)),
        ({1: "a", False: "b", None: "c"}, '{"1":"a","false":"b","null":"c"}'),
        ({np.int64(3): 1, np.str_("x"): 2}, '{"3":1,"x":2}'),
        ({"x": np.float32(0.5), "y": np.int64(2), "z": np.bool_(True)}, '{"x":0.5,"y":2,"z":true}'),
        ({"x": np.array([[1, 2]]), "none": None}, '{"x":[[1,2]],"none":null}'),
        (np.array(["a", "b"]), '["a","b"]'),
        (np.arange(4).reshape(2, 2).T, "[[0,2],[1,3]]"),
        (np.array(1.5), "1.5"),
        (pd.DataFrame({"a": [1, 2]}), '{"a":{"0":1,"1":2}}'),
        (pd.Series([1, 2], index=["x", "y"]), '{"x":1,"y":2}'),
        (pd.Index(["x"]), '["x"]'),
        (Features(sepal_length=1), '{"sepal_length":1.0,"sepal_width":3.0}'),
        (
            [Flower(features=Features(sepal_length=1))],
            '[{"features":{"sepal_length":1.0,"sepal_width":3.0},"names":[]}]',
        ),
        (WithArray(values=np.array([1, 2])), '{"values":[1,2]}'),
        (Point(1.0), '{"x":1.0,"y":0.0}'),
        ({"point": Point(1.0), "none": None}, '{"point":{"x":1.0,"y":0.0},"none":null}'),
        (Box(3), '{"width":3}'),
        (Pair(1, 2), "[1,2]"),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        ([Colour.RED, Level.HIGH], '["red","high"]'),
        ({Colour.RED: Level.HIGH, 1: None}, '{"red":"high","1":null}'),
        ({3}, "[3]"),
        ({"a": 1}.values(), "[1]"),
        (range(3), "[0,1,2]"),
        (b"text", '"text"'),
        (PurePosixPath("a/b"), '"a/b"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (datetime.datetime(2020, 1, 2, 3, 4, 5), '"2020-01-02T03:04:05"'),
        (datetime.date(2020, 1, 2), '"2020-01-02"'),
        (pd.Timestamp("2020-01-02"), '"2020-01-02T00:00:00"'),
    ],
)
def test_result_is_sent_compactly(result: Any, body: str) -> None:
    sent = send(JSON(), result)
    assert sent.body.decode() == body
    assert sent.all("content-type") == ["application/json"]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"p": math.nan}, "it holds NaN or an infinity, which JSON does not have; return None in its place"),
        ([math.inf], "it holds NaN or an infinity"),
        (np.array([np.nan]), "it holds NaN or an infinity"),
        (np.float32("nan"), "it holds NaN or an infinity"),
        (Features(sepal_length=math.nan), "it holds NaN or an infinity"),
        (object, "the type 'type' has no JSON form"),
        ({"x": object()}, "the type 'object' has no JSON form"),
        ({(1, 2): 3}, r"\(1, 2\) cannot be a key of an object"),
        (1j, "the type 'complex' has no JSON form"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        ("\ud800", "a text is not valid Unicode"),
    ],
)
def test_result_is_an_error_of_the_service_when_it_is_no_json(result: Any, sentence: str) -> None:
    with pytest.raises(InternalServerError, match=f"The result cannot be written as JSON: ({sentence})"):
        send(JSON(), result)


def test_result_is_an_error_of_the_service_when_it_holds_itself() -> None:
    result: list[Any] = []
    result.append(result)
    with pytest.raises(InternalServerError, match="nested too deeply or holds itself"):
        send(JSON(), result)


def test_result_is_made_to_fit_when_a_model_is_given() -> None:
    descriptor = JSON(pydantic_model=Features)
    expected = b'{"sepal_length":1.0,"sepal_width":3.0}'
    assert send(descriptor, {"sepal_length": 1}).body == expected
    assert send(descriptor, Features(sepal_length=1)).body == expected
    with pytest.raises(InternalServerError, match="The result does not fit Features: sepal_length: Field required"):
        send(descriptor, {})


def test_result_is_written_as_its_model_says() -> None:
    class Account(BaseModel):
        password: SecretStr
        since: datetime.timedelta

    account = Account(password=SecretStr("x"), since=datetime.timedelta(days=1))
    assert send(JSON(), {"account": account}).body == b'{"account":{"password":"**********","since":"P1D"}}'


def test_result_has_the_names_that_its_schema_has() -> None:
    class Row(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        length: float = Field(alias="sepalLength")

    descriptor = JSON(pydantic_model=Row)
    assert list(descriptor.components()["Row"]["properties"]) == ["sepalLength"]
    assert send(descriptor, Row(sepalLength=1)).body == b'{"sepalLength":1.0}'
    assert read(descriptor, send(descriptor, {"length": 1}).body) == Row(sepalLength=1)


class Spaced(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        return {"re": o.real, "im": o.imag} if isinstance(o, complex) else super().default(o)


def test_encoder_of_ones_own_is_used() -> None:
    descriptor = JSON(json_encoder=Spaced)
    assert send(descriptor, {"ü": 1j}).body == '{"ü":{"re":0.0,"im":1.0}}'.encode()
    assert send(descriptor, Features(sepal_length=1)).body == b'{"sepal_length":1.0,"sepal_width":3.0}'
    with pytest.raises(InternalServerError, match="Object of type set is not JSON serializable"):
        send(descriptor, {1})
    with pytest.raises(InternalServerError, match="it holds NaN"):
        send(descriptor, math.nan)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda values: st.lists(values) | st.dictionaries(st.text(st.characters(codec="utf-8")), values),
)


@given(JSON_VALUES)
def test_value_comes_back_as_it_was_sent(value: Any) -> None:
    body = send(JSON(), value).body
    assert json.loads(body) == value
    assert read(JSON(), body) == value


@given(st.binary())
def test_body_is_read_or_refused_whatever_it_is(body: bytes) -> None:
    for descriptor in (JSON(), JSON(pydantic_model=Features)):
        with contextlib.suppress(BadInput):
            read(descriptor, body)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pydantic_model": Features(sepal_length=1)}, "pydantic_model is the class Features, not an instance of it"),
        ({"pydantic_model": 3}, "is no type that pydantic 2 can check"),
        ({"pydantic_model": {"type": "object"}}, "is no type that pydantic 2 can check"),
        ({"pydantic_model": Unknown}, "is no type that pydantic 2 can check"),
        ({"json_encoder": Spaced()}, r"json_encoder is a subclass of json\.JSONEncoder, not <"),
        ({"json_encoder": dict}, r"json_encoder is a subclass of json\.JSONEncoder"),
        ({"schema": Features}, "JSON has no argument 'schema': it is called pydantic_model"),
        ({"validate": True}, "JSON has no argument 'validate': a body is checked where a pydantic_model is given"),
    ],
)
def test_arguments_are_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        JSON(**arguments)


def test_validate_json_warns() -> None:
    with pytest.warns(DeprecationWarning, match="has no effect"):
        JSON(validate_json=True)


@pytest.mark.parametrize(
    ("sample", "model", "example"),
    [
        ({"a": 1}, None, {"a": 1}),
        ([1, 2], None, [1, 2]),
        ('{"a": 1}', None, {"a": 1}),
        (b"[1]", None, [1]),
        (Features(sepal_length=1), Features, {"sepal_length": 1.0, "sepal_width": 3.0}),
        (Point(1), Point, {"x": 1.0, "y": 0.0}),
    ],
)
def test_from_sample_takes_model_and_example(sample: Any, model: Any, example: Any) -> None:
    descriptor = JSON.from_sample(sample)
    assert (descriptor.pydantic_model, descriptor.example) == (model, example)
    assert descriptor.sample is not None


@pytest.mark.parametrize("sample", [3, None, "{", object(), {"a": object()}, {"a": math.nan}])
def test_from_sample_refuses_when_the_sample_is_no_json(sample: Any) -> None:
    with pytest.raises(BadInput):
        JSON.from_sample(sample)


@pytest.mark.parametrize(
    ("descriptor", "schema", "components"),
    [
        (JSON(), {"type": "object"}, []),
        (JSON.from_sample([1]), {"type": "array", "items": {}, "example": [1]}, []),
        (JSON(pydantic_model=Features), {"$ref": "#/components/schemas/Features"}, ["Features"]),
        (
            JSON(pydantic_model=list[Flower]),
            {"type": "array", "items": {"$ref": "#/components/schemas/Flower"}},
            ["Features", "Flower"],
        ),
        (
            JSON.from_sample({"x": 1.0}, pydantic_model=Point),
            {"allOf": [{"$ref": "#/components/schemas/Point"}], "example": {"x": 1.0, "y": 0.0}},
            ["Point"],
        ),
    ],
)
def test_schema_refers_to_components(descriptor: JSON, schema: dict[str, Any], components: list[str]) -> None:
    assert descriptor.schema() == schema
    assert sorted(descriptor.components()) == components


def test_components_refer_to_each_other() -> None:
    flower = JSON(pydantic_model=Flower).components()["Flower"]
    assert flower["properties"]["features"] == {"$ref": "#/components/schemas/Features"}


@pytest.mark.parametrize(
    ("model", "expected"), [(None, object), (Features, Features), (Point, Point), (Movie, dict), (list[int], object)]
)
def test_python_type_is_what_the_function_gets(model: Any, expected: type) -> None:
    assert JSON(pydantic_model=model).python_type() is expected
