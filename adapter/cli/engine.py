"""`adapter engine`: install tritonserver, and tell which one is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import click

from adapter.exceptions import EngineError
from adapter.triton import installation
from adapter.triton.installation import Installation


class DownloadBar:
    """A progress bar on stderr that shows up with the first bytes; call it with bytes done and bytes in all."""

    def __init__(self) -> None:
        self._bar: Any = None  # click keeps the type to itself
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            label = f"Downloading Triton {installation.TRITON_VERSION} ({total / 1e6:.0f} MB)"
            self._bar = click.progressbar(length=total, label=label, file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(done - self._done)
        self._done = done

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)


def ensure(env: Mapping[str, str]) -> Installation:
    """Return the tritonserver to use, installing one under a progress bar where there is none."""
    with DownloadBar() as bar:
        return installation.ensure(env, bar)


@click.group()
def engine() -> None:
    """Install tritonserver, and tell which one is used."""


@engine.command()
@click.option("--force", is_flag=True, help="Install it anew where it is installed.")
def install(*, force: bool) -> None:
    """Download tritonserver into the cache folder, for `adapter serve` to use."""
    try:
        with DownloadBar() as bar:
            made = installation.install(os.environ, bar, force=force)
        used = installation.find(os.environ)
    except EngineError as error:
        raise click.ClickException(error.message) from error
    click.echo(f"Triton {made.version} is installed in {made.prefix}.")
    if used is not None and used.tritonserver != made.tritonserver:
        click.echo(f"Another one comes before it ({used.source}): {used.tritonserver}.")


@engine.command()
def info() -> None:
    """Tell which tritonserver is used, and whether it can run this Python."""
    try:
        found = installation.find(os.environ)
    except EngineError as error:
        raise click.ClickException(error.message) from error
    python = installation.running_python()
    if found is None:
        problem = installation.obstacle()
        if problem:
            raise click.ClickException(f"There is no tritonserver here. {problem}: {installation.OTHER_WAYS}.")
        click.echo(
            f"There is no tritonserver here. `adapter engine install`, or `adapter serve` by itself, installs Triton "
            f"{installation.TRITON_VERSION} in {installation.engine_folder(os.environ)}."
        )
    else:
        click.echo(f"version:   {found.version or 'unknown'}")
        click.echo(f"program:   {found.tritonserver}")
        click.echo(f"found by:  {found.source}")
        click.echo(f"backends:  {found.backends() or 'its own'}")
    click.echo(f"python:    {python}")
    if (found is None or found.bundled) and installation.needs_libpython(python):
        library = installation.libpython(python)
        if library is None:
            raise click.ClickException(installation.missing_libpython(python).message)
        click.echo(f"libpython: {library}")
