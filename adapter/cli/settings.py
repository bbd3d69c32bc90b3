"""The options of commands that are settings: flags, the variables of the environment beside them, and `--config`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from adapter.layers import RANK_FLAG, RANK_VARIABLE, Given, Loaded, find_file, load, setting
from adapter.settings import Keys, Settings, flat

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One flag, the setting that it is, and, for a switch, the value that it gives it."""

    flags: tuple[str, ...]
    keys: Keys
    help: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None

    @property
    def name(self) -> str:
        """The name of the parameter: that of the first long flag."""
        return next(f for f in self.flags if f.startswith("--")).removeprefix("--").replace("-", "_")


def _option(*flags: str, to: str, help: str, value: Any = None, **attributes: Any) -> Option:  # noqa: A002  # click's
    return Option(flags, tuple(to.split(".")), help, attributes, value)


_DEFAULTS = flat(Settings())
_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)

# to add a flag for a setting, add a line here
SERVER = (
    _option("--host", to="api_server.http.host", help="The address to listen on."),
    _option(
        *("-p", "--port"),
        to="api_server.http.port",
        type=click.IntRange(0, 65535),
        help="0 takes any free port.",
    ),
    _option(
        "--api-workers",
        to="api_server.workers",
        type=_POSITIVE,
        help="Front processes; by default one for each CPU, or for every two beside a Triton that is started here.",
    ),
    _option(
        "--timeout",
        to="api_server.traffic.timeout",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds that a request may take.",
    ),
    _option(
        "--backlog",
        to="api_server.backlog",
        type=_POSITIVE,
        help="Connections that may wait to be accepted.",
    ),
    _option(
        "--max-concurrency",
        to="api_server.traffic.max_concurrency",
        type=_POSITIVE,
        help="Requests that one front process serves at a time; more get 429. There is no limit unless it is said.",
    ),
    _option(
        "--max-body-bytes",
        to="api_server.traffic.max_body_bytes",
        type=click.IntRange(min=0),
        help="Bytes in the body of a request; more get 413.",
    ),
    _option("--ssl-certfile", to="api_server.ssl.certfile", type=_PATH, help="Serve HTTPS with this certificate."),
    _option("--ssl-keyfile", to="api_server.ssl.keyfile", type=_PATH, help="Its key, where that is another file."),
    _option("--ssl-keyfile-password", to="api_server.ssl.keyfile_password", help="The password of the key."),
    _option("--ssl-version", to="api_server.ssl.version", type=int, help="A ssl.PROTOCOL_… of Python."),
    _option(
        "--ssl-cert-reqs",
        to="api_server.ssl.cert_reqs",
        type=click.IntRange(0, 2),
        help="Whether clients need a certificate: 0 no, 1 it is checked where there is one, 2 yes.",
    ),
    _option(
        "--ssl-ca-certs",
        to="api_server.ssl.ca_certs",
        type=_PATH,
        help="The authorities that may have signed the certificates of clients.",
    ),
    _option(
        "--ssl-ciphers",
        to="api_server.ssl.ciphers",
        help="OpenSSL's names of ciphers; Python's choice unless it is said.",
    ),
    _option(
        "--log-format",
        to="api_server.logging.format",
        type=click.Choice(["auto", "json", "text"]),
        help="How the log is written; auto is text on a terminal, and JSON elsewhere.",
    ),
    _option(
        *("-q", "--quiet"),
        to="api_server.logging.level",
        value="error",
        is_flag=True,
        help="Log errors only.",
    ),
    _option(
        *("--verbose", "--debug"),
        to="api_server.logging.level",
        value="debug",
        is_flag=True,
        envvar=["ADAPTER_VERBOSE", "ADAPTER_DEBUG"],
        help="Log what helps to find a fault, too.",
    ),
    _option(
        "--triton",
        to="triton.url",
        metavar="URL",
        help="Call Tritons that run elsewhere: grpc://host:8001, grpcs://host:8001, dns:///name:8001, or several with "
        "commas between them.",
    ),
    _option("--triton-ca", to="triton.tls.ca", type=_PATH, help="Who may have signed the certificate of a Triton."),
    _option(
        "--triton-certificate",
        to="triton.tls.certificate",
        type=_PATH,
        help="The certificate that a Triton is shown.",
    ),
    _option("--triton-key", to="triton.tls.key", type=_PATH, help="Its key, where that is another file."),
    _option(
        "--triton-server-name",
        to="triton.tls.server_name",
        help="The name that the certificate of a Triton is for, where that is not its host.",
    ),
    _option(
        "--manifest",
        to="triton.manifest",
        metavar="PATH|URL",
        help="With --triton: the manifest.json of its repository, which may lie in object storage (s3://…, gs://…).",
    ),
    _option(
        "--repository",
        to="triton.repository",
        metavar="PATH|URL",
        help="Export to this folder instead of a temporary one.",
    ),
)


def repository_option(function: F) -> F:
    """Add `--repository`, which is a setting, to a command."""
    return click.option(
        "--repository",
        metavar="PATH|URL",
        envvar="ADAPTER_REPOSITORY",
        help="The folder that Triton serves, or where it lies in object storage: s3://bucket/prefix, gs://bucket/prefix.",
    )(function)


def config_option(function: F) -> F:
    """Add `--config` to a command."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        envvar="ADAPTER_CONFIG",
        help="The file with settings; by default adapter.yaml of the working directory, where there is one.",
    )(function)


def working_dir_option(function: F) -> F:
    """Add `--working-dir` to a command."""
    return click.option(
        "--working-dir", type=click.Path(path_type=Path), default=Path("."), help="Where the service's code lies."
    )(function)


def setting_options(function: F) -> F:
    """Add `--config` and every flag that is a setting to a command, which takes them as `**flags`."""
    return _options(function, SERVER)


def triton_options(function: F) -> F:
    """Add `--config` and the flags that say where Tritons are, and how they are called, as `setting_options`."""
    return _options(
        function, [option for option in SERVER if option.keys[:2] in (("triton", "url"), ("triton", "tls"))]
    )


def _options(function: F, options: Sequence[Option]) -> F:
    for option in reversed(options):
        default = _DEFAULTS[option.keys] if option.value is None else None
        text = option.help if default is None else f"{option.help}  [default: {default}]"
        function = click.option(*option.flags, option.name, help=text, **option.attributes)(function)
    return config_option(function)


def loaded(context: click.Context, config: Path | None, working_dir: Path) -> Loaded:
    """The settings of a command: of its file, of the environment and of its flags; ConfigException as `load`."""
    return load(find_file(config, working_dir), os.environ, flags_of(context))


def flags_of(context: click.Context) -> list[Given]:
    """The settings that stand in the flags of a command and in the variables beside them."""
    return [g for option in SERVER if (g := _given(context, option)) is not None]


def _given(context: click.Context, option: Option) -> Given | None:
    value = context.params.get(option.name)
    if value is None or (option.value is not None and not value):
        return None
    if context.get_parameter_source(option.name) is ParameterSource.ENVIRONMENT:
        source, rank = f"environment {_variable(context, option)}", RANK_VARIABLE
    else:
        source, rank = next(f for f in option.flags if f.startswith("--")), RANK_FLAG
    return setting(option.keys, value if option.value is None else option.value, source, rank)


def _variable(context: click.Context, option: Option) -> str:
    names: list[str] = [*option.attributes.get("envvar", []), f"ADAPTER_{option.name.upper()}"]
    return next((name for name in names if name in os.environ), names[-1])
