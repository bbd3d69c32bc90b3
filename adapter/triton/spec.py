"""`spec.json`: what an entry of a model repository is, for the worker that serves it and for people who look."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter import __version__
from adapter.exceptions import ExportError, sentence

FILE = "spec.json"


@dataclass(frozen=True)
class EntrySpec:
    """One version of one entry.

    `python` is the minor version that exported it, `typed` whether its tensors are the method's own (else one blob),
    `batched` whether Triton sees a batch axis, `models` the saved models that it carries (`folder`, `info`),
    `pickle` the file of a custom Runnable (None for a saved model), `methods` what is served with its limits,
    `environments` what the workers of each instance group have in theirs, `call_timeout_s` the limit on one batch,
    `isolated` whether user code has a process of its own, `warmup` the files with the calls that warm methods up.
    `native` says how another backend than the python one serves it, and `parity` how closely that answers as the model
    itself.
    """

    entry: str
    adapter: str
    python: str
    typed: bool
    batched: bool
    methods: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]] = ()
    pickle: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environments: Sequence[Mapping[str, str]] = ({},)
    warmup: Mapping[str, str] = field(default_factory=dict)
    call_timeout_s: float = 900.0
    retry_failed_batch: bool = True
    isolated: bool = True
    native: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    interface: str = ""
    content: str = ""

    @property
    def stream(self) -> bool:
        """Whether its methods are generators."""
        return bool(self.methods[0].get("stream"))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> EntrySpec:
        """Read the spec of a version folder; ExportError where it is none, or one of another version of adapter."""
        try:
            content = (folder / FILE).read_bytes()
        except OSError as error:
            raise _unreadable(str(folder), str(folder.parent), error) from error
        return cls.parse(content, str(folder), str(folder.parent))

    @classmethod
    def parse(cls, content: bytes, folder: str, entry: str) -> EntrySpec:
        """Read the spec of a version of an entry, both of which an error names."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise _unreadable(folder, entry, error) from error


def _unreadable(folder: str, entry: str, error: Exception) -> ExportError:
    return ExportError(
        f"{folder}/{FILE} cannot be read by adapter {__version__}: {sentence(error)}. Remove {entry} and export again."
    )
