"""The option `--gpus`: the machine that entries are placed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from adapter.resources import Machine

F = TypeVar("F", bound=Callable[..., Any])


def _number(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None or value == "none":
        return None if value is None else 0
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of GPUs nor 'none'.", context, parameter)
    return int(value)


def gpus_option(function: F) -> F:
    """Add `--gpus` to a command, which takes it as `gpus`: a number, or None where it was not given."""
    return click.option(
        "--gpus",
        callback=_number,
        metavar="N|none",
        help="The GPUs of the machine that Triton runs on; those of this machine unless it is said.",
    )(function)


def machine_of(gpus: int | None) -> Machine:
    """The machine that entries are placed on."""
    here = Machine.here()
    return here if gpus is None else replace(here, gpus=gpus)


def described(machine: Machine, gpus: int | None) -> str:
    """The machine in words, and whose it is."""
    cpus = f"{machine.cpus} CPU{'' if machine.cpus == 1 else 's'}"
    there = f"{machine.gpus or 'no'} GPU{'' if machine.gpus < 2 else 's'}"
    if gpus is None:
        return f"{cpus} and {there}, as this machine has; --gpus says what another has"
    return f"{there}, as --gpus says, and {cpus}, as this machine has"
