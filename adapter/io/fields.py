"""Fields: the arguments of a function by name, from a JSON object or, where there are files among them, from a form."""

from __future__ import annotations

import mimetypes
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from adapter.context import Context
from adapter.exceptions import AdapterError, BadInput, InternalServerError, message_of
from adapter.io import from_spec
from adapter.io.base import DEFINITIONS, IODescriptor
from adapter.io.file import File
from adapter.io.form import FORM, UNKNOWN, Head, PartRequest, is_form, named, parts
from adapter.io.json import JSON_TYPES, details, dumps, failures, loads

if TYPE_CHECKING:
    from typing_extensions import Self

# what a client sends for an image: nothing of it is lost
_IMAGE = {"id": "adapter.io.Image", "args": {"pilmode": None, "mime_type": "image/png"}}


class Fields(IODescriptor[dict[str, Any]]):
    """Read the arguments of a function by name; a class-based service makes it from the annotations of a method.

    `fields` says of each its `name`, whether it is `required`, a `file`, or a list of files (`many`); `model` checks
    them, its fields in the same order and with these names as aliases; `files` reads those that are files. With `more`,
    names that are no fields are arguments as well, all but `taken`, else they are ignored. `of` is the function, for
    errors.
    """

    by_name = True
    mime_type = "application/json"

    def __init__(
        self,
        fields: Sequence[Mapping[str, Any]] = (),
        *,
        more: bool = False,
        of: str = "the API",
        model: type[BaseModel] | None = None,
        files: Mapping[str, IODescriptor[Any]] | None = None,
        taken: str = "",
    ) -> None:
        self.fields = tuple(dict(field) for field in fields)
        self.names = tuple(field["name"] for field in self.fields)
        self.more = more
        self.of = of
        self.model = model
        self.files = dict(files or {})
        self.taken = taken
        self._many = {field["name"] for field in self.fields if field.get("many")}
        self._form = any(field.get("file") for field in self.fields)
        needs_form = any(field.get("file") and field["required"] for field in self.fields)
        if self._form:
            self.mime_type = FORM
            self.accepts = (FORM,) if needs_form else (FORM, *JSON_TYPES)
        else:
            self.accepts = JSON_TYPES
        self._may_be_empty = not any(field["required"] for field in self.fields)
        example = ", ".join(f'"{name}": …' for name in self.names)
        self.placeholder = "" if self._form else f"{{{example}}}"
        self._attributes = () if model is None else tuple(zip(self.names, model.model_fields, strict=False))

    async def from_http_request(self, request: Request) -> dict[str, Any]:
        if self._form and is_form(request):
            return await self._of_form(request)
        body = await self.body_of(request)
        if self._may_be_empty and not body.strip():
            body = b"{}"
        if self.model is None:
            return dict(loads(body, self.advice))
        try:
            return self._arguments(self.model.model_validate_json(body))
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] != "json_invalid":
                raise self._misfit(error) from error
        return self._checked(loads(body, self.advice))

    async def to_http_response(self, obj: Any, ctx: Context | None = None) -> Response:
        if not self._form or not any(name in obj and obj[name] is not None for name in self._file_names()):
            return self.respond(dumps(obj), ctx, mime_type="application/json")
        boundary = secrets.token_hex(16)
        pieces: list[bytes] = []
        for name, value in obj.items():
            begin = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"'
            if name not in self._file_names():
                pieces += [f"{begin}\r\n\r\n".encode(), dumps(value), b"\r\n"]
                continue
            for each in value if name in self._many else [value]:
                if each is not None:
                    filename, content_type, data = await _file(each)
                    pieces += [f'{begin}; filename="{filename}"\r\ncontent-type: {content_type}\r\n\r\n'.encode()]
                    pieces += [data, b"\r\n"]
        body = b"".join([*pieces, f"--{boundary}--\r\n".encode()])
        return self.respond(body, ctx, mime_type=f"{FORM}; boundary={boundary}")

    def python_type(self) -> type:
        return dict

    def json_schema(self) -> dict[str, Any]:
        if self.model is None:
            return {"type": "object", "properties": {name: {} for name in self.names}}
        schema = self.model.model_json_schema(ref_template=DEFINITIONS + "{model}")
        if not self.names and not self.more:
            schema.pop("properties", None)
        return schema

    def to_spec(self) -> dict[str, Any]:
        args: dict[str, Any] = {"fields": list(self.fields)}
        if self.more:
            args["more"] = True
        return {"id": self.descriptor_id(), "args": args}

    @classmethod
    def from_sample(cls, sample: Any, **kwargs: Any) -> Self:
        """Make a descriptor that shows a dict of arguments in the documentation."""
        descriptor = super().from_sample(sample, **kwargs)
        descriptor.example = orjson.loads(dumps(sample))
        return descriptor

    def _file_names(self) -> set[str]:
        return {field["name"] for field in self.fields if field.get("file")}

    def _arguments(self, checked: BaseModel) -> dict[str, Any]:
        found = {name: getattr(checked, attribute) for name, attribute in self._attributes}
        return {**found, **self._more_of(checked)} if self.more else found

    def _more_of(self, checked: BaseModel) -> Mapping[str, Any]:
        more = checked.model_extra or {}
        if self.taken in more:
            raise BadInput(f"{self.of} cannot take an argument that is called {self.taken!r}; leave it out.")
        return more

    def _checked(self, values: Any) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise BadInput(f"The body is not a JSON object with the arguments of {self.of}; {self.advice}.")
        assert self.model is not None
        try:
            return self._arguments(self.model.model_validate(values))
        except ValidationError as error:
            raise self._misfit(error) from error

    def _misfit(self, error: ValidationError) -> BadInput:
        bad = BadInput(f"The arguments of {self.of} do not fit: {failures(error)}.")
        bad.detail = details(error)
        return bad

    async def _of_form(self, request: Request) -> dict[str, Any]:
        files = self._file_names()

        def wanted(head: Head) -> bool:
            return self.more or head.name in self.names

        values: dict[str, Any] = {}
        texts: dict[str, str] = {}
        for part in await parts(request, wanted):
            name = part.head.name
            if name in files:
                descriptor = self.files.get(name) or File()
                try:
                    value = await descriptor.from_http_request(PartRequest(request, part, descriptor))
                except AdapterError as error:
                    error.message = f"In the part {name!r}: {message_of(error)}"
                    error.args = (error.message,)
                    raise
                if name in self._many:
                    values.setdefault(name, []).append(value)
                    continue
            else:
                try:
                    texts[name] = part.file.read().decode()
                except UnicodeDecodeError as error:
                    raise BadInput(f"The part {name!r} of the form is not text in UTF-8: {error}.") from error
                try:
                    value = orjson.loads(texts[name])
                except orjson.JSONDecodeError:
                    value = texts[name]
            if name in values:
                raise BadInput(f"The form has the part {named([name])} twice; send it once.")
            values[name] = value
        if self.model is None:
            return values
        try:
            return self._arguments(self.model.model_validate(values))
        except ValidationError as error:
            # a text such as `5` may be meant as one
            wrong = {failure["loc"][0] for failure in error.errors(include_url=False) if failure["loc"]}
            if not wrong & texts.keys():
                raise self._misfit(error) from error
            return self._checked({**values, **{name: texts[name] for name in texts if name in wrong}})


async def _file(value: Any) -> tuple[str, str, bytes]:
    """A file to send: its name, its content type and its bytes; of a path, bytes, an open file, or an image."""
    if type(value).__module__.startswith("PIL."):
        image = await from_spec(_IMAGE).to_http_response(value)
        return "image.png", "image/png", bytes(image.body)
    if isinstance(value, Path):
        return _filename(value), mimetypes.guess_type(value.name)[0] or UNKNOWN, value.read_bytes()
    if isinstance(value, (bytes, bytearray)):
        return "file", UNKNOWN, bytes(value)
    if callable(getattr(value, "read", None)):
        data = value.read()
        if isinstance(data, bytes):
            return _filename(Path(str(getattr(value, "name", "file")))), UNKNOWN, data
    raise InternalServerError(
        f"The result is a {type(value).__qualname__} instead of a path, bytes, an image or a file open for reading "
        "bytes."
    )


def _filename(path: Path) -> str:
    return "".join("%22" if c == '"' else c for c in path.name if c.isprintable()) or "file"
