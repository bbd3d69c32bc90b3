"""Examples of how `/infer` is called: Mustache templates with their values, which run as they are when rendered."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import chevron
from pydantic import BaseModel

from adapter.endpoint.service import INFER, Service, endpoints_of
from adapter.exceptions import InvalidArgument

URL = "http://localhost:8080/infer"
TOKEN = "ADAPTER_TOKEN"  # the variable with a bearer token, for a server that asks for one
_DEEPEST = 16

_FORMATS = {
    "uri": "https://example.com/",
    "email": "name@example.com",
    "date": "2024-01-31",
    "date-time": "2024-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "binary": "text",
}

_CURL = """\
curl -sS -X POST "{{{endpoint}}}" \\
    -H "Content-Type: application/json" \\
    -H "Authorization: Bearer {{{access_token}}}" \\
    --data-binary @- <<'EOF'
{
%(fields)s
}
EOF
"""

_PYTHON = """\
import json
import os

import httpx

body = {
%(fields)s,
}

token = os.environ.get("{{{access_token}}}")
headers = {"Authorization": f"Bearer {token}"} if token else {}

if __name__ == "__main__":
    response = httpx.post(
        "{{{endpoint}}}",
        json=body,
        headers=headers,
        timeout=900,
    )
    response.raise_for_status()
    print(json.dumps(response.json()["output"]))
"""


class DocumentationFormat(enum.Enum):
    """What an example is written in."""

    CURL = "curl"
    PYTHON = "python"


@dataclass(frozen=True)
class MustacheGenerationResult:
    """A Mustache template and its values: `endpoint`, `access_token`, and `fields`, as they are written there."""

    generated_template: str
    template_hash: Mapping[str, Any]

    def render(self) -> str:
        return str(chevron.render(self.generated_template, dict(self.template_hash)))


def generate_usage_examples(
    service: Service,
    format: DocumentationFormat,  # noqa: A002  # the name that callers know
) -> MustacheGenerationResult:
    """Make an example of a call of `/infer`; InvalidArgument where no valid value of an argument can be thought of.

    Arguments with a default are left out. A field's own `examples` come first.
    """
    (infer,) = (endpoint for endpoint in endpoints_of(service) if endpoint.method == INFER)
    assert infer.input is not None
    example = _example(infer.input)
    curl = format is DocumentationFormat.CURL
    lines = ",\n".join(f'    "{name}": {{{{{{fields.{name}}}}}}}' for name in example)
    return MustacheGenerationResult(
        (_CURL if curl else _PYTHON) % {"fields": lines},
        {
            "endpoint": URL,
            "access_token": f"${TOKEN}" if curl else TOKEN,
            "fields": {name: json.dumps(value) if curl else repr(value) for name, value in example.items()},
        },
    )


def _example(model: type[BaseModel]) -> dict[str, Any]:
    """A body that the model takes, worked out from its JSON schema."""
    schema = model.model_json_schema()
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            found[name] = _value(schema["properties"][name], schema.get("$defs", {}))
    try:
        model.model_validate(found)
    except ValueError as error:
        raise InvalidArgument(
            f"No example of a call can be worked out: {found!r} is not valid ({error}). Give the argument one: "
            "`Annotated[str, Field(examples=[…])]`."
        ) from error
    return found


def _value(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0) -> Any:
    if schema.get("examples"):
        return schema["examples"][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    if depth > _DEEPEST:
        raise InvalidArgument("No example of a call can be worked out: a type of its arguments contains itself.")
    if "$ref" in schema:
        return _value(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _value(schema[key][0], definitions, depth + 1)
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, definitions, depth)
    if kind == "array":
        first = [_value(item, definitions, depth + 1) for item in schema.get("prefixItems", ())]
        missing = max(schema.get("minItems", 0 if first else 1), 0 if first else 1) - len(first)
        return first + [_value(schema.get("items") or {}, definitions, depth + 1) for _ in range(missing)]
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    text = _FORMATS.get(schema.get("format", ""), "text")
    return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]


def _object(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    found = {name: _value(properties[name], definitions, depth + 1) for name in schema.get("required", ())}
    values = schema.get("additionalProperties")
    if not properties and isinstance(values, Mapping):
        found["key"] = _value(values, definitions, depth + 1)
    return found


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    step = schema.get("multipleOf", 1 if whole else 0.5)
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    if least is None:
        value = step if most is None else most - (step if "maximum" not in schema else 0)
    else:
        value = -(-least // step) * step  # the next multiple
        if value == schema.get("exclusiveMinimum"):
            value += step
            if most is not None and value >= most:
                value = (least + most) / 2
    return int(value) if whole else float(value)
