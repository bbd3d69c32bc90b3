from __future__ import annotations

import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter import exceptions
from adapter.exceptions import (
    AdapterError,
    InvalidArgument,
    NotFound,
    PayloadTypeError,
    RemoteException,
    ServiceUnavailable,
    TooManyRequests,
    message_of,
    one_line,
    raised,
    sentence,
    status_of,
    told,
    without_folders,
)


class Teapot(NotFound):
    error_code = 418


class Strange(AdapterError):
    error_code = "odd"  # type: ignore[assignment]  # on purpose


class Plain(ServiceUnavailable):
    """A class that does not call the constructor of its base."""

    def __init__(self) -> None:
        pass


def travelled(error: AdapterError) -> AdapterError:
    return raised(*json.loads(json.dumps(told(error))))


KINDS = [
    cls
    for cls in vars(exceptions).values()
    if isinstance(cls, type) and issubclass(cls, AdapterError) and cls is not exceptions.MissingDependencyException
]


@pytest.mark.parametrize("cls", KINDS)
def test_an_error_arrives_as_it_left(cls: type[AdapterError]) -> None:
    found = travelled(cls("no tea"))
    assert type(found) is cls
    assert (str(found), found.message, found.error_code) == ("no tea", "no tea", cls.error_code)
    assert getattr(found, "retry_after", None) == getattr(cls("x"), "retry_after", None)


def test_a_library_that_is_missing_there_is_named_here() -> None:
    found = travelled(exceptions.MissingDependencyException("torch", extra="pytorch"))
    assert type(found) is exceptions.MissingDependencyException
    assert str(found).startswith("torch is not installed")


@pytest.mark.parametrize(
    ("error", "cls", "status"),
    [
        (Teapot("short"), NotFound, 418),
        (Strange("odd"), AdapterError, 500),
        (Plain(), ServiceUnavailable, 503),
        (PayloadTypeError("a set"), TypeError, 500),
    ],
)
def test_an_error_of_another_class_arrives_as_its_nearest_one(
    error: AdapterError, cls: type[Exception], status: int
) -> None:
    found = travelled(error)
    assert isinstance(found, cls)
    assert status_of(found) == status
    assert str(found) == message_of(error)


def test_the_time_to_try_again_travels() -> None:
    for seconds in (0, 0.0004, 2.5, 1e9):
        found = travelled(TooManyRequests("later", retry_after=seconds))
        assert isinstance(found, TooManyRequests)
        assert found.retry_after == pytest.approx(seconds, abs=0.001)
    for odd in (float("inf"), float("nan"), -3.0, "soon"):
        found = travelled(ServiceUnavailable("later", retry_after=odd))  # type: ignore[arg-type]  # on purpose
        assert getattr(found, "retry_after", None) in (1.0, 0.0)


@pytest.mark.parametrize("name", ["", "Nothing", "told", "math", "__name__", "_FOLDERS", "HTTPStatus"])
def test_a_name_that_is_no_class_of_errors_is_read_by_its_status(name: str) -> None:
    assert type(raised(418, name, "x")) is InvalidArgument
    assert type(raised(503, name, "x")) is RemoteException


def test_where_files_lie_is_not_told_of_code_that_failed() -> None:
    text = "no '/srv/models v1/x.bin' at /srv/a/b.txt:3, nor (/tmp/é/c)"
    assert told(RemoteException(text))[2] == "no '…/models v1/x.bin' at …/b.txt:3, nor (…/c)"
    assert told(NotFound(text))[2] == text  # what a person wrote for the client


@pytest.mark.parametrize(
    "text", ["", "3 km/h", "a/b/c", "http://host/a/b?c=/d", "grpc://h:1/x/y", "and/or", "/classify", "1 / 2", "//x"]
)
def test_what_is_no_path_stays(text: str) -> None:
    assert without_folders(text) == text


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert line.splitlines() in ([line], [])
    assert sentence(ValueError(text)).isprintable()


@given(st.text(max_size=4000) | st.text("ü%☕\n", min_size=1000, max_size=4000))
def test_what_is_told_fits_into_a_header(text: str) -> None:
    message = told(NotFound(text))[2]
    assert len(urllib.parse.quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")) <= 7000 + 9
    assert message.rstrip("…") in text.replace("\0", "")
    assert len(message) <= 2000
