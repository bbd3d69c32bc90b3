"""`adapter export`: write a service into a Triton model repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adapter.cli.machine import described, gpus_option, machine_of
from adapter.cli.settings import config_option, loaded, repository_option, working_dir_option
from adapter.kinds import WrongKind, choices
from adapter.server.launch import DEFAULT_REPOSITORY, load_recorded
from adapter.services import Service
from adapter.settings import BACKENDS, Settings
from adapter.triton.conversion import Conversion
from adapter.triton.export import ExportPlan, plan, write

F = TypeVar("F", bound=Callable[..., Any])


def _backends(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    kind = choices(*BACKENDS)
    try:
        return None if value is None else kind.read(value)
    except WrongKind as error:
        raise click.BadParameter(f"{value!r} is not {kind.text}.") from error


def backends_option(function: F) -> F:
    """Add `--backends` to a command."""
    return click.option(
        "--backends",
        metavar="NAME,NAME…",
        callback=_backends,
        help="Convert saved models for the first of these backends of Triton that answers as the model itself: "
        f"{', '.join(BACKENDS)}. The others stay with the python backend, and it is said why.",
    )(function)


def planned_of(
    service: str,
    working_dir: Path,
    settings: Settings,
    gpus: int | None,
    prefix: str,
    backends: tuple[str, ...] | None,
) -> tuple[Service, ExportPlan]:
    """Import a service and plan its export; what is said of the conversion of its models is printed."""
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
    return found, planned


@click.command()
@click.argument("service")
@repository_option
@working_dir_option
@config_option
@gpus_option
@click.option("--prefix", default="", help="Put this and a dot before the name of every entry.")
@backends_option
@click.pass_context
def export(
    context: click.Context,
    /,
    service: str,
    repository: str | None,
    working_dir: Path,
    config: Path | None,
    gpus: int | None,
    prefix: str,
    backends: tuple[str, ...] | None,
) -> None:
    """Write SERVICE ("module:attribute" or "file.py:attribute") into a Triton model repository.

    \b
    adapter export service:svc
    adapter export service:svc --repository s3://bucket/models
    """
    settings = loaded(context, config, working_dir).settings
    place = settings.triton.repository or DEFAULT_REPOSITORY.resolve()
    found, planned = planned_of(service, working_dir, settings, gpus, prefix, backends)
    shown = repository or settings.triton.repository or DEFAULT_REPOSITORY
    for written in write(planned, place):
        state = "written" if written.changed else "unchanged"
        click.echo(f"{state:>9}  {written.name}  version {written.version}")
    if found.runners:
        click.echo(f"Instances are placed on {described(machine_of(gpus), gpus)}.")
    click.echo(f"{found.name} is in {shown}; Triton serves it with --model-repository={shown}.")
