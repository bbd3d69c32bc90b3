"""The OpenAPI document of a service."""

from __future__ import annotations

from typing import Any

from adapter.services import API, Service

VERSION = "3.0.2"
_ERROR = {
    "description": "One sentence that says what was wrong",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def document(service: Service) -> dict[str, Any]:
    """Describe every API of a service, and the health routes."""
    components: dict[str, Any] = {
        "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    }
    paths: dict[str, Any] = {}
    for api in service.apis.values():
        paths[api.route] = {"post": _operation(service, api)}
        components |= {**api.input.components(), **api.output.components()}
    for name, text in (
        ("livez", "Whether this process is alive"),
        ("healthz", "The same as /livez"),
        ("readyz", "Whether requests can be served now"),
    ):
        answers: dict[str, Any] = {"200": {"description": "Yes"}}
        if name == "readyz":
            answers["503"] = _ERROR
        paths[f"/{name}"] = {"get": {"summary": text, "tags": ["Infrastructure"], "responses": answers}}
    return {
        "openapi": VERSION,
        "info": {"title": service.name, "version": "0", "description": service.doc},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(service: Service, api: API) -> dict[str, Any]:
    sent, answered = api.input, api.output
    return {
        "operationId": f"{service.name}__{api.name}",
        "summary": f"{api.name} ({type(sent).__name__} → {type(answered).__name__})",
        "description": api.doc,
        "tags": ["Service APIs"],
        "x-adapter-name": api.name,
        "requestBody": {
            "required": True,
            "content": {sent.mime_type: {"schema": sent.schema()}},
            "x-adapter-io-descriptor": sent.to_spec(),
        },
        "responses": {
            "200": {
                "description": "What the API returns",
                "content": {answered.mime_type: {"schema": answered.schema()}},
                "x-adapter-io-descriptor": answered.to_spec(),
            },
            **dict.fromkeys(("400", "500", "503", "504"), _ERROR),
        },
    }
