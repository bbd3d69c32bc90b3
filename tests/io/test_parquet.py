from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from adapter.exceptions import BadInput, InternalServerError
from adapter.io.parquet import read_parquet, write_parquet


def written(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def long_texts(rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 1_000_000]))


def test_frame_comes_back_as_it_was_written() -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2],
            "x": [0.1, None],
            "s": ["ü", None],
            "t": pd.Series(["2020-01-02", None], dtype="datetime64[ns]"),
            "c": pd.Categorical(["a", "b"]),
            "l": [[1, 2], [3]],
        },
        index=pd.Index(["p", "q"], name="key"),
    )
    back = read_parquet(write_parquet(frame))
    back["l"] = back["l"].map(list)
    pd.testing.assert_frame_equal(back, frame)


@pytest.mark.parametrize(
    "columns",
    [
        {"a": long_texts(200_000)},
        {"a": pa.ListArray.from_arrays(pa.array([0, 200_000], pa.int32()), long_texts(200_000))},
        {"a": pa.StructArray.from_arrays([long_texts(200_000)], ["b"])},
        {"a": pa.nulls(100_000_000)},
    ],
    ids=["texts", "lists of texts", "structs of texts", "nulls"],
)
def test_file_is_refused_when_it_holds_far_more_than_it_is_long(columns: dict[str, Any]) -> None:
    body = written(columns)
    assert len(body) < 1_000_000
    with pytest.raises(BadInput, match=r"is a Parquet file of \d+ bytes that holds at least \d{9,} of data"):
        read_parquet(body)


def test_texts_are_measured_when_they_might_be_too_long() -> None:
    frame = read_parquet(written({"a": long_texts(1), "b": ["x"]}))
    assert len(frame["a"][0]) == 1_000_000
    rows = read_parquet(written({"a": [f"{n % 100:0100d}" for n in range(60_000)], "b": [["y"]] * 60_000}))
    assert rows["a"][59_999] == f"{99:0100d}"


@pytest.mark.parametrize("body", [b"", b"[1]", b"PAR1" + bytes(100) + b"PAR1", written({"a": [1, 2]})[:-9] + bytes(9)])
def test_body_is_refused_with_a_sentence_when_it_is_no_file(body: bytes) -> None:
    with pytest.raises(BadInput, match=r"^The body is no Parquet file that can be read: .*[^.]\.$"):
        read_parquet(body)


def test_body_is_refused_when_a_statistic_in_its_footer_is_damaged() -> None:
    """What pyarrow shows of such a column ends the process."""
    body = written({"a": [[1, 2], [3]], "s": [{"b": "x"}, None]})
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    for place in range(footer, len(body) - 8):
        with contextlib.suppress(BadInput):
            read_parquet(body[:place] + bytes([body[place] ^ 3]) + body[place + 1 :])


def test_frame_is_an_error_of_the_service_when_it_cannot_be_written() -> None:
    with pytest.raises(InternalServerError, match="The result cannot be written as Parquet"):
        write_parquet(pd.DataFrame({"a": [1, "x", {2}]}))


WITHOUT_PYARROW = """
import asyncio, sys
sys.modules["pyarrow"] = None
import pandas as pd
from adapter.exceptions import MissingDependencyException, UnsupportedMediaType
from adapter.io import PandasDataFrame
from adapter.io.base import accept
from tests.io.wire import read, send

descriptor = PandasDataFrame()
assert "application/vnd.apache.parquet" not in descriptor.sends
accept.set("application/vnd.apache.parquet")
assert send(descriptor, [{"a": 1}]).body == b'[{"a":1}]'
for make, error in (
    (lambda: PandasDataFrame(default_format="parquet"), MissingDependencyException),
    (lambda: read(descriptor, b"PAR1", "application/vnd.apache.parquet"), UnsupportedMediaType),
):
    try:
        make()
    except error as caught:
        assert "pyarrow is not installed, and Parquet needs it" in str(caught)
        assert "pip install 'triton-adapter[parquet]'" in str(caught)
    else:
        sys.exit("no error")
"""


def test_absence_of_pyarrow_is_told_in_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYARROW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
