"""The OpenAPI document of a service: its APIs, the server's own routes, and the FastAPI applications mounted on it."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Container, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.routing import PARAM_REGEX, compile_path

from adapter.io.base import IODescriptor
from adapter.server.guard import HEALTH
from adapter.server.tasks import VERBS
from adapter.server.views import give_self
from adapter.services import API, Mount, Service

logger = logging.getLogger("adapter.server")

VERSION = "3.1.0"  # the schemas of pydantic are JSON Schema 2020-12, which 3.0 does not know
REQUEST_ID = "x-adapter-request-id"
FORM = "multipart/form-data"
BINARY = {"type": "string", "format": "binary"}

_SERVICE_TAG, _SERVER_TAG = "Service APIs", "Infrastructure"
# what a client says that was told nothing: read, but not to be recommended
_UNTOLD = {"application/octet-stream", "application/x-www-form-urlencoded"}
_KINDS = {
    "": {"type": "string", "pattern": "^[^/]+$"},
    ":int": {"type": "integer", "minimum": 0},
    ":float": {"type": "number", "minimum": 0},
    ":uuid": {"type": "string", "format": "uuid"},
}
# status -> its name among the components, and what it means
_ERRORS = {
    "400": ("BadRequest", "The request cannot be used; the sentence says what was expected and what came."),
    "413": ("BodyTooLarge", "The body is larger than the server takes."),
    "415": ("UnsupportedMediaType", "The API does not read the content type of the body."),
    "429": ("TooManyRequests", "The worker serves as many requests as it may; try again after `retry-after` seconds."),
    "4XX": ("Refused", "The API function refused the request."),
    "500": ("InternalServerError", "The service failed; its log says why, under the request id."),
    "503": ("ServiceUnavailable", "The service cannot answer now; try again after `retry-after` seconds."),
    "504": ("GatewayTimeout", "The answer took longer than the server or the caller allows."),
}
_UNAUTHORIZED = "Unauthorized"
_BEARER = "bearer"  # the name of the security scheme, which the page knows as well
_TRY_AGAIN = {"429", "503"}
_HEADERS = {
    REQUEST_ID: {
        "description": "The id of the request; one sent as `X-Request-ID` is kept.",
        "schema": {"type": "string"},
    },
    "retry-after": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}},
}


def document(service: Service, *, with_tokens: bool = False) -> dict[str, Any]:
    """Describe every API of a service, the health routes and metrics, and mounted FastAPI applications.

    `with_tokens`: all but the health routes need a bearer token.
    """
    give_self(service)
    components = Components()
    components.add("schemas", {"Error": _ERROR})
    components.add("headers", _HEADERS)
    components.add("responses", {name: _error(status, about) for status, (name, about) in _ERRORS.items()})
    if with_tokens:  # before those of mounted applications, which get another name where it is taken
        components.add("responses", {_UNAUTHORIZED: _error("401", "The request has no token that the server takes.")})
        components.add("securitySchemes", {_BEARER: {"type": "http", "scheme": "bearer"}})
    paths: dict[str, Any] = {}
    for api in service.apis.values():
        _, path, _ = compile_path(api.route)
        paths[path] = {"post": _operation(service, api, components)}
        if api.task:
            paths |= _task_paths(service, api, paths[path]["post"])
    paths |= _INFRASTRUCTURE
    tags = [
        {"name": _SERVICE_TAG, "description": "What this service offers."},
        {"name": _SERVER_TAG, "description": "For whoever runs the service."},
    ]
    for mount in service.mounts:
        _merge(mount, paths, components, tags)
    if with_tokens:
        paths = {path: _with_token(path, item) for path, item in paths.items()}
    return {
        "openapi": VERSION,
        "info": {"title": service.name, "version": "0", "description": service.doc, **_labels(service)},
        "servers": [{"url": "."}],
        "tags": tags,
        **({"security": [{_BEARER: []}]} if with_tokens else {}),
        "paths": paths,
        "components": components.sections,
    }


def _labels(service: Service) -> dict[str, Any]:
    return {"x-adapter-labels": dict(service.labels)} if service.labels else {}


class Components:
    """The `components` of a document; what comes under a name that is taken by something else gets another one."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {}
        # a definition, with all that it refers to as it came -> the name that it has here
        self._names: dict[tuple[str, str, str], str] = {}

    def add(self, section: str, definitions: Mapping[str, Any]) -> dict[str, str]:
        """Keep definitions; returns the references to those that were renamed, from old to new."""
        kept = self.sections.setdefault(section, {})
        names: dict[str, str] = {}
        new: dict[str, str] = {}
        for name in definitions:
            key = (section, name, json.dumps(_reachable(section, name, definitions), sort_keys=True, default=str))
            if key not in self._names:
                self._names[key] = new[name] = _free(name, {*kept, *new.values()})
            names[name] = self._names[key]
        moved = {reference(section, old): reference(section, name) for old, name in names.items() if old != name}
        for old, name in new.items():
            kept[name] = rewritten(definitions[old], moved)
        return moved


def rewritten(value: Any, moved: Mapping[str, str]) -> Any:
    """A part of a document with other references; the `mapping` of a discriminator has some that are no `$ref`."""
    if not moved:
        return value
    if isinstance(value, dict):
        return {key: rewritten(item, moved) for key, item in value.items()}
    if isinstance(value, list):
        return [rewritten(item, moved) for item in value]
    return moved.get(value, value) if isinstance(value, str) else value


def reference(section: str, name: str) -> str:
    """What `$ref` says for a component."""
    return f"#/components/{section}/{name}"


def _reachable(section: str, name: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A definition and those that it refers to, directly or not, by their names."""
    found: dict[str, Any] = {}
    pending: list[Any] = [reference(section, name)]
    names = {reference(section, other): other for other in definitions}
    while pending:
        value = pending.pop()
        if isinstance(value, str) and value in names and names[value] not in found:
            found[names[value]] = definitions[names[value]]
            pending.append(definitions[names[value]])
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _free(name: str, taken: Container[str]) -> str:
    return next(n for n in itertools.chain([name], (f"{name}{i}" for i in itertools.count(2))) if n not in taken)


# ---- APIs -----------------------------------------------------------------------------------------------------------


def _operation(service: Service, api: API, components: Components) -> dict[str, Any]:
    sent, answered = api.input, api.output
    body = {
        "required": bool(sent.json_schema().get("required")) or not sent.by_name,
        "content": _content(sent, _read_types(sent), components),
        "x-adapter-io-descriptor": sent.to_spec(),
    }
    success = {
        "description": "What the API returns",
        "headers": {REQUEST_ID: {"$ref": reference("headers", REQUEST_ID)}},
        "content": _content(answered, answered.sends or (answered.mime_type,), components),
    }
    answers = {"200": {**success, "x-adapter-io-descriptor": answered.to_spec()}}
    if api.needs_ctx:
        answers["2XX"] = {**success, "description": "The same, under a status that the API sets"}
    operation: dict[str, Any] = {
        "operationId": f"{service.name}__{api.name}",
        "summary": f"{api.name} ({type(sent).__name__} → {type(answered).__name__})",
        "description": api.doc,
        "tags": [_SERVICE_TAG],
        "x-adapter-name": api.name,
        **({"x-adapter-task": True} if api.task else {}),
        "requestBody": body,
        "responses": {**answers, **_refusals(*_ERRORS)},
    }
    if parameters := _parameters(api.route):
        operation["parameters"] = parameters
    return operation


_TASK_ID = {"name": "task_id", "in": "query", "required": True, "schema": {"type": "string"}}
_TASK = {
    "type": "object",
    "properties": {
        "task_id": {"type": "string"},
        "status": {"type": "string", "enum": ["in_progress", "completed", "failed", "cancelled"]},
        "created_at": {"type": "string", "format": "date-time"},
        "executed_at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
    },
    "required": ["task_id", "status"],
}
_ABOUT = {
    "submit": "Begin a task",
    "status": "How far a task is",
    "get": "What came of a task",
    "cancel": "End a task",
    "retry": "Begin a task anew",
}


def _task_paths(service: Service, api: API, operation: Mapping[str, Any]) -> dict[str, Any]:
    """The routes of a task beside that of its API."""
    _, path, _ = compile_path(api.route)
    found: dict[str, Any] = {}
    for verb, method in VERBS.items():
        answer = operation["responses"]["200"]
        if verb != "get":
            answer = {"description": "The task", "content": {"application/json": {"schema": _TASK}}}
            answer["headers"] = operation["responses"]["200"]["headers"]
        found[f"{path}/{verb}"] = {
            method.lower(): {
                "operationId": f"{service.name}__{api.name}__{verb}",
                "summary": f"{_ABOUT[verb]} of {api.name}",
                "tags": [_SERVICE_TAG],
                **({"requestBody": operation["requestBody"]} if verb == "submit" else {"parameters": [_TASK_ID]}),
                "responses": {"200": answer, **_refusals("400", "4XX", "500", "503")},
            }
        }
    return found


def _parameters(route: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _KINDS.get(kind, {"type": "string"})}
        for name, kind in PARAM_REGEX.findall(route)
    ]


def _read_types(descriptor: IODescriptor[Any]) -> tuple[str, ...]:
    """The content types to recommend: those that it names before its first pattern, and those that it sends itself."""
    named: list[str] = []
    for pattern in descriptor.accepts:
        if "*" in pattern or "?" in pattern:
            break
        if not named or pattern not in _UNTOLD:
            named.append(pattern)
    own = [name for name in descriptor.sends or (descriptor.mime_type,) if descriptor.reads(name.encode())]
    return tuple(dict.fromkeys([*named, *own])) or (descriptor.mime_type,)


def _content(descriptor: IODescriptor[Any], types: tuple[str, ...], components: Components) -> dict[str, Any]:
    moved = components.add("schemas", descriptor.components())
    schema = rewritten(descriptor.schema(), moved)
    return {name: _media_type(descriptor, name, schema) for name in types}


def _media_type(descriptor: IODescriptor[Any], name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if descriptor.parts:
        encoding = {part: {"contentType": _part_types(of)} for part, of in descriptor.parts.items()}
        return {"schema": schema, "encoding": encoding}
    if name == FORM and not descriptor.by_name:
        return {"schema": {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}}
    if (
        _is_json(name)
        or descriptor.by_name
        or schema.get("type") == "string"
        or (name == descriptor.mime_type and not descriptor.sends)
    ):
        return {"schema": schema}
    return {"schema": {"type": "string"} if name.startswith("text/") else BINARY}


def _part_types(descriptor: IODescriptor[Any]) -> str:
    types = [name for name in _read_types(descriptor) if name != FORM]
    # a list is allowed, but Swagger UI sends it as it is; of a file that a person chooses it sends the type
    return ", ".join(types) if descriptor.schema().get("format") == "binary" else types[0]


def _is_json(name: str) -> bool:
    return name == "application/json" or name.endswith("+json")


# ---- errors ---------------------------------------------------------------------------------------------------------

_ERROR = {
    "type": "object",
    "description": "What was wrong, in one sentence.",
    "properties": {
        "error": {"type": "string"},
        "detail": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Which fields of the request were wrong, where they are checked one by one.",
        },
    },
    "required": ["error"],
}


def _refusals(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": reference("responses", _ERRORS[status][0])} for status in statuses}


def _error(status: str, about: str) -> dict[str, Any]:
    names = [REQUEST_ID, "retry-after"] if status in _TRY_AGAIN else [REQUEST_ID]
    return {
        "description": about,
        "headers": {name: {"$ref": reference("headers", name)} for name in names},
        "content": {"application/json": {"schema": {"$ref": reference("schemas", "Error")}}},
    }


# ---- the server's own routes ----------------------------------------------------------------------------------------


def _get(name: str, summary: str, *errors: str, about: str = "Yes") -> dict[str, Any]:
    success = {
        "description": about,
        "headers": {REQUEST_ID: {"$ref": reference("headers", REQUEST_ID)}},
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "tags": [_SERVER_TAG],
            "responses": {"200": success, **_refusals(*errors)},
        }
    }


_INFRASTRUCTURE: dict[str, Any] = {
    "/livez": _get("livez", "Whether this process is alive"),
    "/healthz": _get("healthz", "The same as /livez"),
    "/readyz": _get("readyz", "Whether requests can be served now", "503"),
    "/metrics": _get("metrics", "What Prometheus reads", "4XX", about="The metrics of all workers and of the engine"),
}
_NOT_MOUNTED = {*_INFRASTRUCTURE, "/", "/docs.json"}


# ---- tokens ---------------------------------------------------------------------------------------------------------


def _with_token(path: str, item: dict[str, Any]) -> dict[str, Any]:
    """The operations of a path, each with the token that it needs beside what it may need already."""
    found: dict[str, Any] = {}
    for method, operation in item.items():
        if path in HEALTH:
            found[method] = {**operation, "security": []}
        elif isinstance(operation, dict) and "responses" in operation:
            refused = {"401": {"$ref": reference("responses", _UNAUTHORIZED)}}
            operation = {**operation, "responses": {**refused, **operation["responses"]}}
            if (own := operation.get("security")) is not None:
                operation["security"] = [{**each, _BEARER: []} for each in own or [{}]]
            found[method] = operation
        else:
            found[method] = operation
    return found


# ---- mounted applications -------------------------------------------------------------------------------------------


def _merge(mount: Mount, paths: dict[str, Any], components: Components, tags: list[dict[str, Any]]) -> None:
    """Add what a mounted FastAPI application says of itself; no other kind of application does."""
    if not isinstance(mount.app, FastAPI):
        return
    try:
        theirs = mount.app.openapi()
    except Exception:
        logger.exception("The OpenAPI document of the application at %s cannot be made; it is left out.", mount.path)
        return
    moved: dict[str, str] = {}
    for section, definitions in theirs.get("components", {}).items():
        moved |= components.add(section, definitions)
    used = {o["operationId"] for item in paths.values() for o in item.values() if "operationId" in o}
    for path, item in theirs.get("paths", {}).items():
        full = mount.path.rstrip("/") + path
        if full in paths or full in _NOT_MOUNTED:  # an API or the server answers there
            continue
        paths[full] = {
            method: _theirs(operation, mount, moved, used) if isinstance(operation, dict) else operation
            for method, operation in item.items()
        }
    known = {tag["name"] for tag in tags}
    tags += [tag for tag in theirs.get("tags", []) if tag["name"] not in known]


def _theirs(operation: dict[str, Any], mount: Mount, moved: Mapping[str, str], used: set[str]) -> dict[str, Any]:
    operation = rewritten(operation, moved)
    if (identity := operation.get("operationId")) is not None:
        if identity in used:
            operation["operationId"] = identity = _free(f"{mount.name or mount.path.strip('/')}__{identity}", used)
        used.add(identity)
    if security := operation.get("security"):  # it names schemes without `$ref`
        start = reference("securitySchemes", "")
        operation["security"] = [
            {moved.get(start + name, name).removeprefix(start): scopes for name, scopes in each.items()}
            for each in security
        ]
    return operation
