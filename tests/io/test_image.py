from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageOps

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, InvalidArgument, UnsupportedMediaType
from adapter.io import Image, from_spec
from tests.io.forms import form, written
from tests.io.wire import read, request, send

LOSSLESS = ["PNG", "BMP", "TIFF", "PPM"]
FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "JPEG2000": "image/jp2",
    "ICO": "image/x-icon",
    "PPM": "image/x-portable-anymap",
}


def pixels(width: int = 8, height: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(format_: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 4), **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels(*size)).convert(mode).save(file, format_, **options)
    return file.getvalue()


def sent_image(sent: Any) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(sent.body))


def vast_png(width: int, height: int) -> bytes:
    """A small file that says it is a vast image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )


# ---- in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("typed", [True, False])
def test_image_of_every_common_format_is_read_with_and_without_its_content_type(format_: str, typed: bool) -> None:
    size = (16, 16) if format_ == "ICO" else (8, 4)
    image = read(Image(), picture(format_, size=size), FORMATS[format_] if typed else None)
    assert (image.size, image.mode, image.format) == (size, "RGB", format_)
    if format_ in LOSSLESS:
        assert (np.asarray(image) == pixels()).all()


@pytest.mark.parametrize(
    "content_type",
    ["image/png; x=y", "IMAGE/PNG", "image/x-png", "application/octet-stream", "application/x-www-form-urlencoded"],
)
def test_content_type_that_is_another_name_or_says_nothing_is_fine(content_type: str) -> None:
    assert read(Image(), picture(), content_type).size == (8, 4)


def test_bytes_tell_the_format_when_the_content_type_lies() -> None:
    assert read(Image(), picture("PNG"), "image/jpeg").format == "PNG"


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "video/mpeg", "image/svg+xml"])
def test_content_type_is_refused_when_it_is_no_image_that_is_read(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="send it with the header 'content-type: image/png'"):
        read(Image(mime_type="image/png"), picture(), content_type)


@pytest.mark.parametrize(("came", "wanted"), [("RGBA", "RGB"), ("P", "RGB"), ("L", "RGB"), ("CMYK", "RGB")])
@pytest.mark.parametrize("pilmode", ["RGB", "L", "RGBA", "F", "CMYK", "1", "HSV"])
def test_pilmode_is_the_mode_of_what_is_read(came: str, wanted: str, pilmode: str) -> None:
    body = picture("TIFF", came)
    assert read(Image(), body, "image/tiff").mode == wanted
    assert read(Image(pilmode=pilmode), body, "image/tiff").mode == pilmode
    assert read(Image(pilmode=None), body, "image/tiff").mode == came


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_image_of_16_bits_keeps_its_range_when_it_is_converted(format_: str) -> None:
    file = io.BytesIO()
    wide = PIL.Image.fromarray(np.array([[0, 30000, 65535]], dtype=np.uint16))
    wide.save(file, format_)
    assert np.asarray(read(Image(pilmode="L"), file.getvalue(), None)).tolist() == [[0, 117, 255]]
    assert np.asarray(read(Image(pilmode="I"), file.getvalue(), None)).tolist() == [[0, 30000, 65535]]
    assert np.asarray(sent_image(send(Image("L", "image/png"), wide))).tolist() == [[0, 117, 255]]


@pytest.mark.parametrize("pilmode", ["RGB", "L", "RGBA"])
def test_palette_with_transparency_is_converted_without_a_warning(pilmode: str) -> None:
    body = picture("PNG", "P", transparency=bytes([0, 128, 255]))
    assert read(Image(pilmode=pilmode), body, "image/png").mode == pilmode


def test_orientation_stays_for_the_function_to_apply() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = read(Image(pilmode="L"), picture("JPEG", exif=exif), "image/jpeg")
    assert image.size == (8, 4)
    assert ImageOps.exif_transpose(image).size == (4, 8)


def test_first_part_that_may_be_an_image_is_read_of_a_form() -> None:
    body, content_type = form(
        files={"notes": ("a.txt", b"no image"), "first": ("a.png", picture()), "second": ("b.png", b"not read")},
        data={"title": "text"},
    )
    assert read(Image(), body, content_type).size == (8, 4)


@pytest.mark.parametrize(
    "parts",
    [
        [('content-disposition: form-data; name="image"; filename="a"', picture())],
        [('content-disposition: form-data; name="image"', picture())],
        [
            ('content-disposition: form-data; name="title"', b"text"),
            ('content-disposition: form-data; name="x"\r\ncontent-type: application/octet-stream', picture()),
        ],
    ],
)
def test_part_whose_type_is_not_told_may_be_the_image(parts: list[tuple[str, bytes]]) -> None:
    body, content_type = written(*parts)
    assert read(Image(), body, content_type).size == (8, 4)


def test_form_without_an_image_is_refused() -> None:
    body, content_type = form(files={"notes": ("a.txt", b"text")})
    with pytest.raises(
        BadInput, match=r"No part of the form is an image: send one of the type image/jpeg; the form has 'notes'"
    ):
        read(Image(), body, content_type)


def test_allowed_mime_types_are_the_formats_that_are_read() -> None:
    descriptor = Image(allowed_mime_types=["image/png", "image/jpg"])
    assert read(descriptor, picture("PNG"), None).format == "PNG"
    assert read(descriptor, picture("JPEG"), "image/jpg").format == "JPEG"
    with pytest.raises(UnsupportedMediaType, match=r"'image/gif'.*'content-type: image/png'"):
        read(descriptor, picture("GIF"), "image/gif")
    with pytest.raises(BadInput, match="are no image; send one of image/png, image/jpeg"):
        read(descriptor, picture("GIF"), "image/png")


def test_format_that_is_not_common_is_read_when_it_is_named() -> None:
    body = picture("TGA")
    with pytest.raises(BadInput, match="are no image"):
        read(Image(), body, None)
    assert read(Image(allowed_mime_types=["image/x-tga"]), body, "image/x-tga").size == (8, 4)
    assert read(Image(mime_type="image/x-tga"), body, "image/x-tga").size == (8, 4)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "There is no image: the body is empty; send one of image/jpeg, image/png"),
        (b"no image", "The 8 bytes are no image; send one of"),
        (POSTSCRIPT, "are no image"),
        (picture()[:60], "The image cannot be read, it is damaged or cut off"),
        (picture("JPEG", size=(64, 64))[:-400], "damaged or cut off"),
        (picture("GIF", size=(64, 64))[:-400], "damaged or cut off"),
        (picture()[:60] + b"\0\0\0\0" + picture()[64:], "damaged or cut off"),
    ],
)
def test_body_that_is_no_whole_image_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(Image(), body, None)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_small_file_with_a_vast_image_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"The image has .* pixels, and at most 89478485 are read; send a smaller one"):
        read(Image(), vast_png(*size), "image/png")


def test_limit_of_pixels_is_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(BadInput, match="at most 31 are read"):
        read(Image(), picture("GIF"), None)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert read(Image(), picture(), None).size == (8, 4)


def test_large_image_is_decoded_and_written_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    class Watched(PIL.Image.Image):
        def save(self, *args: Any, **kwargs: Any) -> None:
            threads.append(threading.current_thread())
            PIL.Image.new("RGB", (1, 1)).save(*args, **kwargs)

    for side in (8, 1000):
        image = Watched()
        image._size = (side, side)
        send(Image(pilmode=None), image)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()
    large = read(Image(), picture(size=(1000, 800)), "image/png")
    assert (np.asarray(large) == pixels(1000, 800)).all()


CONTENT_TYPES = [None, "application/octet-stream", *FORMATS.values(), "multipart/form-data; boundary=b", "text/plain"]


@settings(deadline=None, max_examples=300)
@given(
    start=st.sampled_from([b"", *(picture(f, size=(16, 16)) for f in FORMATS)]),
    cut=st.integers(0, 400),
    patch=st.binary(max_size=40),
    rest=st.binary(max_size=100),
    content_type=st.sampled_from(CONTENT_TYPES),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what is odd in an image
def test_any_bytes_are_an_image_or_the_fault_of_their_sender(
    start: bytes, cut: int, patch: bytes, rest: bytes, content_type: str | None
) -> None:
    body = start[:cut] + patch + start[cut + len(patch) :] + rest
    try:
        assert read(Image(), body, content_type).mode == "RGB"
    except AdapterError as error:
        assert 400 <= error.error_code < 500  # noqa: PT017  # either is right


# ---- out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "mime_type"), FORMATS.items())
def test_image_is_sent_in_the_format_of_its_mime_type(format_: str, mime_type: str) -> None:
    size = (16, 16) if format_ == "ICO" else (8, 4)
    sent = send(Image(mime_type=mime_type), PIL.Image.fromarray(pixels(*size)))
    assert sent.all("content-type") == [mime_type]
    ending = mime_type.removeprefix("image/").removeprefix("x-")
    assert sent.all("content-disposition") == [f'attachment; filename="output.{ending}"']
    assert (sent_image(sent).format, sent_image(sent).size) == (format_, size)
    if format_ in LOSSLESS:
        assert (np.asarray(sent_image(sent)) == pixels()).all()


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.zeros((4, 8), np.uint8), "L"),
        (np.zeros((4, 8, 1), np.uint8), "L"),
        (np.zeros((4, 8, 2), np.uint8), "LA"),
        (np.zeros((4, 8, 3), np.uint8), "RGB"),
        (np.zeros((4, 8, 4), np.uint8), "RGBA"),
        (np.zeros((8, 4, 3), np.uint8).transpose(1, 0, 2), "RGB"),
        (np.ones((4, 8), bool), "L"),
    ],
)
def test_array_is_sent_as_an_image(array: np.ndarray[Any, Any], mode: str) -> None:
    image = sent_image(send(Image(pilmode=None, mime_type="image/png"), array))
    assert (image.mode, image.size) == (mode, (8, 4))
    assert np.asarray(image).max() == (255 if array.dtype == bool else 0)


def test_pilmode_is_the_mode_of_what_is_sent() -> None:
    transparent = PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert sent_image(send(Image(mime_type="image/png"), transparent)).mode == "RGB"
    assert sent_image(send(Image("RGBA", "image/png"), transparent)).getpixel((0, 0)) == (255, 0, 0, 0)
    assert sent_image(send(Image(pilmode="L", mime_type="image/png"), transparent)).mode == "L"


@pytest.mark.filterwarnings("ignore:Saving I mode images as PNG is deprecated")  # Pillow 12
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "HSV", "F", "I", "I;16", "1", "PA", "LAB"])
@pytest.mark.parametrize("mime_type", ["image/jpeg", "image/png", "image/gif", "image/bmp"])
def test_mode_that_the_format_does_not_hold_is_converted(mode: str, mime_type: str) -> None:
    sent = send(Image(pilmode=None, mime_type=mime_type), PIL.Image.new(mode, (2, 2)))
    assert sent_image(sent).size == (2, 2)


def test_context_shapes_the_response() -> None:
    ctx = Context({}, request())
    ctx.response.status_code = 201
    ctx.response.headers["content-disposition"] = "inline"
    sent = send(Image(), PIL.Image.new("RGB", (1, 1)), ctx)
    assert (sent.status, sent.all("content-disposition"), sent.all("content-type")) == (201, ["inline"], ["image/jpeg"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "is a NoneType instead of a PIL image or an array: None"),
        (picture(), "is a bytes instead of"),
        ([[0, 1]], "is a list instead of"),
        (np.zeros((4, 4), np.float32), r"an array of float32, and an image is one of uint8: .* `\(array \* 255\)"),
        (np.zeros((4, 4), np.int64), "an array of int64"),
        (np.array([["a"]], object), "an array of object"),
        (np.zeros((3, 8, 9), np.uint8), r"the shape \(3, 8, 9\), .* `array\.transpose\(1, 2, 0\)` moves them"),
        (np.zeros((4,), np.uint8), r"the shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"the shape \(0, 4\)"),
        (np.zeros((4, 4, 0), np.uint8), r"the shape \(4, 4, 0\)"),
        (np.zeros((), np.uint8), r"the shape \(\)"),
    ],
)
def test_result_is_an_error_of_the_service_when_it_is_no_image(result: Any, message: str) -> None:
    with pytest.raises(InternalServerError, match=message):
        send(Image(), result)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_result_is_an_error_of_the_service_when_the_format_is_too_small_for_it() -> None:
    with pytest.raises(InternalServerError, match=r"70000 x 1 pixels in the mode RGB, cannot be written as image/webp"):
        send(Image(mime_type="image/webp"), PIL.Image.new("RGB", (70_000, 1)))


# ---- the descriptor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pilmode": "RGBX2"}, r"pilmode='RGBX2' is no mode that images are converted to: write 'RGB'"),
        ({"pilmode": 3}, "pilmode=3"),
        ({"mime_type": "image/heif3"}, r"mime_type='image/heif3' is no format that Pillow writes here; .*image/png"),
        ({"mime_type": "application/pdf"}, "mime_type='application/pdf'"),
        ({"allowed_mime_types": ["image/png", "image/svg+xml"]}, "names what Pillow does not read here; it .*gif"),
        ({"allowed_mime_types": []}, "allowed_mime_types"),
        ({"pilmodel": "RGB"}, "Image has no argument 'pilmodel': it is called pilmode"),
    ],
)
def test_argument_that_cannot_be_used_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Image(**options)


@pytest.mark.parametrize("kind", ["path", "image", "array"])
def test_from_sample_takes_the_format_of_the_sample(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.dat"
    path.write_bytes(picture("PNG"))
    sample: Any = {"path": path, "image": PIL.Image.open(io.BytesIO(path.read_bytes())), "array": pixels()}[kind]
    descriptor = Image.from_sample(sample, pilmode="L")
    assert descriptor.mime_type == ("image/jpeg" if kind == "array" else "image/png")
    assert descriptor.pilmode == "L"
    assert descriptor.sample is not None
    assert descriptor.sample.size == (8, 4)
    assert Image.from_sample(sample, mime_type="image/gif").mime_type == "image/gif"


def test_from_sample_refuses_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    for sample, message in (
        (tmp_path / "a.png", "is no image that Pillow reads"),
        (tmp_path / "missing.png", "is no image that Pillow reads"),
        (np.zeros(3), "The sample cannot be used: .* array of float64"),
        (5, "takes a path, a PIL image or an array, not 5"),
    ):
        with pytest.raises(BadInput, match=message):
            Image.from_sample(sample)


def test_spec_round_trips() -> None:
    descriptor = Image(None, "image/png", allowed_mime_types=["image/png", "image/gif"])
    spec = {
        "id": "adapter.io.Image",
        "args": {"pilmode": None, "mime_type": "image/png", "allowed_mime_types": ["image/png", "image/gif"]},
    }
    assert descriptor.to_spec() == spec
    assert from_spec(spec).to_spec() == spec
    assert Image().to_spec() == {"id": "adapter.io.Image", "args": {}}
    assert descriptor.schema() == {"type": "string", "format": "binary"}
    assert descriptor.python_type() is PIL.Image.Image
