"""`adapter export`: write a service into a Triton model repository."""

from __future__ import annotations

import os
from pathlib import Path

import click

from adapter.cli.settings import config_option, working_dir_option
from adapter.layers import find_file, load
from adapter.server.launch import DEFAULT_REPOSITORY, load_recorded
from adapter.triton.export import plan, write


@click.command()
@click.argument("service")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"The folder that Triton serves; {DEFAULT_REPOSITORY} unless the settings name another.",
)
@working_dir_option
@config_option
@click.option("--prefix", default="", help="Put this and a dot before the name of every entry.")
def export(service: str, repository: Path | None, working_dir: Path, config: Path | None, prefix: str) -> None:
    """Write SERVICE ("module:attribute" or "file.py:attribute") into a Triton model repository."""
    settings = load(find_file(config, working_dir), os.environ).settings
    shown = repository or settings.triton.repository or DEFAULT_REPOSITORY
    place = shown.resolve()
    found, tags = load_recorded(service, working_dir, settings.runners)
    for written in write(plan(found, folder=Path.cwd(), tags=tags, prefix=prefix), place):
        state = "written" if written.changed else "unchanged"
        click.echo(f"{state:>9}  {written.name}  version {written.version}")
    click.echo(f"{found.name} is in {shown}; Triton serves it with --model-repository={shown}.")
