"""Media as endpoints take and return it: images, audio, video and uploaded files."""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import os
import tempfile
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import PIL.Image
from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_serializer, field_validator
from typing_extensions import Self

from adapter.endpoint import fetching
from adapter.exceptions import InvalidArgument, MissingDependencyException


class MediaUrl(BaseModel):
    """Where a media file lies."""

    url: HttpUrl

    @field_serializer("url")
    def _as_text(self, url: HttpUrl) -> str:
        return str(url)


def _example(content: bytes) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [{"data": base64.b64encode(content).decode()}]})


class Media(BaseModel):
    """A media file: its bytes as base64 text, or its URL.

    On the wire it is `{"data": "<base64>"}` or `{"data": {"url": "https://…"}}`; a body whose base64 is damaged is
    refused with 422. What a URL leads to is read when the content is asked for, and only where that is allowed (see
    `adapter.endpoint.fetching`). Source: the `types` module that goes with seed 004.
    """

    model_config = _example(b"content")

    data: bytes | MediaUrl = Field(description="base64 text, or the URL of the file")

    def __init__(self, data: Any = None, **unknown: Any) -> None:
        super().__init__(**({"data": data} if data is not None else {}), **unknown)

    @field_validator("data", mode="after")
    @classmethod
    def _base64(cls, data: bytes | MediaUrl) -> bytes | MediaUrl:
        if isinstance(data, bytes):
            data = b"".join(data.split())  # tools that make base64 break its lines
            try:
                base64.b64decode(data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"this is not base64 text: {error}") from error
        return data

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Make it of a file's content."""
        return cls.model_construct(data=base64.b64encode(content))

    @classmethod
    def from_base64(cls, b64: bytes | str) -> Self:
        """Make it of base64 text."""
        return cls(data=b64.encode() if isinstance(b64, str) else b64)

    @classmethod
    def from_endpoint_response(cls, resp_dict: Mapping[str, Any], key: str) -> Self:
        """Read it from what an endpoint answered; `key` names it, at the top or under "output"."""
        if key in resp_dict:
            return cls(**resp_dict[key])
        output = resp_dict.get("output")
        if isinstance(output, Mapping) and key in output:
            return cls(**output[key])
        raise InvalidArgument(f"The answer holds no {key!r}; it holds {', '.join(map(repr, resp_dict)) or 'nothing'}.")

    @classmethod
    def from_file(cls, file_name: str | os.PathLike[str]) -> Self:
        """Read a file of this machine."""
        path = Path(file_name)
        if not path.is_file():
            raise InvalidArgument(f"The file {str(path)!r} does not exist.")
        return cls.from_bytes(path.read_bytes())

    @classmethod
    def from_url(cls, url: str, b64: bool = False, follow_redirects: bool = False) -> Self:
        """Name a file by its URL; `b64` reads it now and keeps its content."""
        if b64:
            return cls.from_bytes(b"".join(fetching.read(url, follow_redirects=follow_redirects)))
        return cls(data=MediaUrl(url=HttpUrl(url)))

    def download(self, follow_redirects: bool, file_name: str | os.PathLike[str]) -> None:
        """Write what the URL leads to into a file; nothing happens where the content is here already."""
        if isinstance(self.data, MediaUrl):
            with Path(file_name).open("wb") as file:
                file.writelines(fetching.read(str(self.data.url), follow_redirects=follow_redirects))

    def default_download(self, file_name: str | os.PathLike[str]) -> None:
        """Write what the URL leads to into a file; override it to fetch in another way."""
        self.download(follow_redirects=False, file_name=file_name)

    def to_file(self, file_name: str | os.PathLike[str]) -> None:
        """Write the content into a file."""
        if isinstance(self.data, bytes):
            Path(file_name).write_bytes(base64.b64decode(self.data))
        else:
            self.default_download(file_name)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        if isinstance(self.data, bytes):
            return base64.b64decode(self.data)
        with tempfile.NamedTemporaryFile() as file:
            self.default_download(file.name)
            return Path(file.name).read_bytes()

    def to_base64(self) -> bytes:
        """The content of the file as base64 text."""
        return self.data if isinstance(self.data, bytes) else base64.b64encode(self.to_bytes())


def _smallest_png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(buffer, format="PNG")
    return buffer.getvalue()


def _smallest_wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 1, "NONE", ""))
        file.writeframes(b"\0\0")
    return buffer.getvalue()


class Image(Media):
    """An image file, or its URL."""

    model_config = _example(_smallest_png())

    @classmethod
    def from_pil(cls, image_pil: PIL.Image.Image, format: str = "JPEG") -> Self:  # noqa: A002
        """Make it of a Pillow image, written as `format`."""
        buffer = io.BytesIO()
        try:
            image_pil.save(buffer, format=format)
        except (OSError, KeyError) as error:
            raise InvalidArgument(
                f"A Pillow image of mode {image_pil.mode!r} cannot be written as {format}: {error}; "
                'convert it first, such as with image.convert("RGB"), or choose another format.'
            ) from error
        return cls.from_bytes(buffer.getvalue())

    def to_pil(self) -> PIL.Image.Image:
        """Read it as a Pillow image; InvalidArgument where it is none."""
        try:
            return PIL.Image.open(io.BytesIO(self.to_bytes()))
        except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError) as error:
            raise InvalidArgument(
                "The content is not an image that Pillow reads, or one that is too large to be one."
            ) from error

    def is_valid(self) -> bool:
        """Whether Pillow can read it."""
        try:
            self.to_pil().verify()
        except (InvalidArgument, OSError, SyntaxError, ValueError):
            return False
        return True


class Audio(Media):
    """An audio file, or its URL; reading and writing samples needs the soundfile package."""

    model_config = _example(_smallest_wav())

    @classmethod
    def from_numpy(cls, data: Any, sample_rate: int, format: str = "WAV") -> Self:  # noqa: A002
        """Make it of samples of shape (frames,) or (frames, channels), `sample_rate` of them a second."""
        buffer = io.BytesIO()
        _library("soundfile").write(buffer, data=data, samplerate=sample_rate, format=format)
        return cls.from_bytes(buffer.getvalue())

    def to_numpy(self) -> tuple[np.ndarray[Any, Any], int]:
        """Its samples, of shape (frames,) or (frames, channels), and how many there are a second."""
        samples, rate = _library("soundfile").read(io.BytesIO(self.to_bytes()))
        return samples, rate

    def is_valid(self) -> bool:
        """Whether soundfile can read it."""
        unreadable = _library("soundfile").SoundFileError
        try:
            self.to_numpy()
        except (unreadable, OSError, ValueError):
            return False
        return True


class Video(Media):
    """A video file, or its URL; reading and writing frames needs the packages imageio and av."""

    @classmethod
    def from_numpy(
        cls,
        video_frames: Sequence[Any],
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        fps: int = 30,
    ) -> Self:
        """Make an MP4 file of frames of shape (height, width, 3), uint8."""
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            with _library("imageio").v3.imopen(file.name, "w", plugin="pyav") as video:
                video.init_video_stream(codec=codec, fps=fps, pixel_format=pixel_format)
                for frame in video_frames:
                    video.write_frame(frame)
            return cls.from_file(file.name)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """All frames as one array of shape (frames, height, width, 3), uint8."""
        with self._in_a_file() as name:
            frames: np.ndarray[Any, Any] = _library("imageio").v3.imread(name, plugin="pyav")
            return frames

    def to_numpy_iterator(self) -> tuple[Iterator[np.ndarray[Any, Any]], str]:
        """The frames one by one, and the temporary file that they are read from, which the caller removes."""
        with tempfile.NamedTemporaryFile(suffix=".mp4", delete=False) as file:
            self.to_file(file.name)
            return _library("imageio").v3.imiter(file.name, plugin="pyav"), file.name

    def is_valid(self) -> bool:
        """Whether it is a video that can be read."""
        imageio = _library("imageio").v3
        with self._in_a_file() as name:
            try:
                return "video_format" in imageio.immeta(name, plugin="pyav")
            except (OSError, ValueError):
                return False

    def _in_a_file(self) -> Any:
        return _TemporaryFile(self)


class _TemporaryFile:
    """A video as a file, for as long as a `with` block runs."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> str:
        try:
            self._video.to_file(self._file.name)
        except BaseException:
            self._file.close()
            raise
        return self._file.name

    def __exit__(self, *error: object) -> Literal[False]:
        self._file.close()
        return False


class File(UploadFile):
    """A file of a form, for `infer_form_data`; `.file` reads it, `.filename` and `.content_type` say what it is."""


# the library, the modules of it that are used, and what for
_EXTRAS = {"soundfile": (("soundfile",), "audio"), "imageio": (("imageio.v3", "imageio.plugins.pyav"), "video")}


def _library(name: str) -> ModuleType:
    try:
        for module in _EXTRAS[name][0]:
            importlib.import_module(module)
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingDependencyException(name, extra="media", feature=f"reading {_EXTRAS[name][1]}") from error
