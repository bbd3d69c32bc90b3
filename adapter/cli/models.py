"""`adapter models`: what is saved in the model store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
import yaml

from adapter import models as saved
from adapter.archive import FORMATS
from adapter.cli.table import table
from adapter.model import Model
from adapter.tag import Tag

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group()
def models() -> None:
    """List, show, delete, export and import saved models."""


@models.command("list")
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
def list_models(name: str | None, output: str) -> None:
    """List saved models, or the versions of one, newest first."""
    found = saved.list(name)
    if output != "table":
        rows = [
            {
                "tag": str(m.tag),
                "module": m.info.module,
                "size": m.file_size,
                "creation_time": m.creation_time.isoformat(timespec="seconds"),
            }
            for m in found
        ]
        click.echo(_written(rows, output))
    elif not found:
        click.echo(
            f"No models are saved in {saved.store().root} yet. Save one with, for example, "
            "adapter.sklearn.save_model('iris_clf', model)."
        )
    else:
        head = ("Tag", "Module", "Size", "Creation Time")
        click.echo(table([head, *((str(m.tag), m.info.module, _size(m), _time(m)) for m in found)]))


@models.command()
@click.argument("tag")
@click.option("-o", "--output", type=click.Choice(["yaml", "json", "path"]), default="yaml", show_default=True)
def get(tag: str, output: str) -> None:
    """Show the record of a model, or the path of its folder."""
    model = saved.get(tag)
    click.echo(model.path if output == "path" else _written(model.info.to_dict(), output))


@models.command()
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(tags: Sequence[str], yes: bool) -> None:
    """Delete versions of models; a name alone means all its versions."""
    # resolved first: a wrong tag deletes nothing, the question names what goes, and what is saved meanwhile stays
    for meant in [saved.store().resolve(Tag.parse(part)) for part in _separate(tags)]:
        if yes or click.confirm(f"Delete {', '.join(str(t) for t in meant)}?"):
            for tag in meant:
                saved.delete(tag)
                click.echo(f"Deleted {tag}.")


@models.command("export")
@click.argument("tag")
@click.argument("path", required=False)
@click.option(
    "-o", "--output-format", type=click.Choice(list(FORMATS)), help="By default what the end of the name says."
)
def export_model(tag: str, path: str | None, output_format: str | None) -> None:
    """Write a model to one file: PATH, or <name>-<version>.adaptermodel here or in the folder PATH."""
    click.echo(f"{saved.get(tag).tag} is in {saved.export_model(tag, path, output_format)}.")


@models.command("import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def import_models(paths: Sequence[str]) -> None:
    """Save models from files or folders that `adapter models export`, or BentoML 1.x, wrote.

    Import only what you trust: loading a model runs what is in it.
    """
    for path in paths:
        model = saved.import_model(path)
        click.echo(f"Imported {model.tag} ({model.info.module or 'no framework'}).")


def _separate(tags: Iterable[str]) -> list[str]:
    return [part for text in tags for part in text.replace(",", " ").split()]


def _written(value: Any, output: str) -> str:
    if output == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text.rstrip()


def _size(model: Model) -> str:
    size, unit = float(model.file_size), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.2f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


def _time(model: Model) -> str:
    return model.creation_time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
