"""`adapter config`: what the settings are, and where each of them comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from adapter.cli.settings import loaded, setting_options, working_dir_option
from adapter.layers import Loaded
from adapter.settings import Keys, RunnerSettings, Settings, flat, kinds
from adapter.tuning import RUNNER_DEFAULTS

_SECRET = "********"
_COMMENTS_AT = 60  # a column; a longer line pushes its comment on


@click.group()
def config() -> None:
    """Show the settings, and where each of them comes from."""


@config.command(context_settings={"auto_envvar_prefix": "ADAPTER"})
@working_dir_option
@setting_options
@click.pass_context
def show(context: click.Context, /, working_dir: Path, config: Path | None, **flags: Any) -> None:
    """Show all settings as YAML; behind each stands where it comes from.

    Takes the options that `adapter serve` takes, so that it tells what they would change.
    """
    click.echo(written(loaded(context, config, working_dir)))


def written(found: Loaded) -> str:
    """Settings as YAML, each with a comment that names its source; secrets are left out."""
    settings = found.settings
    values: dict[Keys, tuple[Any, str]] = {k: (v, found.source(k)) for k, v in _open(Settings, settings).items()}
    runners = _open(RunnerSettings, RUNNER_DEFAULTS)
    for layer in (settings.runners.defaults, settings.runners.every):
        runners |= {keys: value for keys, value in _open(RunnerSettings, layer).items() if value is not None}
    values |= {("runners", *keys): (value, found.source(keys, "")) for keys, value in runners.items()}
    for name, runner in settings.runners.named.items():
        given = {keys: value for keys, value in _open(RunnerSettings, runner).items() if value is not None}
        values |= {("runners", name, *keys): (value, found.source(keys, name)) for keys, value in given.items()}
    return "\n".join(_lines(values, 0))


def _open(record: type[Any], value: Any) -> dict[Keys, Any]:
    """The values of a record, those that are secret hidden."""
    secret = {keys for keys, kind in kinds(record).items() if kind.secret}
    return {keys: _SECRET if v is not None and keys in secret else v for keys, v in flat(value).items()}


def _lines(values: Mapping[Keys, tuple[Any, str]], depth: int) -> list[str]:
    lines = []
    for key in dict.fromkeys(keys[0] for keys in values):
        below = {keys[1:]: value for keys, value in values.items() if keys[0] == key}
        head = f"{'  ' * depth}{_scalar(key)}:"
        if () in below:
            value, source = below[()]
            lines.append(f"{head} {_scalar(value)}".ljust(_COMMENTS_AT) + f"  # {source}")
        else:
            lines += [head, *_lines(below, depth + 1)]
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    elif isinstance(value, tuple):
        value = list(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").rstrip()
