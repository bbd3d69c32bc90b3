"""The command line: one file a command, imported when it is called."""

from __future__ import annotations

import atexit
import gc
import importlib
from typing import Any

import click

from adapter import __version__, absent
from adapter.exceptions import AdapterError

# name -> "module:attribute"; to add a command, add a file to this folder and a line here
COMMANDS = {
    "serve": "adapter.cli.serve:serve",
    "serve-http": "adapter.cli.serve:serve",  # the name of it in BentoML
    "export": "adapter.cli.export:export",
    "deploy": "adapter.cli.deploy:deploy",
    "rollback": "adapter.cli.deploy:rollback",
    "runners": "adapter.cli.runners:runners",
    "config": "adapter.cli.config:config",
    "models": "adapter.cli.models:models",
    "engine": "adapter.cli.engine:engine",
    "server": "adapter.cli.server:server",
}


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that adapter raises on purpose is one sentence on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except AdapterError as error:
            raise click.ClickException(error.message) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in absent.COMMANDS:
            raise click.ClickException(f"There is no `adapter {name}`; {absent.COMMANDS[name]}.")
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="adapter")
def main() -> None:
    """Write model services in plain Python, serve them with NVIDIA Triton Inference Server."""
    # at its end the interpreter looks through all objects, several times: half a second where large libraries are there
    atexit.register(gc.freeze)
