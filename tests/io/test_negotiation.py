from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.io.base import accept
from adapter.io.negotiation import negotiated

JSON, CSV, PARQUET = SENDS = ("application/json", "text/csv", "application/vnd.apache.parquet")


def ask(header: str, default: str = JSON) -> str:
    token = accept.set(header)
    try:
        return negotiated(SENDS, default)
    finally:
        accept.reset(token)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV ; q=0.3", CSV),
        ("text/*", CSV),
        ("application/vnd.apache.parquet", PARQUET),
        ("text/csv, application/json;q=0.9", CSV),
        ("text/csv;q=0.2, */*", JSON),
        ("text/csv, */*", CSV),
        ("text/csv, application/json", JSON),
        ("text/csv;q=0", JSON),
        ("application/json;q=0, */*;q=0.1", CSV),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("text/html", JSON),
        ("text/csv;q=high", CSV),
        ("text/csv;q=nan, application/json;q=0.5", CSV),
        (",;,", JSON),
    ],
)
def test_content_type_is_what_the_client_prefers(header: str, expected: str) -> None:
    assert ask(header) == expected


def test_default_is_sent_when_all_are_as_good() -> None:
    assert ask("*/*;q=0.5", CSV) == CSV
    assert ask("text/html", PARQUET) == PARQUET
    assert ask("application/json, text/plain, */*", CSV) == JSON


@given(st.text())
def test_any_header_leads_to_a_content_type(header: str) -> None:
    assert ask(header) in SENDS
