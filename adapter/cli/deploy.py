"""`adapter deploy` and `adapter rollback`: other versions of a service in Tritons that run, without a pause."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from adapter.cli.export import backends_option, planned_of
from adapter.cli.machine import gpus_option
from adapter.cli.settings import loaded, repository_option, triton_options, working_dir_option
from adapter.cli.table import table
from adapter.server.launch import DEFAULT_REPOSITORY, load_recorded
from adapter.settings import Settings
from adapter.triton import deployment
from adapter.triton.address import Address
from adapter.triton.deployment import DEFAULT_KEEP, DEFAULT_LIMIT_S, Row

_load_timeout = click.option(
    "--load-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_LIMIT_S,
    show_default=True,
    help="Seconds that an entry may take to load, and a sample to be answered.",
)


@click.command(context_settings={"auto_envvar_prefix": "ADAPTER"})
@click.argument("service")
@repository_option
@working_dir_option
@triton_options
@_load_timeout
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=DEFAULT_KEEP,
    show_default=True,
    help="Versions of each entry that stay in the repository beside the one that serves, to roll back to.",
)
@gpus_option
@click.option("--prefix", default="", help="Put this and a dot before the name of every entry.")
@backends_option
@click.pass_context
def deploy(
    context: click.Context,
    /,
    service: str,
    working_dir: Path,
    config: Path | None,
    load_timeout: float,
    keep: int,
    gpus: int | None,
    prefix: str,
    backends: tuple[str, ...] | None,
    **flags: Any,
) -> None:
    """Bring SERVICE ("module:attribute" or "file.py:attribute") as it is now to Tritons that run, without a pause.

    Every Triton tries the new versions first; what it serves goes on meanwhile, and where one of them fails.

    \b
    adapter deploy service:svc --triton grpc://triton:8001 --repository /models
    adapter deploy service:svc --triton dns:///triton-headless:8001 --repository s3://bucket/models
    """
    signal.signal(signal.SIGTERM, _ended)
    settings = loaded(context, config, working_dir).settings
    tritons = _Tritons(settings)
    found, planned = planned_of(service, working_dir, settings, gpus, prefix, backends)
    rows = deployment.deploy(found, planned, _place(settings), tritons, tell=_tell, limit_s=load_timeout, keep=keep)
    _show(rows, "has no entries in Triton: there is nothing to deploy", found.name)


@click.command(context_settings={"auto_envvar_prefix": "ADAPTER"})
@click.argument("service")
@repository_option
@working_dir_option
@triton_options
@_load_timeout
@click.option("--entry", help="Only this entry; without it all that the last deployment changed.")
@click.option("--to", type=click.IntRange(min=1), metavar="VERSION", help="With --entry: this version of it.")
@click.pass_context
def rollback(
    context: click.Context,
    /,
    service: str,
    working_dir: Path,
    config: Path | None,
    load_timeout: float,
    entry: str | None,
    to: int | None,
    **flags: Any,
) -> None:
    """Let Tritons serve SERVICE as it was before, without a pause.

    SERVICE is "module:attribute", "file.py:attribute", or only its name, where its code need not be here; then no
    samples are tried.

    \b
    adapter rollback service:svc --triton grpc://triton:8001 --repository /models
    adapter rollback iris --entry iris_clf.predict --to 3 --triton grpc://triton:8001 --repository /models
    """
    if to is not None and entry is None:
        raise click.UsageError("--to is the version of one entry: name it with --entry.")
    signal.signal(signal.SIGTERM, _ended)
    settings = loaded(context, config, working_dir).settings
    tritons = _Tritons(settings)
    found = load_recorded(service, working_dir, settings.runners)[0] if ":" in service else service
    rows = deployment.rollback(found, _place(settings), tritons, tell=_tell, entry=entry, to=to, limit_s=load_timeout)
    _show(rows, "is served as it was before already", service)


class _Tritons:
    """The Tritons of each runner, as the settings name them."""

    def __init__(self, settings: Settings) -> None:
        self._triton = settings.triton
        if not settings.triton.elsewhere:
            raise click.UsageError(
                "It is not said which Tritons are meant: give --triton grpc://host:8001, or set triton.url."
            )

    def __call__(self, runner: str) -> Address:
        own = self._triton.runners.get(runner)
        url = self._triton.url if own is None or own.url is None else own.url
        if url is None:
            raise click.UsageError(f"It is not said where the Tritons of the runner {runner!r} are: give --triton.")
        return self._triton.at(url)


def _place(settings: Settings) -> Path | str:
    return settings.triton.repository or DEFAULT_REPOSITORY.resolve()


def _show(rows: Sequence[Row], otherwise: str, service: str) -> None:
    if not rows:
        click.echo(f"{service} {otherwise}.")
        return
    cells = [("entry", "version", "tritons", "check", "seconds")]
    for row in rows:
        version = f"{row.version}" if row.before == row.version else f"{row.before or '-'} -> {row.version}"
        cells.append((row.entry, version, str(row.replicas), row.check, f"{row.seconds:.1f}"))
    click.echo(table(cells))


def _tell(sentence: str) -> None:
    click.echo(sentence, err=True)


def _ended(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # which takes back what was begun
