"""One instance of an entry, as Triton tells its backend of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapter.triton.spec import EntrySpec

_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def environment_of(
    args: Mapping[str, str], config: Mapping[str, Any], spec: EntrySpec, environ: Mapping[str, str]
) -> dict[str, str]:
    """What the environment of an instance's worker has of its own: its GPU, and what its group has.

    `args` are those of the backend's `initialize`, `config` is the configuration of the entry, `environ` the
    environment of the server.
    """
    gpu = "-1"
    if args["model_instance_kind"] == "GPU":
        gpu = args["model_instance_device_id"]
        if visible := environ.get(_VISIBLE_GPUS):
            gpu = visible.split(",")[int(gpu)].strip()  # Triton numbers those that it sees
    instance = args["model_instance_name"]  # <group>_<number>, and more on a GPU
    groups = [group["name"] for group in config["instance_group"]]
    number = next((i for i, name in enumerate(groups) if f"{instance}_".startswith(f"{name}_")), 0)
    own = spec.environments[number] if number < len(spec.environments) else {}
    return {_VISIBLE_GPUS: gpu, **own}
