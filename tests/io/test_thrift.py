from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.io.thrift import read_struct


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"\x00", {}),
        (b"\x15\x04\x16\x03\x00", {1: 2, 2: -2}),
        (b"\x06\x80\x01\xac\x02\x00", {64: 150}),
        (b"\x11\x12\x00", {1: True, 2: False}),
        (b"\x18\x02ab\x00", {1: b"ab"}),
        (b"\x19\x25\x02\x04\x00", {1: [1, 2]}),
        (b"\x19\xf5\x10" + b"\x02" * 16 + b"\x00", {1: [1] * 16}),
        (b"\x1c\x15\x02\x00\x15\x04\x00", {1: {1: 1}, 2: 2}),
        (b"\x1b\x01\x58\x02\x01x\x00", {1: [(1, b"x")]}),
        (b"\x17" + bytes(8) + b"\x00", {1: bytes(8)}),
    ],
)
def test_struct_is_read(data: bytes, fields: dict[int, Any]) -> None:
    assert read_struct(data) == fields


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", IndexError),
        (b"\x15", IndexError),
        (b"\x18\x7fab\x00", IndexError),
        (b"\x15" + b"\xff" * 11 + b"\x00", ValueError),
        (b"\x1d\x00", ValueError),
        (b"\x19\xf1\xff\xff\xff\xff\x7f", IndexError),
        (b"\x1c" * 100_000, RecursionError),
    ],
)
def test_struct_is_refused_when_it_is_broken(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_struct(data)


@given(st.binary())
def test_struct_is_read_or_refused_whatever_it_is(data: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError, RecursionError):
        read_struct(data)
