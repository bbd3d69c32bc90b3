from __future__ import annotations

import logging

import pytest

from adapter.exceptions import InvalidArgument
from adapter.tag import Tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iris_clf", Tag("iris_clf")),
        ("iris_clf:latest", Tag("iris_clf", "latest")),
        (" iris-clf:v1.2 ", Tag("iris-clf", "v1.2")),
        (Tag("a", "b"), Tag("a", "b")),
    ],
)
def test_parse_when_the_tag_is_valid(text: str | Tag, expected: Tag) -> None:
    assert Tag.parse(text) == expected
    assert Tag.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be a model name"),
        ("a:", "ends with ':'"),
        ("a b", "cannot be a model name"),
        ("-a", "cannot be a model name"),
        ("a:b:c", "cannot be a version"),
        ("a/../b", "cannot be a model name"),
        ("x" * 64, "1 to 63"),
        ("a\n:b", "cannot be a model name"),
        (3, "A tag is a string"),
    ],
)
def test_parse_when_the_tag_is_not_valid(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Tag.parse(text)


def test_parse_when_there_are_capitals(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Tag.parse("IrisClf:V1") == Tag("irisclf", "v1")
    assert "'irisclf'" in caplog.text
    assert "'v1'" in caplog.text


def test_with_new_version_when_called_often() -> None:
    versions = {Tag("a").with_new_version().version or "" for _ in range(500)}
    assert len(versions) == 500
    assert {len(v) for v in versions} == {16}


def test_order_when_some_have_no_version() -> None:
    assert sorted([Tag("b"), Tag("a", "v2"), Tag("a"), Tag("a", "v1")]) == [
        Tag("a"),
        Tag("a", "v1"),
        Tag("a", "v2"),
        Tag("b"),
    ]


def test_order_when_the_other_is_no_tag() -> None:
    with pytest.raises(TypeError):
        _ = Tag("a") < "a"
