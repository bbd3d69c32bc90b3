"""`adapter serve`: serve a service over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from adapter.cli.engine import ensure
from adapter.cli.settings import flags_of, setting_options, working_dir_option
from adapter.layers import find_file, load
from adapter.server import logs
from adapter.server.launch import ServeOptions
from adapter.server.launch import serve as launch
from adapter.settings import Settings


@click.command(context_settings={"auto_envvar_prefix": "ADAPTER"})
@click.argument("service")
@working_dir_option
@click.option("--development", is_flag=True, help="One process, runners inside it, no engine, no batching.")
@click.option(
    "--reload",
    is_flag=True,
    help="Serve the code anew whenever its files change; one front unless --api-workers is given.",
)
@click.option("--production", is_flag=True, help="The default; here for scripts that name it.")
@setting_options
@click.pass_context
def serve(
    context: click.Context,
    /,
    service: str,
    working_dir: Path,
    config: Path | None,
    *,
    development: bool,
    reload: bool,
    production: bool,
    **flags: Any,
) -> None:
    """Serve SERVICE ("module:attribute", "file.py:attribute" or a module with one service) over HTTP.

    Settings can stand in adapter.yaml or in the environment (ADAPTER_PORT, ADAPTER_TIMEOUT, …) instead; `adapter config
    show` tells which of them count.
    """
    if development and production:
        raise click.UsageError("--development and --production exclude each other.")
    flags_given, folder = flags_of(context), working_dir.resolve()
    named = config.resolve() if config is not None else None

    def read() -> Settings:
        return load(find_file(named, folder), os.environ, flags_given).settings

    settings = read()
    logs.set_up("cli", format=settings.api_server.logging.format, level=settings.api_server.logging.level)
    if production:
        click.echo("--production is the default: leave it out.", err=True)
    options = ServeOptions(
        service, working_dir, development=development, reload=reload, settings=settings, reread=read, config=named
    )
    sys.exit(launch(options, lambda: ensure(os.environ)))
