"""All settings of a deployment as one tree of frozen records; `adapter.layers` reads it from where people write them.

A new setting is a field here: its name is its key in `adapter.yaml`, its `Kind` says what it can be.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from adapter.kinds import (
    BATCH_SIZE,
    BOOL,
    BUCKETS,
    CPU,
    GPUS,
    LATENCY_MS,
    PATH,
    PATTERN,
    PER_RESOURCE,
    PLACE,
    PREFIX,
    SECONDS,
    SECRET,
    STRING,
    STRINGS,
    TEXTS,
    TOKENS,
    VALUES,
    WAIT_MS,
    Kind,
    choice,
    choices,
    number,
    optional,
    whole,
)
from adapter.triton.address import ADDRESS, HEADERS, NO_TLS, Address, Tls, parse

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_BACKLOG = 2048
DEFAULT_THREADS = 40
DEFAULT_MAX_BODY_BYTES = 100 << 20
DEFAULT_NAMESPACE = "adapter_api_server"
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# backends of Triton, beside the python one, that saved models can be converted for
BACKENDS = ("onnxruntime", "fil", "pytorch", "openvino")
METHODS = "runnable_method_configs"

T = TypeVar("T")
Keys = tuple[str, ...]  # the keys that lead to a setting


def _is(kind: Kind, default: T, *, key: str = "") -> T:
    """A field that is a setting; `key` where its key in the file is not its name."""
    return field(default=default, metadata={"kind": kind, "key": key})


_A_PATH = {"kind": optional(PATH)}
_A_PLACE = {"kind": optional(PLACE)}


# ---- the API server -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Limits on requests; `max_concurrency` counts those that one front process serves at a time."""

    timeout: float = _is(SECONDS, DEFAULT_TIMEOUT_S)
    max_concurrency: int | None = _is(optional(whole(1), "no limit"), None)
    max_body_bytes: int | None = _is(optional(whole(0), "no limit"), DEFAULT_MAX_BODY_BYTES)


@dataclass(frozen=True)
class Duration:
    """The buckets of the histogram of request durations: listed, or growing by `factor` from `min` to `max`."""

    buckets: tuple[float, ...] = _is(BUCKETS, DEFAULT_BUCKETS)
    min: float | None = _is(optional(number(0, open_low=True)), None)
    max: float | None = _is(optional(number(0, open_low=True)), None)
    factor: float | None = _is(optional(number(1, open_low=True)), None)


@dataclass(frozen=True)
class Metrics:
    enabled: bool = _is(BOOL, True)
    namespace: str = _is(PREFIX, DEFAULT_NAMESPACE)
    duration: Duration = Duration()


@dataclass(frozen=True)
class Access:
    """The access log, and what it says beside the request line."""

    enabled: bool = _is(BOOL, True)
    request_content_length: bool = _is(BOOL, True)
    request_content_type: bool = _is(BOOL, True)
    response_content_length: bool = _is(BOOL, True)
    response_content_type: bool = _is(BOOL, True)


@dataclass(frozen=True)
class Logging:
    """`format` "auto" is text on a terminal and JSON elsewhere."""

    format: Literal["auto", "json", "text"] = _is(choice("auto", "json", "text"), "auto")
    level: Literal["debug", "info", "warning", "error"] = _is(choice("debug", "info", "warning", "error"), "info")
    access: Access = Access()


@dataclass(frozen=True)
class SSL:
    """TLS; `enabled` where there is a certificate, unless it is said otherwise.

    `version` is a `ssl.PROTOCOL_…` and `cert_reqs` a `ssl.CERT_…` of Python.
    """

    enabled: bool = _is(BOOL, False)
    certfile: Path | None = field(default=None, metadata=_A_PATH)
    keyfile: Path | None = field(default=None, metadata=_A_PATH)
    keyfile_password: str | None = _is(optional(SECRET), None)
    ca_certs: Path | None = field(default=None, metadata=_A_PATH)
    version: int = _is(choice(17, 2, 5), 17)
    cert_reqs: int = _is(choice(0, 1, 2), 0)
    ciphers: str | None = _is(optional(STRING, "those that Python finds safe"), None)


@dataclass(frozen=True)
class Cors:
    """Cross-origin requests; `enabled` where origins are named, unless it is said otherwise."""

    enabled: bool = _is(BOOL, False)
    access_control_allow_origins: tuple[str, ...] | None = _is(optional(STRINGS), None)
    access_control_allow_origin_regex: str | None = _is(optional(PATTERN), None)
    access_control_allow_credentials: bool | None = _is(optional(BOOL), None)
    access_control_allow_methods: tuple[str, ...] | None = _is(optional(STRINGS), None)
    access_control_allow_headers: tuple[str, ...] | None = _is(optional(STRINGS), None)
    access_control_max_age: int | None = _is(optional(whole(0)), None)
    access_control_expose_headers: tuple[str, ...] | None = _is(optional(STRINGS), None)


@dataclass(frozen=True)
class HttpResponse:
    """`trace_id`: whether answers carry the id of their trace as a header."""

    trace_id: bool = _is(BOOL, False)


@dataclass(frozen=True)
class Http:
    host: str = _is(STRING, DEFAULT_HOST)
    port: int = _is(whole(0, 65535), DEFAULT_PORT)
    cors: Cors = Cors()
    response: HttpResponse = HttpResponse()


@dataclass(frozen=True)
class ApiServer:
    """How an HTTP server is to run; `threads` are those of one worker, on which plain API functions run.

    `workers` None is one for each CPU, or for every two where the CPUs are Triton's as well.
    With `affinity` "auto" a worker keeps its threads on one CPU while they take turns, see `adapter.server.affinity`.
    Where there are `tokens`, or a `tokens_file`, every request but those for health needs one of them.
    """

    workers: int | None = _is(optional(whole(1), "one for each CPU that Triton leaves"), None)
    backlog: int = _is(whole(1), DEFAULT_BACKLOG)
    threads: int = _is(whole(1, 10_000), DEFAULT_THREADS)
    affinity: Literal["auto", "none"] = _is(choice("auto", "none"), "auto")
    tokens: tuple[str, ...] | None = field(default=None, repr=False, metadata={"kind": optional(TOKENS, "none")})
    tokens_file: Path | None = field(default=None, metadata=_A_PATH)
    traffic: Traffic = Traffic()
    metrics: Metrics = Metrics()
    logging: Logging = Logging()
    ssl: SSL = SSL()
    http: Http = Http()


# ---- runners --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunnerResources:
    cpu: float | str | None = _is(optional(CPU), None)
    nvidia_gpu: float | tuple[int, ...] | str | None = _is(optional(GPUS), None, key="nvidia.com/gpu")
    custom: Mapping[str, Any] | None = _is(optional(VALUES), None)


@dataclass(frozen=True)
class RunnerTraffic:
    """`timeout`: the seconds that one batch may run before its process is taken for hung and started again."""

    timeout: float | None = _is(optional(SECONDS), None)


@dataclass(frozen=True)
class MethodBatching:
    max_batch_size: int | None = _is(optional(BATCH_SIZE), None)
    max_latency_ms: float | None = _is(optional(LATENCY_MS), None)
    max_wait_ms: float | None = _is(optional(WAIT_MS), None)


@dataclass(frozen=True)
class Batching(MethodBatching):
    """`enabled` False: every call of every method runs by itself."""

    enabled: bool | None = _is(optional(BOOL), None)


@dataclass(frozen=True)
class RunnerSettings:
    """What is set of a runner; None is left to what is weaker.

    `isolated` False: its code runs in Triton's own process for an instance, and not in one beside it.
    """

    resources: RunnerResources = RunnerResources()
    workers_per_resource: float | None = _is(optional(PER_RESOURCE), None)
    isolated: bool | None = _is(optional(BOOL), None)
    traffic: RunnerTraffic = RunnerTraffic()
    batching: Batching = Batching()
    runnable_method_configs: Mapping[str, MethodBatching] = field(
        default_factory=dict, metadata={"each": MethodBatching}
    )


@dataclass(frozen=True)
class Runners:
    """Settings of runners: `defaults` give way to what the code says, `named` and `every` do not.

    `named` holds all that is set for one runner by name, `every` what is set for all of them by the environment.
    """

    defaults: RunnerSettings = RunnerSettings()
    every: RunnerSettings = RunnerSettings()
    named: Mapping[str, RunnerSettings] = field(default_factory=dict, metadata={"each": RunnerSettings})


# ---- the rest -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Otlp:
    """Where an OpenTelemetry collector listens; None is what OpenTelemetry's own environment variables say."""

    endpoint: str | None = _is(optional(STRING), None)
    headers: Mapping[str, str] | None = _is(optional(TEXTS), None)


@dataclass(frozen=True)
class Tracing:
    """Tracing with OpenTelemetry; off where there is no `exporter_type`."""

    exporter_type: Literal["otlp", "console"] | None = _is(optional(choice("otlp", "console"), "no tracing"), None)
    sample_rate: float = _is(number(0, 1), 1.0)
    excluded_urls: tuple[str, ...] | None = _is(optional(STRINGS), None)
    timeout: float | None = _is(optional(SECONDS), None)
    otlp: Otlp = Otlp()


@dataclass(frozen=True)
class RunnerTriton:
    """Where the Tritons are that serve one runner."""

    url: str | None = _is(optional(ADDRESS, "those of all runners"), None)


@dataclass(frozen=True)
class Triton:
    """Tritons that run elsewhere: their gRPC address, the manifest of their repository, and their page of metrics.

    Without `url` an engine runs here, on `repository` (None: a temporary folder). `headers` go with every call, such as
    the one that opens a restricted protocol; `runners` have, by name, those that have Tritons of their own. `backends`
    are those that `adapter export` converts saved models for, the first that can serve a model first.
    """

    url: str | None = _is(optional(ADDRESS, "an engine of its own"), None)
    tls: Tls = NO_TLS
    headers: Mapping[str, str] | None = field(default=None, repr=False, metadata={"kind": optional(HEADERS, "none")})
    runners: Mapping[str, RunnerTriton] = field(default_factory=dict, metadata={"each": RunnerTriton})
    manifest: Path | str | None = field(default=None, metadata=_A_PLACE)
    metrics_url: str | None = _is(optional(STRING), None)
    repository: Path | str | None = field(default=None, metadata=_A_PLACE)
    backends: tuple[str, ...] = _is(choices(*BACKENDS), ())

    @property
    def elsewhere(self) -> bool:
        """Whether runners are served by Tritons that run elsewhere, and not by an engine here."""
        return self.url is not None or any(runner.url is not None for runner in self.runners.values())

    def at(self, url: str) -> Address:
        """The Tritons at an address, with TLS and headers as they are set; ConfigException as `parse`."""
        return parse(url, self.tls, self.headers)


@dataclass(frozen=True)
class Settings:
    """All settings of one deployment; `Settings()` are the defaults."""

    version: int = _is(choice(1), 1)
    api_server: ApiServer = ApiServer()
    runners: Runners = Runners()
    tracing: Tracing = Tracing()
    triton: Triton = Triton()
    # settings below `api_server` by the name of a class-based service, their keys with dots between them; some secret
    services: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, metadata={"carried": dict})
    # those of `api_server` that are said in the environment or by flags, which nothing in code or a file changes
    strong: tuple[str, ...] = field(default=(), metadata={"carried": tuple})

    def to_json(self) -> str:
        """The settings for another process."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return _from_plain(cls, json.loads(text))


def _from_plain(record: type[T], values: Mapping[str, Any]) -> T:
    types = typing.get_type_hints(record)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(record):  # type: ignore[arg-type]  # T is always a dataclass
        value = values[f.name]
        if "kind" in f.metadata:
            found[f.name] = f.metadata["kind"].read(value)
        elif "carried" in f.metadata:
            found[f.name] = f.metadata["carried"](value)
        elif "each" in f.metadata:
            found[f.name] = {name: _from_plain(f.metadata["each"], each) for name, each in value.items()}
        else:
            found[f.name] = _from_plain(types[f.name], value)
    return record(**found)


# ---- the tree as keys -----------------------------------------------------------------------------------------------


def kinds(record: type[Any]) -> dict[Keys, Kind]:
    """Every setting below a record, by the keys that lead to it; runners are not in it."""
    found: dict[Keys, Kind] = {}
    types = typing.get_type_hints(record)
    for f in dataclasses.fields(record):
        if "kind" in f.metadata:
            found[(_key(f),)] = f.metadata["kind"]
        elif not {"each", "carried"} & f.metadata.keys() and types[f.name] is not Runners:
            found |= {(_key(f), *keys): kind for keys, kind in kinds(types[f.name]).items()}
    return found


def made(record: type[T], values: Mapping[Keys, Any]) -> T:
    """A record of the values that its keys lead to; what is not among them keeps its default."""
    types = typing.get_type_hints(record)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(record):  # type: ignore[arg-type]  # T is always a dataclass
        key = _key(f)
        below = {keys[1:]: value for keys, value in values.items() if keys[0] == key}
        if not below:
            continue
        if "kind" in f.metadata:
            found[f.name] = below[()]
        elif "each" in f.metadata:
            names = dict.fromkeys(keys[0] for keys in below)
            found[f.name] = {
                name: made(f.metadata["each"], {k[1:]: v for k, v in below.items() if k[0] == name}) for name in names
            }
        else:
            found[f.name] = made(types[f.name], below)
    return record(**found)


def flat(record: Any) -> dict[Keys, Any]:
    """What a record is made of, by keys: the reverse of `made`."""
    found: dict[Keys, Any] = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if "kind" in f.metadata:
            found[(_key(f),)] = value
        elif "each" in f.metadata:
            found |= {(_key(f), name, *keys): v for name, each in value.items() for keys, v in flat(each).items()}
        elif not isinstance(value, Runners) and "carried" not in f.metadata:
            found |= {(_key(f), *keys): v for keys, v in flat(value).items()}
    return found


def with_values(record: T, values: Mapping[Keys, Any]) -> T:
    """The record with other values at some keys, each read as its kind; WrongKind where one is not of it."""
    known = kinds(type(record))
    return made(type(record), {**flat(record), **{keys: known[keys].read(value) for keys, value in values.items()}})


def _key(f: dataclasses.Field[Any]) -> str:
    return f.metadata.get("key") or f.name
