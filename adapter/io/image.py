"""Image: pictures as PIL images."""

from __future__ import annotations

import io
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import BadInput, InternalServerError, InvalidArgument
from adapter.io.arguments import refuse_arguments
from adapter.io.base import IODescriptor, media_type
from adapter.io.form import FORM, UNKNOWN, PartRequest, first_part, is_form

if TYPE_CHECKING:
    from typing_extensions import Self

# what is read where allowed_mime_types says nothing; others are read when they are named. Pillow would try every format
# that it knows, among them one that runs Ghostscript.
_COMMON = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "image/avif",
    "image/jp2",
    "image/x-icon",
    "image/x-portable-anymap",
)
# names that clients use for these, and what says nothing, curl's word for any body included
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/mpo": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/vnd.microsoft.icon": "image/x-icon",
}
_UNTOLD = (UNKNOWN, "application/x-www-form-urlencoded")

# modes of more than 8 bits a channel, and the formats whose 16 bits Pillow reads as 32
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_WIDE_FORMATS = ("PNG", "PPM")

# decoding more than this takes longer than handing it to a thread
_QUICK_PIXELS = 256 * 256
_QUICK_BYTES = 1 << 20


class Image(IODescriptor[PIL.Image.Image]):
    """Read and send images: `Image(pilmode="RGB", mime_type="image/jpeg")`.

    The function gets a PIL image: the body of the request, or of a form the first part that may be an image. What it
    is, its bytes tell, not its content type; `allowed_mime_types` says which formats are read, without it the common
    ones. It has the mode `pilmode` (RGB, L, RGBA, …), whatever it came as; None keeps the mode. The orientation in
    EXIF is not applied: `PIL.ImageOps.exif_transpose(image)` does that. An image of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` is refused before it is decoded.

    A result is a PIL image, or an array of uint8 or bool: (height, width), or (height, width, channels) with 1 to
    4 channels (L, LA, RGB, RGBA). It is converted to `pilmode` as well, so that transparency needs "RGBA" or None, and
    to RGB where the format `mime_type` cannot hold it. Source: seeds 001 and 002.
    """

    def __init__(
        self,
        pilmode: str | None = "RGB",
        mime_type: str = "image/jpeg",
        *,
        allowed_mime_types: Sequence[str] | None = None,
        **others: NoReturn,
    ) -> None:
        refuse_arguments(type(self), others, {"pilmodel": "it is called pilmode, as in Image(pilmode='RGB')"})
        PIL.Image.init()
        _check_mode(pilmode)
        self.pilmode = pilmode
        self.mime_type = _ALIASES.get(mime_type, mime_type)
        self._format = _written_formats().get(self.mime_type, "")
        if not self._format:
            raise InvalidArgument(
                f"mime_type={mime_type!r} is no format that Pillow writes here; it writes "
                f"{', '.join(sorted(_written_formats()))}."
            )
        self.allowed_mime_types = allowed_mime_types
        read = _read_formats()
        if allowed_mime_types is None:
            allowed = tuple(m for m in dict.fromkeys((self.mime_type, *_COMMON)) if m in read)
        else:
            allowed = _allowed(allowed_mime_types, read)
        self._formats = [name for mime_type in allowed for name in read[mime_type]]
        self._named = ", ".join(allowed)
        self.accepts = (*allowed, FORM)

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor that sends images in the format of a sample: a path, a PIL image or an array."""
        if isinstance(sample, (str, os.PathLike)):
            try:
                sample = PIL.Image.open(sample)
                sample.load()
            except (OSError, SyntaxError, ValueError) as error:
                raise BadInput(f"The sample {str(sample)!r} is no image that Pillow reads: {error}.") from error
        if isinstance(sample, np.ndarray):
            try:
                sample = _of_array(sample)
            except InternalServerError as error:
                raise BadInput(f"The sample cannot be used: {error}") from error
        if not isinstance(sample, PIL.Image.Image):
            raise BadInput(f"Image.from_sample takes a path, a PIL image or an array, not {reprlib.repr(sample)}.")
        mime_type = PIL.Image.MIME.get(sample.format or "")
        if mime_type in {**_written_formats(), **_ALIASES}:
            kwargs.setdefault("mime_type", mime_type)
        return super().from_sample(sample, **kwargs)

    async def from_http_request(self, request: Request) -> PIL.Image.Image:
        if isinstance(request, PartRequest):
            self.check_type(request)
            return await self._decode(request.file, request.file.size)
        if is_form(request):
            file = (await first_part(request, self, "an image")).file
            return await self._decode(file, file.size)
        body = await self.body_of(request)
        return await self._decode(io.BytesIO(body), len(body))

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        image = _image_of(obj)
        quick = image.width * image.height <= _QUICK_PIXELS
        body = self._encode(image) if quick else await run_in_threadpool(self._encode, image)
        ending = self.mime_type.removeprefix("image/").removeprefix("x-")
        return self.respond(body, ctx, headers={"content-disposition": f'attachment; filename="output.{ending}"'})

    def reads(self, header: bytes) -> bool:
        name = media_type(header).name
        return name in _UNTOLD or super().reads(_ALIASES.get(name, name).encode("latin-1"))

    def python_type(self) -> type:
        return PIL.Image.Image

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}

    async def _decode(self, file: BinaryIO, size: int) -> PIL.Image.Image:
        if size > _QUICK_BYTES:
            return await run_in_threadpool(lambda: self._pixels(self._opened(file, size)))
        image = self._opened(file, size)
        if image.width * image.height > _QUICK_PIXELS:
            return await run_in_threadpool(self._pixels, image)
        return self._pixels(image)

    def _opened(self, file: BinaryIO, size: int) -> PIL.Image.Image:
        """The image before its pixels are read; a small file may hold more of them than the memory."""
        most = PIL.Image.MAX_IMAGE_PIXELS
        try:
            image = PIL.Image.open(file, formats=self._formats)
            if most is None or image.width * image.height <= most:
                return image
            came = f"{image.width} x {image.height} pixels"
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
            came = "too many pixels"
        except UnidentifiedImageError as error:
            what = f"The {size} bytes are no image" if size else "There is no image: the body is empty"
            raise BadInput(f"{what}; send one of {self._named}.") from error
        except Exception as error:  # Pillow raises anything on what is broken
            raise _broken(error) from error
        raise BadInput(f"The image has {came}, and at most {most} are read; send a smaller one.")

    def _pixels(self, image: PIL.Image.Image) -> PIL.Image.Image:
        try:
            image.load()
            return image if self.pilmode is None else _converted(image, self.pilmode)
        except Exception as error:  # Pillow raises anything on what is broken
            raise _broken(error) from error

    def _encode(self, image: PIL.Image.Image) -> bytes:
        try:
            wanted = image if self.pilmode is None else _converted(image, self.pilmode)
            try:
                return _saved(wanted, self._format)
            except (OSError, ValueError):  # a mode that the format does not hold
                return _saved(_converted(wanted, "RGB"), self._format)
        except (OSError, ValueError) as error:
            raise InternalServerError(
                f"The result, an image of {image.width} x {image.height} pixels in the mode {image.mode}, cannot be "
                f"written as {self.mime_type}: {error}."
            ) from error


def _check_mode(mode: str | None) -> None:
    try:
        if mode is not None:
            PIL.Image.new("RGB", (1, 1)).convert(mode)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"pilmode={mode!r} is no mode that images are converted to: write 'RGB', 'RGBA', 'L', another of Pillow's, "
            "or None to keep the mode."
        ) from error


def _read_formats() -> dict[str, list[str]]:
    """The names that Pillow has for the formats of each type."""
    found: dict[str, list[str]] = {}
    for name, mime_type in sorted(PIL.Image.MIME.items()):
        if name in PIL.Image.OPEN and mime_type.startswith("image/"):
            found.setdefault(_ALIASES.get(mime_type, mime_type), []).append(name)
    return found


def _written_formats() -> dict[str, str]:
    # several formats have one type: BMP and DIB
    names = sorted(PIL.Image.MIME.items(), reverse=True)
    return {mime_type: name for name, mime_type in names if name in PIL.Image.SAVE and mime_type.startswith("image/")}


def _allowed(mime_types: Sequence[str], known: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    allowed = tuple(_ALIASES.get(m, m) for m in ([mime_types] if isinstance(mime_types, str) else mime_types))
    unknown = [mime_type for mime_type in allowed if mime_type not in known]
    if unknown or not allowed:
        raise InvalidArgument(
            f"allowed_mime_types={mime_types!r} names what Pillow does not read here; it reads "
            f"{', '.join(sorted(known))}."
        )
    return allowed


def _converted(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode == mode:
        return image
    format_ = image.format
    if isinstance(image.info.get("transparency"), bytes):  # Pillow wants it so, and warns of all else
        image = image.convert("RGBA")
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and format_ in _WIDE_FORMATS)
    if has_16_bits and mode not in _WIDE_MODES:
        # Pillow would make 255 of all above it
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    try:
        converted = image.convert(mode)
    except ValueError:  # there is no direct way between these two
        converted = image.convert("RGB").convert(mode)
    converted.format = format_
    return converted


def _image_of(obj: Any) -> PIL.Image.Image:
    if isinstance(obj, PIL.Image.Image):
        return obj
    if isinstance(obj, np.ndarray):
        return _of_array(obj)
    raise InternalServerError(
        f"The result is a {type(obj).__qualname__} instead of a PIL image or an array: {reprlib.repr(obj)}."
    )


def _of_array(array: np.ndarray[Any, Any]) -> PIL.Image.Image:
    if array.dtype not in (np.uint8, np.bool_):
        raise InternalServerError(
            f"The result is an array of {array.dtype}, and an image is one of uint8: values from 0 to 1 become that by "
            "`(array * 255).round().astype('uint8')`."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))):
        raise InternalServerError(
            f"The result is an array of the shape {array.shape}, and an image has (height, width) or (height, width, "
            "channels) with 1 to 4 channels; where the channels come first, `array.transpose(1, 2, 0)` moves them."
        )
    return PIL.Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == np.bool_ else array)


def _saved(image: PIL.Image.Image, format_: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


def _broken(error: Exception) -> BadInput:
    text = " ".join(str(error).split()) or type(error).__name__
    return BadInput(f"The image cannot be read, it is damaged or cut off: {text}.")
