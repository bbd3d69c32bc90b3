"""`adapter serve`: serve a service over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from adapter.cli.engine import ensure
from adapter.server import logs
from adapter.server.app import DEFAULT_TIMEOUT_S
from adapter.server.launch import DEFAULT_HOST, DEFAULT_PORT, ServeOptions
from adapter.server.launch import serve as launch


@click.command(context_settings={"auto_envvar_prefix": "ADAPTER", "show_default": True})
@click.argument("service")
@click.option("--host", default=DEFAULT_HOST, help="The address to listen on.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, help="0 takes any free port.")
@click.option("--api-workers", type=click.IntRange(min=1), help="Front processes; by default one for each CPU.")
@click.option(
    "--working-dir", type=click.Path(path_type=Path), default=Path("."), help="Where the service's code lies."
)
@click.option("--development", is_flag=True, help="One process, runners inside it, no engine, no batching.")
@click.option("--triton", metavar="URL", help="Call a Triton that runs elsewhere: grpc://host:8001.")
@click.option("--manifest", type=click.Path(path_type=Path), help="With --triton: the manifest.json of its repository.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_TIMEOUT_S, help="Seconds.")
@click.option(
    "--repository", type=click.Path(path_type=Path), help="Export to this folder; by default a temporary one."
)
def serve(
    service: str,
    host: str,
    port: int,
    api_workers: int | None,
    working_dir: Path,
    development: bool,
    triton: str | None,
    manifest: Path | None,
    timeout: float,
    repository: Path | None,
) -> None:
    """Serve SERVICE ("module:attribute", "file.py:attribute" or a module with one service) over HTTP."""
    if manifest is not None and triton is None:
        raise click.UsageError("--manifest goes with --triton: without it, the service is exported here.")
    logs.set_up("cli")
    options = ServeOptions(
        target=service,
        working_dir=working_dir,
        host=host,
        port=port,
        api_workers=api_workers,
        development=development,
        triton=triton,
        manifest=manifest,
        repository=repository.resolve() if repository is not None else None,
        timeout_s=timeout,
    )
    sys.exit(launch(options, lambda: ensure(os.environ)))
