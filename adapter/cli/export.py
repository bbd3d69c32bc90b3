"""`adapter export`: write a service into a Triton model repository."""

from __future__ import annotations

from pathlib import Path

import click

from adapter.server.launch import load_recorded
from adapter.triton.export import plan, write


@click.command()
@click.argument("service")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The folder that Triton serves.",
)
@click.option(
    "--working-dir", type=click.Path(path_type=Path), default=Path("."), help="Where the service's code lies."
)
@click.option("--prefix", default="", help="Put this and a dot before the name of every entry.")
def export(service: str, repository: Path, working_dir: Path, prefix: str) -> None:
    """Write SERVICE ("module:attribute" or "file.py:attribute") into a Triton model repository."""
    place = repository.resolve()
    found, tags = load_recorded(service, working_dir)
    for written in write(plan(found, folder=Path.cwd(), tags=tags, prefix=prefix), place):
        state = "written" if written.changed else "unchanged"
        click.echo(f"{state:>9}  {written.name}  version {written.version}")
    click.echo(f"{found.name} is in {repository}; Triton serves it with --model-repository={repository}.")
