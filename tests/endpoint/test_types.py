"""Media: base64, files, Pillow images, and what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from adapter.endpoint.types import Audio, Image, Media, MediaUrl, Video
from adapter.exceptions import InvalidArgument, MissingDependencyException


@given(st.binary(max_size=200))
def test_content_comes_back_from_base64_and_json(content: bytes) -> None:
    media = Media.from_bytes(content)
    again = Media.model_validate_json(media.model_dump_json())
    assert again.to_bytes() == content
    assert Media(media.to_base64()).to_bytes() == content  # by position, too
    assert Media.from_base64(media.to_base64().decode()) == media


def test_base64_may_have_line_breaks() -> None:
    assert Media(data=base64.encodebytes(b"x" * 100)).to_bytes() == b"x" * 100


@pytest.mark.parametrize("data", ["a", "§", "aGVsbG8", "=", {"url": "nowhere"}, None, 3])
def test_what_is_neither_base64_nor_a_url_is_refused(data: object) -> None:
    with pytest.raises(ValidationError):
        Media.model_validate({"data": data})


class Body(BaseModel):
    image: Image


@pytest.mark.parametrize(
    ("body", "where"), [({"image": {}}, ("image", "data")), ({"image": {"data": "!"}}, ("image", "data"))]
)
def test_an_error_tells_where_it_is(body: dict[str, object], where: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    assert caught.value.errors()[0]["loc"] == where


def test_files_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    Media.from_file(tmp_path / "in").to_file(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"
    with pytest.raises(InvalidArgument, match=r"missing.png' does not exist"):
        Media.from_file(tmp_path / "missing.png")


@pytest.mark.parametrize("answer", [{"image": {"data": "eA=="}}, {"output": {"image": {"data": "eA=="}}}])
def test_media_is_read_from_an_answer(answer: dict[str, object]) -> None:
    image = Image.from_endpoint_response(answer, "image")
    assert isinstance(image, Image)
    assert image.to_bytes() == b"x"
    with pytest.raises(InvalidArgument, match="no 'sound'"):
        Image.from_endpoint_response(answer, "sound")


def test_pillow_images_come_back() -> None:
    picture = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    image = Image.from_pil(picture, "PNG")
    assert image.is_valid()
    assert np.array_equal(np.asarray(image.to_pil()), np.asarray(picture))


def test_what_is_no_image_is_told() -> None:
    assert not Image.from_bytes(b"hello").is_valid()
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(buffer, "PNG")
    assert not Image.from_bytes(buffer.getvalue()[:60]).is_valid()
    with pytest.raises(InvalidArgument, match="not an image"):
        Image.from_bytes(b"hello").to_pil()


def test_a_mode_that_a_format_lacks_is_told() -> None:
    with pytest.raises(InvalidArgument, match="mode 'RGBA' cannot be written as JPEG"):
        Image.from_pil(PIL.Image.new("RGBA", (2, 2)))


def test_sound_comes_back() -> None:
    samples = np.sin(np.linspace(0, 20, 800)).astype(np.float32) / 2
    found, rate = Audio.from_numpy(samples, 8000).to_numpy()
    assert rate == 8000
    assert np.allclose(found, samples, atol=1e-4)
    assert not Audio.from_bytes(b"no sound").is_valid()


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(MissingDependencyException, match=r"triton-adapter\[media\]"):
        Video.from_numpy([np.zeros((16, 16, 3), np.uint8)])


def test_a_url_stays_a_url() -> None:
    media = Media.from_url("https://example.com/a.png")
    assert isinstance(media.data, MediaUrl)
    assert media.model_dump() == {"data": {"url": "https://example.com/a.png"}}


@pytest.mark.parametrize("kind", [Media, Image, Audio, Video])
def test_the_example_in_the_schema_is_valid(kind: type[Media]) -> None:
    (example,) = kind.model_json_schema()["examples"]
    assert kind.model_validate(example).to_bytes()
