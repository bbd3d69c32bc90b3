"""`adapter runners`: how the runners of a service are served, and where each of their settings comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from adapter.cli.machine import described, gpus_option, machine_of
from adapter.cli.settings import config_option, working_dir_option
from adapter.cli.table import table
from adapter.layers import DEFAULT_SOURCE, Loaded, find_file, load
from adapter.method import MethodSpec
from adapter.resources import Machine
from adapter.runner import RunnerSpec
from adapter.server.launch import load_recorded
from adapter.services import Service
from adapter.settings import METHODS
from adapter.tensor import TensorSpec
from adapter.triton.config import Entry
from adapter.triton.export import entries_of
from adapter.tuning import KEYS, Chosen, Layer, chosen

_EMBEDDED, _EXISTING = "embedded", "as it is"


@click.command()
@click.argument("service")
@working_dir_option
@config_option
@gpus_option
@click.option("--prefix", default="", help="That of `adapter export`: it stands before the name of every entry.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def runners(service: str, working_dir: Path, config: Path | None, gpus: int | None, prefix: str, output: str) -> None:
    """Show the runners of SERVICE: their entries, tensors, batching, instances and devices, and where each of their
    settings comes from. It starts nothing."""
    settings = load(find_file(config, working_dir), os.environ)
    found, _ = load_recorded(service, working_dir, settings.settings.runners)
    machine = machine_of(gpus)
    records = records_of(found, settings, machine, prefix)
    if output == "json":
        click.echo(json.dumps(records, indent=2, ensure_ascii=False))
    elif not records:
        click.echo(f"{found.name} has no runner.")
    else:
        click.echo(f"{_methods_table(records)}\n\n{_settings_table(records)}\n")
        click.echo(f"Placed on {described(machine, gpus)}.")


def records_of(service: Service, settings: Loaded, machine: Machine, prefix: str = "") -> list[dict[str, Any]]:
    """All that the table says of each runner, as plain values."""
    entries: dict[tuple[str, str], Entry] = {
        (entry.runner, method.name): entry
        for entry, _ in entries_of(service, machine, prefix)
        for method in entry.methods
    }
    records = []
    for runner in (r.spec for r in service.runners):
        methods = [_method(runner, method, entries.get((runner.name, m))) for m, method in runner.methods.items()]
        cls = runner.runnable_class
        records.append(
            {
                "runner": runner.name,
                "serves": str(runner.model.tag) if runner.model else f"{cls.__module__}.{cls.__qualname__}",
                "runs": _EMBEDDED if runner.embedded else "triton" if runner.existing is None else _EXISTING,
                "methods": methods,
                "settings": [] if runner.embedded else list(_settings(runner, settings)),
            }
        )
    return records


def _method(runner: RunnerSpec, method: MethodSpec, entry: Entry | None) -> dict[str, Any]:
    """One method as it is served; without an entry of its own it is embedded, or calls one that exists already."""
    groups = entry.placement.groups if entry is not None else ()
    typed = entry.typed if entry is not None else method.typed
    batched = entry is not None and entry.batched and method.signature.batchable
    limits = vars(method.batching) if batched else None
    return {
        "method": method.name,
        "entry": entry.name if entry is not None else method.name if runner.existing is not None else None,
        "inputs": [spec.to_dict() for spec in method.inputs] if typed else None,
        "stream": method.stream,
        "outputs": [spec.to_dict() for spec in method.outputs] if typed else None,
        "batching": dict(limits) if limits is not None else None,
        "instances": entry.placement.instances if entry is not None else None,
        "devices": [group.device for group in groups],
    }


def _settings(runner: RunnerSpec, settings: Loaded) -> Iterator[dict[str, Any]]:
    for (method, name), choice in chosen(runner, settings.settings.runners).items():
        # of an entry that exists already its own config.pbtxt says all but the deadline of the front
        told = runner.methods[method].signature.batchable if method else runner.existing is None
        if not told:
            continue
        source = _source(runner.name, method, name, choice, settings)
        yield {"method": method or None, "setting": name, "value": choice.value, "from": source}


def _source(runner: str, method: str, name: str, choice: Chosen, settings: Loaded) -> str:
    if choice.layer is Layer.CODE:
        return "code"
    if choice.layer is Layer.DEFAULT:
        return DEFAULT_SOURCE
    keys = (METHODS, method, name) if choice.layer is Layer.METHOD else KEYS[name]
    named = settings.source(keys, runner) if choice.layer is not Layer.DEFAULTS else DEFAULT_SOURCE
    return named if named != DEFAULT_SOURCE else settings.source(keys, "")


# ---- as text --------------------------------------------------------------------------------------------------------


def _methods_table(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [("Runner", "Method", "Entry", "Tensors", "Batching", "Instances", "Device")]
    for record in records:
        for method in record["methods"]:
            rows.append(
                (
                    record["runner"],
                    method["method"],
                    method["entry"] or _EMBEDDED,
                    _EXISTING if record["runs"] == _EXISTING else _tensors(method),
                    _batching(method),
                    str(method["instances"] or ("one in each front" if record["runs"] == _EMBEDDED else _EXISTING)),
                    "; ".join(method["devices"]) or ("CPU" if record["runs"] == _EMBEDDED else _EXISTING),
                )
            )
    return table(rows)


def _settings_table(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [("Runner", "Method", "Setting", "Value", "From")]
    for record in records:
        for one in record["settings"]:
            rows.append((record["runner"], one["method"] or "", one["setting"], _value(one["value"]), one["from"]))
    return table(rows)


def _tensors(method: Mapping[str, Any]) -> str:
    if method["inputs"] is None:
        return "one blob"
    return " -> ".join(
        ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in map(TensorSpec.from_dict, specs))
        for specs in (method["inputs"], method["outputs"])
    )


def _batching(method: Mapping[str, Any]) -> str:
    limits = method["batching"]
    if limits is None:
        return "none, it streams" if method["stream"] else "none"
    waits = f", waits {limits['max_wait_ms']:g} ms" if limits["max_wait_ms"] else ""
    return f"up to {limits['max_batch_size']} items{waits}, 503 after {limits['max_latency_ms']:g} ms"


def _value(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
