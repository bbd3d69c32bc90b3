"""Settings from where people write them, weakest first: `adapter.yaml`, the environment, flags."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter.document import Marked, parse, parse_value
from adapter.exceptions import ConfigException
from adapter.kinds import COUNT_OF_WORKERS, SYSTEM, Kind, WrongKind, optional
from adapter.settings import (
    METHODS,
    ApiServer,
    Keys,
    MethodBatching,
    Runners,
    RunnerSettings,
    RunnerTriton,
    Settings,
    kinds,
    made,
)

FILE = "adapter.yaml"
OPTIONS = "ADAPTER_CONFIG_OPTIONS"
TOKENS = "ADAPTER_API_TOKENS"
# settings that have a variable and no flag: everybody on a machine can read flags
_VARIABLES: Mapping[str, Keys] = {
    TOKENS: ("api_server", "tokens"),
    "ADAPTER_API_TOKENS_FILE": ("api_server", "tokens_file"),
    "ADAPTER_TRITON_HEADERS": ("triton", "headers"),
}
DEFAULT_SOURCE = "default"
RANK_FILE, RANK_OPTIONS, RANK_VARIABLE, RANK_FLAG = range(4)

# what `adapter.Runner` calls it -> where it stands among the settings of a runner
_SHORT: Mapping[str, Keys] = {
    "cpu": ("resources", "cpu"),
    "nvidia_gpu": ("resources", "nvidia.com/gpu"),
    "gpu": ("resources", "nvidia.com/gpu"),
    "custom_resources": ("resources", "custom"),
    "max_batch_size": ("batching", "max_batch_size"),
    "max_latency_ms": ("batching", "max_latency_ms"),
    "max_wait_ms": ("batching", "max_wait_ms"),
}
_METHODS_TOO = "method_configs"

# settings of BentoML and of older ones of it -> their place here; those of a runner are named without it
_MOVED = {
    "api_server.host": "api_server.http.host",
    "api_server.port": "api_server.http.port",
    "api_server.cors": "api_server.http.cors",
    "api_server.timeout": "api_server.traffic.timeout",
    "api_server.http.timeout": "api_server.traffic.timeout",
    "api_server.max_concurrency": "api_server.traffic.max_concurrency",
    "api_server.max_request_size": "api_server.traffic.max_body_bytes",
    "api_server.api_workers": "api_server.workers",
    "logging": "api_server.logging",
    "metrics": "api_server.metrics",
    "runners.timeout": "runners.traffic.timeout",
    "runners.name": "runners, written as a list of runners with a `name` each",
    "tracing.type": "tracing.exporter_type",
    "tracing.otlp.url": "tracing.otlp.endpoint",
}
_ABSENT = {
    "api_server.grpc": "adapter serves HTTP; Triton itself speaks gRPC",
    "api_server.logging.access.format": "the access log names the id of the request",
    "api_server.max_runner_connections": "one connection to Triton carries all calls of a worker",
    "api_server.runner_probe": "/readyz always asks whether every entry is ready",
    "runners.logging": "api_server.logging holds for runners, too",
    "runners.metrics": "api_server.metrics holds for runners, too",
    "runners.traffic.max_concurrency": "calls wait for their turn as long as batching.max_latency_ms allows",
    "monitoring": "adapter does not log the inputs and outputs of APIs: log them in the API function",
    "tracing.jaeger": "Jaeger takes OTLP: set tracing.exporter_type to otlp, and tracing.otlp.endpoint",
    "tracing.zipkin": "an OpenTelemetry collector feeds Zipkin: set tracing.exporter_type to otlp",
    "tracing.max_tag_value_length": "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT in the environment says it",
}

_SETTINGS, _RUNNER, _METHOD = kinds(Settings), kinds(RunnerSettings), kinds(MethodBatching)
_RUNNER_TRITON = kinds(RunnerTriton)
_TRITON_RUNNERS: Keys = ("triton", "runners")
_SERVER = {("workers",): optional(COUNT_OF_WORKERS), **{k: v for k, v in kinds(ApiServer).items() if k != ("workers",)}}
_OPTION = re.compile(
    r"""\s*(?P<key>(?:"[^"]*"|[^\s="])+)=(?P<value>(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^\s"'\[])*)(?=\s|$)"""
)
_UNREAD = object()
_LONGEST_KEY = 200  # the dotted name of a setting of a runner comes as one
_SEGMENT = re.compile(r'"([^"]*)"|([^."]+)')


@dataclass(frozen=True)
class Given:
    """One setting that a person wrote, read and checked.

    `source` tells where. `runner` is None where the setting is none of a runner's; else `keys` begin below the runner,
    and "" stands for all runners. Where `service` names a class-based service, they begin below `api_server`.
    """

    keys: Keys
    value: Any
    source: str
    rank: int
    runner: str | None = None
    service: str = ""


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each that somebody wrote, by its runner (see `Given`) and keys, where it comes from."""

    settings: Settings
    sources: Mapping[tuple[str | None, Keys], str]

    def source(self, keys: Keys, runner: str | None = None) -> str:
        return self.sources.get((runner, keys), DEFAULT_SOURCE)


def load(file: Path | None, environ: Mapping[str, str], given: Iterable[Given] = ()) -> Loaded:
    """Merge a file, what stands in the environment alone, and what was given one by one.

    Raises ConfigException with one sentence that names the setting, its value and where it was written.
    """
    found = list(_of_file(file, environ)) if file is not None else []
    found += _of_options(environ)
    # an empty variable is refused as any other wrong value: a token that was forgotten must not open a server
    found += [
        setting(keys, environ[name], f"environment {name}", RANK_VARIABLE)
        for name, keys in _VARIABLES.items()
        if name in environ
    ]
    return _merged([*found, *given])


def find_file(named: Path | None, working_dir: Path) -> Path | None:
    """The file with the settings: the one named, else `adapter.yaml` of the working directory where there is one."""
    if named is not None:
        return named
    file = working_dir / FILE
    return file if file.exists() else None


def setting(keys: Keys, value: Any, source: str, rank: int) -> Given:
    """One setting from outside a file; a relative path in it begins at the current directory."""
    return Given(keys, _read(_SETTINGS[keys], keys, Marked(value, source), Path.cwd()), source, rank)


# ---- reading --------------------------------------------------------------------------------------------------------


def _of_file(file: Path, environ: Mapping[str, str]) -> Iterator[Given]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigException(f"There is no file {str(file)!r} to read settings from.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigException(f"{str(file)!r} cannot be read: {reason}.") from error
    document = parse(text, str(file), environ)
    if document is not None:
        yield from _givens(document, RANK_FILE, Path(os.path.abspath(file)).parent)


def _of_options(environ: Mapping[str, str]) -> Iterator[Given]:
    text, source = environ.get(OPTIONS, "").rstrip(), f"environment {OPTIONS}"
    position = 0
    while position < len(text):
        match = _OPTION.match(text, position)
        if match is None:
            raise ConfigException(
                f"{OPTIONS} cannot be read from {reprlib.repr(text[position:].split('=')[0].strip())} on: write it as "
                '`api_server.http.port=5000 "runners.x".batching.enabled=false`.'
            )
        position = match.end()
        value = parse_value(match["value"], source)
        for segment in reversed(_segments(match["key"])):
            value = Marked({segment: value}, source)
        yield from _givens(value, RANK_OPTIONS, Path.cwd())


def _segments(key: str) -> list[str]:
    found: list[str] = []
    for quoted, bare in _SEGMENT.findall(key):
        if found or not quoted:  # quotes keep the dots of a name that has some
            found.append(quoted or bare)
        else:  # `"runners.x".batching` is how BentoML writes it
            found += quoted.split(".", 1 if quoted.startswith("runners.") else -1)
    if found[-2:] == ["nvidia", "com/gpu"]:  # the one setting with a dot
        found[-2:] = ["nvidia.com/gpu"]
    return found


# ---- keys -----------------------------------------------------------------------------------------------------------


def _givens(document: Marked, rank: int, base: Path) -> Iterator[Given]:
    entries = _mapping(document, "the configuration", _heads(_SETTINGS))
    for key, item in entries.items():
        if key == "runners":
            yield from _runners(item, rank, base)
        elif key == "services":
            yield from _services(item, rank, base)
        elif key == "triton" and isinstance(item.value, dict) and "runners" in item.value:
            values = dict(item.value)
            yield from _triton_runners(values.pop("runners"), rank, base)
            yield from _givens(Marked({key: Marked(values, item.source)}, document.source), rank, base)
        else:
            for keys, leaf in _leaves(_SETTINGS, (), key, item, ""):
                yield Given(keys, _read(_SETTINGS[keys], keys, leaf, base), leaf.source, rank)


def _leaves(
    table: Mapping[Keys, Kind], above: Keys, key: str, item: Marked, place: str
) -> Iterator[tuple[Keys, Marked]]:
    """The settings at and below a key; `place` is what stands before `above` in the words of an error."""
    keys = (*above, key)
    if keys in table:
        yield keys, item
        return
    below = {k[len(keys) :]: kind for k, kind in table.items() if k[: len(keys)] == keys}
    if not below:
        raise _unknown((*filter(None, [place]), *keys), _heads(table, above), item.source)
    if item.value is None:  # a section with everything in it commented out
        return
    for name, value in _mapping(item, _dotted((*filter(None, [place]), *keys)), _heads(below)).items():
        yield from _leaves(table, keys, name, value, place)


def of_code(values: Mapping[str, Any], source: str) -> Mapping[Keys, Any]:
    """The settings below `api_server` that a class-based service has in its code, read and checked."""
    found = _services(Marked({source: _marked(values, source)}, source), RANK_FILE, Path.cwd())
    return {given.keys: given.value for given in found}


def _marked(value: Any, source: str) -> Marked:
    if isinstance(value, Mapping):
        return Marked({str(key): _marked(item, source) for key, item in value.items()}, source)
    if isinstance(value, (list, tuple)):
        return Marked([Marked(item, source) for item in value], source)
    return Marked(value, source)


def _services(item: Marked, rank: int, base: Path) -> Iterator[Given]:
    """What is set of the server of a class-based service, by the name of its class."""
    if item.value is None:
        return
    for name, values in _mapping(item, "services", []).items():
        if values.value is None:
            continue
        place = f"services.{name}"
        for key, value in _mapping(values, place, _heads(_SERVER)).items():
            for keys, leaf in _leaves(_SERVER, (), key, value, place):
                kind = _SERVER[keys]
                yield Given(keys, _read(kind, (place, *keys), leaf, base), leaf.source, rank, service=name.lower())


def _triton_runners(item: Marked, rank: int, base: Path) -> Iterator[Given]:
    """Where runners have Tritons of their own, by their names."""
    if item.value is None:
        return
    for name, values in _mapping(item, _dotted(_TRITON_RUNNERS), []).items():
        if values.value is None:
            continue
        place = _dotted((*_TRITON_RUNNERS, name))
        for key, value in _mapping(values, place, _heads(_RUNNER_TRITON)).items():
            for keys, leaf in _leaves(_RUNNER_TRITON, (), key, value, place):
                read = _read(_RUNNER_TRITON[keys], (place, *keys), leaf, base)
                yield Given((*_TRITON_RUNNERS, name.lower(), *keys), read, leaf.source, rank)


def _runners(item: Marked, rank: int, base: Path) -> Iterator[Given]:
    if item.value is None:
        return
    if isinstance(item.value, list):
        seen: set[str] = set()
        for entry in item.value:
            values = dict(_mapping(entry, "each of the runners", ["name", *_SHORT, *_heads(_RUNNER)]))
            name = values.pop("name", Marked(None, entry.source))
            if not isinstance(name.value, str) or not name.value:
                raise ConfigException(f"A runner of the list ({name.source}) has no `name`.")
            if name.value.lower() in seen:
                raise ConfigException(f"The runner {name.value!r} is in the list a second time ({name.source}).")
            seen.add(name.value.lower())
            yield from _runner(name.value.lower(), values, rank, base)
        return
    known = [*_heads(_RUNNER), *_SHORT]
    for key, value in _mapping(item, "runners", known).items():
        words = _dotted(("runners", key))
        if key in (*known, METHODS, _METHODS_TOO):
            yield from _runner("", {key: value}, rank, base)
        elif isinstance(value.value, dict) and key and words not in (*_MOVED, *_ABSENT):
            yield from _runner(key.lower(), value.value, rank, base)
        elif value.value is not None or words in (*_MOVED, *_ABSENT):
            raise _unknown(("runners", key), known, value.source)


def _runner(name: str, values: Mapping[str, Marked], rank: int, base: Path) -> Iterator[Given]:
    place = _dotted(("runners", name)) if name else "runners"
    for key, item in values.items():
        leaves: Iterable[tuple[Keys, Marked]]
        if key in _SHORT:
            leaves = [(_SHORT[key], item)]
        elif key == "resources" and item.value == SYSTEM:
            leaves = [(("resources", resource), item) for resource in ("cpu", "nvidia.com/gpu")]
        elif key in (METHODS, _METHODS_TOO):
            if not name:
                raise ConfigException(
                    f"runners.{key} ({item.source}) names methods, which belong to one runner: write them below "
                    "runners.<its name>."
                )
            yield from _methods(name, place, item, rank, base)
            continue
        else:
            leaves = _leaves(_RUNNER, (), key, item, place)
        for keys, leaf in leaves:
            yield Given(keys, _read(_RUNNER[keys], (place, *keys), leaf, base), leaf.source, rank, name)


def _methods(runner: str, place: str, item: Marked, rank: int, base: Path) -> Iterator[Given]:
    if item.value is None:
        return
    listed: Iterable[tuple[str, Marked]]
    if isinstance(item.value, list):
        listed = [_named(entry, place) for entry in item.value]
    else:
        listed = _mapping(item, f"{place}.{METHODS}", []).items()
    for method, values in listed:
        above = f"{place}.{METHODS}.{method}"
        for key, value in _mapping(values, above, _heads(_METHOD)).items():
            for keys, leaf in _leaves(_METHOD, (), key, value, above):
                read = _read(_METHOD[keys], (above, *keys), leaf, base)
                yield Given((METHODS, method, *keys), read, leaf.source, rank, runner)


def _named(entry: Marked, place: str) -> tuple[str, Marked]:
    values = dict(_mapping(entry, f"each of {place}.{METHODS}", ["method_name", *_heads(_METHOD)]))
    names = [values.pop(key) for key in ("method_name", "name") if key in values]
    if len(names) != 1 or not isinstance(names[0].value, str) or not names[0].value:
        raise ConfigException(f"An entry of {place}.{METHODS} ({entry.source}) has no one `method_name`.")
    return names[0].value, Marked(values, entry.source)


def _mapping(item: Marked, what: str, known: Iterable[str]) -> Mapping[str, Marked]:
    if not isinstance(item.value, dict):
        keys = f" with keys such as {', '.join(list(known)[:4])}" if known else ""
        raise ConfigException(f"{what} is {_shown(item.plain)} ({item.source}), but is a section{keys}.")
    return item.value


def _read(kind: Kind, keys: Keys, item: Marked, base: Path) -> Any:
    readings = [item.plain] if item.text is None else [item.text, item.plain]
    value = _first_read(kind, readings if item.plain is not None else reversed(readings))
    if value is _UNREAD:
        shown = "a value that is not shown" if kind.secret else _shown(item.plain)
        raise ConfigException(f"{_dotted(keys)} is {shown} ({item.source}), but can only be {kind.text}.")
    # not resolved: a secret that is mounted into a container is a link that changes
    return Path(os.path.abspath(base / value)) if isinstance(value, Path) else value


def _first_read(kind: Kind, values: Iterable[Any]) -> Any:
    for value in values:
        with contextlib.suppress(WrongKind):
            return kind.read(value)
    return _UNREAD


def _unknown(keys: Keys, known: Iterable[str], source: str) -> ConfigException:
    words = _dotted(keys)
    # a setting of one runner is looked up as one of all
    general = re.sub(r"^runners\.[^.]+\.", "runners.", words) if words.count(".") > 1 else words
    if general in _MOVED:
        return ConfigException(f"{words} ({source}) is no setting here: it is {_MOVED[general]}.")
    if general in _ABSENT:
        return ConfigException(f"{words} ({source}) is no setting here: {_ABSENT[general]}.")
    names = sorted({*known})
    near = difflib.get_close_matches(keys[-1], names, n=1, cutoff=0.5)
    if not near:
        everywhere = {k[-1]: _dotted(k) for k in reversed(list(_SETTINGS))}
        near = [everywhere[k] for k in difflib.get_close_matches(keys[-1], everywhere, n=1, cutoff=0.7)]
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
    return ConfigException(f"{words} ({source}) is no setting: {hint}")


def _heads(table: Mapping[Keys, Kind], above: Keys = ()) -> list[str]:
    depth = len(above)
    names = dict.fromkeys(keys[depth] for keys in table if keys[:depth] == above and len(keys) > depth)
    return [*names, "runners", "services"] if table is _SETTINGS and not above else list(names)


def _dotted(keys: Keys) -> str:
    return ".".join(_short(key if key.isprintable() else repr(key)[1:-1]) for key in keys)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_KEY else f"{text[: _LONGEST_KEY - 1]}…"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(value)


# ---- merging --------------------------------------------------------------------------------------------------------

_SSL: Keys = ("api_server", "ssl")
_CORS: Keys = ("api_server", "http", "cors")
_DURATION: Keys = ("api_server", "metrics", "duration")
_ORIGINS = ("access_control_allow_origins", "access_control_allow_origin_regex")


def _merged(found: list[Given]) -> Loaded:
    """The settings of what was given."""
    # within one rank, what names a runner is stronger than what is said of all
    found = sorted(found, key=lambda g: (g.rank, bool(g.runner)))
    services: dict[str, dict[str, Any]] = {}
    for g in [g for g in found if g.service]:
        services.setdefault(g.service, {})[".".join(g.keys)] = g.value
    found = [g for g in found if not g.service]
    values = {g.keys: g for g in found if g.runner is None}
    _enable(values, _SSL, ("certfile",))
    _enable(values, _CORS, _ORIGINS)
    _check(values)
    runners = [g for g in found if g.runner is not None]
    stacks = {None: values, "": _stack(g for g in runners if g.runner == "")}
    defaults = _stack(g for g in runners if g.runner == "" and g.rank == RANK_FILE)
    every = _stack(g for g in runners if g.runner == "" and g.rank > RANK_FILE)
    for name in dict.fromkeys(g.runner for g in runners if g.runner):
        stacks[name] = _stack(g for g in runners if g.runner == name or (g.runner == "" and g.rank > RANK_FILE))
    named = {name: made(RunnerSettings, _values(stack)) for name, stack in stacks.items() if name}
    tree = Runners(made(RunnerSettings, _values(defaults)), made(RunnerSettings, _values(every)), named)
    return Loaded(
        replace(made(Settings, _values(values)), runners=tree, services=services, strong=_strong(values)),
        {(name, keys): g.source for name, stack in stacks.items() for keys, g in stack.items()},
    )


def _strong(values: Mapping[Keys, Given]) -> tuple[str, ...]:
    return tuple(sorted(".".join(k[1:]) for k, g in values.items() if k[0] == "api_server" and g.rank > RANK_FILE))


def _stack(found: Iterable[Given]) -> dict[Keys, Given]:
    """The last of each; what is said of a whole runner takes the place of what a weaker layer said of one method."""
    values: dict[Keys, Given] = {}
    for g in found:
        for keys in [k for k in values if k[0] == METHODS and k[2:] == g.keys[1:] and values[k].rank < g.rank]:
            del values[keys]
        values[g.keys] = g
    return values


def _values(stack: Mapping[Keys, Given]) -> dict[Keys, Any]:
    return {keys: g.value for keys, g in stack.items()}


def _enable(values: dict[Keys, Given], section: Keys, signs: Iterable[str]) -> None:
    """Enable what has been set up, unless `enabled` says otherwise."""
    enabled = (*section, "enabled")
    for sign in signs:
        g = values.get((*section, sign))
        if enabled not in values and g is not None and g.value:
            values[enabled] = replace(g, keys=enabled, value=True)


def _check(values: Mapping[Keys, Given]) -> None:
    """Raise ConfigException where settings do not go together."""
    _check_section(values, _SSL, ("certfile",), "a certificate")
    _check_section(values, _CORS, _ORIGINS, "an origin that is allowed")
    required = values.get((*_SSL, "cert_reqs"))
    if required is not None and required.value and not _set(values, _SSL, "ca_certs") and _set(values, _SSL, "enabled"):
        raise ConfigException(
            f"{_dotted(required.keys)} is {required.value} ({required.source}), so clients need certificates: say in "
            "api_server.ssl.ca_certs which authorities may have signed them."
        )
    growing = [_set(values, _DURATION, name) for name in ("min", "max", "factor")]
    if any(growing):
        first = next(g for g in growing if g)
        if not all(growing) or growing[0].value >= growing[1].value:  # type: ignore[union-attr]  # all of them are set
            raise ConfigException(
                f"{_dotted(first.keys)} ({first.source}) is one of min, max and factor, which go together, min below "
                "max."
            )
        if buckets := _set(values, _DURATION, "buckets"):
            raise ConfigException(
                f"{_dotted(buckets.keys)} ({buckets.source}) and min, max and factor ({first.source}) both say what "
                "the buckets are: leave out one of them."
            )
    elsewhere = [g for keys, g in values.items() if g.value and keys[0] == "triton" and keys[-1] == "url"]
    for name in ("manifest", "metrics_url"):
        if (g := _set(values, ("triton",), name)) and not elsewhere:
            raise ConfigException(
                f"triton.{name} ({g.source}) goes with triton.url (--triton): without it, the service is exported here "
                "and an engine of its own serves it."
            )


def _check_section(values: Mapping[Keys, Given], section: Keys, signs: Iterable[str], what: str) -> None:
    if any(_set(values, section, sign) for sign in signs):
        return
    enabled = values.get((*section, "enabled"))
    if enabled is not None and not enabled.value:
        return
    # null and the like says nothing
    others = [g for keys, g in values.items() if keys[: len(section)] == section and g.value is not None]
    if others:
        raise ConfigException(
            f"{_dotted(others[0].keys)} ({others[0].source}) has no effect without {what}: set "
            f"{' or '.join(_dotted((*section, sign)) for sign in signs)}."
        )


def _set(values: Mapping[Keys, Given], section: Keys, name: str) -> Given | None:
    g = values.get((*section, name))
    return g if g is not None and g.value else None
