"""`adapter server`: serve an endpoint, describe it, and store its assets."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from adapter.cli.engine import ensure
from adapter.endpoint import fetching
from adapter.endpoint.documenter import DocumentationFormat
from adapter.endpoint.loading import check, load_service, maybe_set_volume_environment_variables
from adapter.endpoint.server import DEFAULT_DRAIN_S, DEFAULT_KEEP_ALIVE_S, DEFAULT_PORT, Server
from adapter.endpoint.service import Service
from adapter.exceptions import AdapterError
from adapter.layers import load
from adapter.server import logs
from adapter.server.guard import tokens_of

_output_file = click.option(
    "--output-file", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output."
)


@dataclasses.dataclass(frozen=True)
class _Named:
    """Where the service is, as the options say."""

    module: str
    class_name: str | None

    def service(self) -> Service:
        return load_service(self.module, self.class_name)

    def use_volume(self) -> None:
        maybe_set_volume_environment_variables(self.module, self.class_name)


@click.group()
@click.option(
    "--log-level",
    type=click.Choice(["ERROR", "WARNING", "INFO", "DEBUG"], case_sensitive=False),
    default="INFO",
    show_default=True,
    envvar="ADAPTER_LOG_LEVEL",
    show_envvar=True,
)
@click.option("--service-module", default="service", show_default=True, help="The module with the service.")
@click.option("--service-class", help="Its class, where the module has several.")
@click.pass_context
def server(context: click.Context, log_level: str, service_module: str, service_class: str | None) -> None:
    """Serve an endpoint: a class that extends adapter.endpoint.Service."""
    logs.set_up("server", level=log_level.upper())
    click.echo("adapter server", err=True)  # what is redirected is the answer alone
    context.obj = _Named(service_module, service_class)


@server.command()
@_output_file
@click.pass_obj
def api_schema(named: _Named, output_file: Path | None) -> None:
    """Print the OpenAPI document."""
    _write(json.dumps(Server(named.service()).get_api_schema(), indent=2), output_file)


@server.command()
@click.option(
    "--format",
    "format_name",
    required=True,
    type=click.Choice([known.value for known in DocumentationFormat], case_sensitive=False),
)
@click.option("--no-render", is_flag=True, help="The template and its values as JSON.")
@_output_file
@click.pass_obj
def generate_usage_examples(named: _Named, format_name: str, *, no_render: bool, output_file: Path | None) -> None:
    """Print an example of a call, ready to be pasted."""
    examples = Server(named.service()).get_usage_examples(DocumentationFormat(format_name.lower()))
    text = json.dumps(dataclasses.asdict(examples), indent=2) if no_render else examples.render().rstrip("\n")
    _write(text, output_file)


@server.command()
@click.pass_obj
def setup_service(named: _Named) -> None:
    """Run setup() once, here; such as for an image that is to hold what it downloads."""
    Server(named.service(), async_enable=False).service.setup()


@server.command()
@click.option("--check-is-needed", is_flag=True, help="Store nothing: exit with 10 where it is needed, else with 11.")
@click.pass_obj
def store_assets(named: _Named, *, check_is_needed: bool) -> None:
    """Run store_assets(), with the volume's variables set."""
    if check_is_needed:
        check(named.module, named.class_name)
    named.use_volume()
    Server(named.service(), async_enable=False).store_assets()


@server.command()
@click.option("--host", default="127.0.0.1", show_default=True, envvar="ADAPTER_HOST", show_envvar=True)
@click.option("--port", type=int, default=DEFAULT_PORT, show_default=True, envvar="ADAPTER_PORT", show_envvar=True)
@click.option(
    "--async-enable",
    type=bool,
    default=True,
    show_default=True,
    help="Whether the service runs in a process of its own, under Triton.",
)
@click.option(
    "--timeout-keep-alive",
    type=int,
    default=DEFAULT_KEEP_ALIVE_S,
    show_default=True,
    help="Seconds that an idle connection is kept.",
)
@click.option(
    "--drain-timeout",
    type=float,
    default=DEFAULT_DRAIN_S,
    show_default=True,
    help="Seconds that a call may still take after SIGTERM.",
)
@click.option("--allow-urls", is_flag=True, help="Let media be given by URL, from public addresses only.")
@click.option("--triton", hidden=True)
@click.pass_obj
def run(
    named: _Named,
    host: str,
    port: int,
    *,
    async_enable: bool,
    timeout_keep_alive: int,
    drain_timeout: float,
    allow_urls: bool,
    triton: str | None,
) -> None:
    """Serve over HTTP.

    With ADAPTER_API_TOKENS, or ADAPTER_API_TOKENS_FILE, every request but those for /healthcheck needs a bearer token.
    """
    if triton is not None:
        raise click.UsageError(
            "--triton is for `adapter serve`: an endpoint's service lives in one process on this machine, which the "
            "server starts and watches."
        )
    tokens = tokens_of(load(None, os.environ).settings.api_server)
    named.use_volume()
    limits = fetching.Limits(allowed=allow_urls)
    endpoint = Server(named.service(), async_enable, limits=limits, find_engine=lambda: ensure(os.environ))
    code = endpoint.run(port, timeout_keep_alive, host=host, drain_s=drain_timeout, tokens=tokens)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a thread of the user's that never ends would keep the process


def _write(text: str, output_file: Path | None) -> None:
    if output_file is None:
        click.echo(text)
    else:
        output_file.write_text(f"{text}\n", encoding="utf-8")


def main() -> Any:
    """`python -m adapter.endpoint.server`: the same, with errors as one sentence."""
    try:
        server(prog_name="adapter server")
    except AdapterError as error:
        raise SystemExit(f"Error: {error}") from error
