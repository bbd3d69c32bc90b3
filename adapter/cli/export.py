"""`adapter export`: write a service into a Triton model repository."""

from __future__ import annotations

import os
from pathlib import Path

import click

from adapter.cli.machine import described, gpus_option, machine_of
from adapter.cli.settings import config_option, working_dir_option
from adapter.kinds import WrongKind, choices
from adapter.layers import find_file, load
from adapter.server.launch import DEFAULT_REPOSITORY, load_recorded
from adapter.settings import BACKENDS
from adapter.triton.conversion import Conversion
from adapter.triton.export import plan, write


def _backends(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    kind = choices(*BACKENDS)
    try:
        return None if value is None else kind.read(value)
    except WrongKind as error:
        raise click.BadParameter(f"{value!r} is not {kind.text}.") from error


@click.command()
@click.argument("service")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"The folder that Triton serves; {DEFAULT_REPOSITORY} unless the settings name another.",
)
@working_dir_option
@config_option
@gpus_option
@click.option("--prefix", default="", help="Put this and a dot before the name of every entry.")
@click.option(
    "--backends",
    metavar="NAME,NAME…",
    callback=_backends,
    help="Convert saved models for the first of these backends of Triton that answers as the model itself: "
    f"{', '.join(BACKENDS)}. The others stay with the python backend, and it is said why.",
)
def export(
    service: str,
    repository: Path | None,
    working_dir: Path,
    config: Path | None,
    gpus: int | None,
    prefix: str,
    backends: tuple[str, ...] | None,
) -> None:
    """Write SERVICE ("module:attribute" or "file.py:attribute") into a Triton model repository."""
    settings = load(find_file(config, working_dir), os.environ).settings
    shown = repository or settings.triton.repository or DEFAULT_REPOSITORY
    place = shown.resolve()
    found, tags = load_recorded(service, working_dir, settings.runners)
    conversion = Conversion(settings.triton.backends if backends is None else backends)
    planned = plan(
        found,
        folder=Path.cwd(),
        tags=tags,
        machine=machine_of(gpus),
        prefix=prefix,
        convert=conversion if conversion.backends else None,
    )
    for sentence in conversion.told:
        click.echo(sentence)
    for written in write(planned, place):
        state = "written" if written.changed else "unchanged"
        click.echo(f"{state:>9}  {written.name}  version {written.version}")
    if found.runners:
        click.echo(f"Instances are placed on {described(machine_of(gpus), gpus)}.")
    click.echo(f"{found.name} is in {shown}; Triton serves it with --model-repository={shown}.")
