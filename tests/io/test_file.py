from __future__ import annotations

import asyncio
import csv
import gc
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnsupportedMediaType
from adapter.io import File, from_spec
from adapter.io.upload import IN_MEMORY_BYTES
from tests.io.forms import form, written
from tests.io.wire import read, request, send

LARGE = bytes(range(256)) * (IN_MEMORY_BYTES // 256 + 1)
FILE = 'content-disposition: form-data; name="file"; filename="a.bin"'


# ---- in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [None, "application/pdf", "image/png", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", [b"", b"%PDF", LARGE])
def test_body_is_read_as_a_file_whatever_it_is(content_type: str | None, body: bytes) -> None:
    file = read(File(), body, content_type)
    assert (file.name, file.content_type, file.size) == ("<request body>", content_type or "", len(body))
    assert file.in_memory is (len(body) < IN_MEMORY_BYTES)
    assert file.read() == body
    assert (file.seek(1), file.read(2)) == (1, body[1:3])


@pytest.mark.parametrize("body", [b"%PDF", LARGE])
def test_first_file_of_a_form_is_read(body: bytes) -> None:
    sent, content_type = form(files=[("a", ("a.pdf", body)), ("b", ("b.pdf", b"second"))], data={"title": "no file"})
    file = read(File(), sent, content_type)
    assert (file.name, file.content_type, file.size, file.read()) == ("a.pdf", "application/pdf", len(body), body)


def test_first_part_of_the_mime_type_is_read_of_a_form() -> None:
    sent, content_type = form(files=[("a", ("a.png", b"PNG")), ("b", ("b.pdf", b"%PDF")), ("c", ("c.pdf", b"second"))])
    assert read(File(mime_type="application/pdf"), sent, content_type).read() == b"%PDF"
    with pytest.raises(BadInput, match=r"No part .* is the file: send one of the type text/csv; the form has 'a', 'b'"):
        read(File(mime_type="text/csv"), sent, content_type)


@pytest.mark.parametrize(
    "head", [FILE, FILE + "\r\ncontent-type: application/octet-stream", 'content-disposition: form-data; name="file"']
)
def test_part_whose_type_is_not_told_may_be_the_file(head: str) -> None:
    sent, content_type = written((head, b"%PDF"))
    assert read(File(mime_type="application/pdf"), sent, content_type).read() == b"%PDF"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("a.bin", "a.bin"),
        ("../../etc/passwd", "passwd"),
        ("C:\\\\Users\\\\me\\\\a.bin", "a.bin"),
        ("ünï 世界.bin", "ünï 世界.bin"),
        ("", "file"),
        ("..//", "file"),
        ("a\0b\x07.bin", "ab.bin"),
    ],
)
def test_name_is_that_of_the_client_without_folders(filename: str, name: str) -> None:
    sent, content_type = written((f'content-disposition: form-data; name="file"; filename="{filename}"', b"x"))
    assert read(File(), sent, content_type).name == name


def test_content_type_is_refused_when_it_is_not_the_mime_type() -> None:
    with pytest.raises(UnsupportedMediaType, match=r"'text/plain'.*'content-type: application/pdf'"):
        read(File(mime_type="application/pdf"), b"x", "text/plain")
    assert read(File(mime_type="application/pdf"), b"x", None).read() == b"x"
    assert read(File(mime_type="application/pdf"), b"x", "Application/PDF; version=2").read() == b"x"


def test_file_is_one_for_every_library() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("a.csv", "x,y\n1,2\n")
    with zipfile.ZipFile(read(File(), archive.getvalue(), None)) as reading, reading.open("a.csv") as inner:
        assert inner.read() == b"x,y\n1,2\n"
    text = io.TextIOWrapper(read(File(), "x,ü\n1,2\n".encode(), None), encoding="utf-8")
    assert list(csv.reader(text)) == [["x", "ü"], ["1", "2"]]


def test_large_file_is_on_disk_only_while_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = read(File(), LARGE, None)
    assert not file.in_memory
    descriptor = Path(f"/proc/self/fd/{file.fileno()}")
    assert descriptor.exists()
    assert not list(tmp_path.iterdir())  # without a name: it goes with the process, however that ends
    del file
    gc.collect()
    assert not descriptor.exists()


def test_upload_that_breaks_off_leaves_nothing_open() -> None:
    sent, content_type = form(files={"file": ("a.bin", LARGE)})
    for body in (sent[:-10], sent[:-4000] + b"\r\n--"):
        with pytest.raises(BadInput, match="it ends before its closing boundary"):
            read(File(), body, content_type)
    gc.collect()  # a file left open is a warning, and that an error here


@settings(deadline=None)
@given(
    body=st.binary(max_size=300),
    content_type=st.sampled_from([None, "a/b", "multipart/form-data", "multipart/form-data; boundary=b"]),
    prefix=st.sampled_from([b"", b"--b\r\n", b"--b\r\n" + FILE.encode() + b"\r\n\r\n"]),
)
def test_any_bytes_are_a_file_or_the_fault_of_their_sender(
    body: bytes, content_type: str | None, prefix: bytes
) -> None:
    try:
        read(File(), prefix + body, content_type)
    except AdapterError as error:
        assert 400 <= error.error_code < 500  # noqa: PT017  # either is right


# ---- out ------------------------------------------------------------------------------------------------------------


class Slow:
    """A file that gives a little at a time and cannot tell how much there is."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = [*pieces]
        self.closed = False

    def read(self, size: int) -> Any:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("result", [b"%PDF", bytearray(b"%PDF"), memoryview(b"%PDF")])
def test_bytes_are_sent(result: Any) -> None:
    sent = send(File(mime_type="application/pdf"), result)
    assert (sent.body, sent.all("content-type"), sent.all("content-length")) == (b"%PDF", ["application/pdf"], ["4"])


def test_open_file_is_streamed_from_where_it_stands_and_closed() -> None:
    file = io.BytesIO(b"ab" + LARGE)
    file.seek(2)
    sent = send(File(), file)
    assert (len(sent.chunks) > 2, sent.body == LARGE, file.closed) == (True, True, True)
    assert sent.all("content-length") == [str(len(LARGE))]
    assert sent.all("content-type") == ["application/octet-stream"]


def test_open_file_without_a_length_is_streamed_and_closed() -> None:
    file = Slow(b"a", b"bc", b"d")
    sent = send(File(), file)
    assert (sent.chunks, sent.all("content-length"), file.closed) == ([b"a", b"bc", b"d"], [], True)


def test_content_type_is_sent_when_the_function_takes_the_context() -> None:
    ctx = Context({}, request())
    ctx.response.headers["content-disposition"] = 'attachment; filename="a.pdf"'
    for result in (b"%PDF", io.BytesIO(b"%PDF")):
        sent = send(File(mime_type="application/pdf"), result, ctx)
        assert sent.all("content-type") == ["application/pdf"]
        assert sent.all("content-disposition") == ['attachment; filename="a.pdf"']
        assert sent.body == b"%PDF"


def test_file_is_closed_when_the_client_goes_away() -> None:
    file = Slow(b"a", b"b", b"c")

    async def leave_early() -> None:
        response = await File().to_http_response(file)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def stuck(message: Any) -> None:
            await asyncio.Event().wait()

        await response({"type": "http"}, receive, stuck)

    asyncio.run(leave_early())
    assert file.closed


@pytest.mark.parametrize("result", [None, "text", 3, ["a"], Path("a.pdf")])
def test_result_is_an_error_of_the_service_when_it_is_no_file(result: Any) -> None:
    with pytest.raises(InternalServerError, match=r"The result is a \w+ instead of bytes or a file open"):
        send(File(), result)


def test_result_is_an_error_of_the_service_when_it_is_open_for_text() -> None:
    file = io.StringIO("text")
    with pytest.raises(InternalServerError, match="gave a str instead of bytes: open it with mode 'rb'"):
        send(File(), file)
    assert file.closed


# ---- the descriptor -------------------------------------------------------------------------------------------------


def test_argument_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"The kind of File is 'binaryio', not 'textio'; adapter\.io\.Text reads"):
        File(kind="textio")  # type: ignore[arg-type]  # that is the point
    for mime_type in ("pdf", "audio/*", "", "a/b; c=d", "a/b\r\nx: y"):
        with pytest.raises(InvalidArgument, match="is no content type: write for example 'application/pdf'"):
            File(mime_type=mime_type)


def test_from_sample_takes_the_mime_type_from_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF")
    assert File.from_sample(path).mime_type == "application/pdf"
    assert File.from_sample(str(path), mime_type="text/plain").mime_type == "text/plain"
    assert File.from_sample(b"%PDF").mime_type == "application/octet-stream"
    with path.open("rb") as file:
        assert File.from_sample(file).sample is file
    for sample, message in ((tmp_path / "b.pdf", r"b\.pdf' is no file"), (5, "takes a path, bytes or an open file")):
        with pytest.raises(BadInput, match=message):
            File.from_sample(sample)


def test_spec_round_trips() -> None:
    spec = {"id": "adapter.io.File", "args": {"mime_type": "application/pdf"}}
    assert File(mime_type="application/pdf").to_spec() == spec
    assert from_spec(spec).to_spec() == spec
    assert from_spec(File().to_spec()).accepts == File().accepts
    assert File().schema() == {"type": "string", "format": "binary"}
