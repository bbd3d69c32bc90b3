"""Entries that were exported for other backends, made ones of the python backend with the very same tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb


def stand_in(repository: Path) -> list[str]:
    """Let Python code stand in for the backends in a repository; the names of all entries there."""
    for spec in repository.glob("*/1/spec.json"):
        if json.loads(spec.read_text())["native"] is not None:
            file = spec.parents[1] / "config.pbtxt"
            config = text_format.Parse(file.read_text(), pb.ModelConfig())
            config.backend, config.platform, config.default_model_filename = "python", "", "model.py"
            file.write_text(text_format.MessageToString(config))
            shutil.copy(Path(__file__).with_name("stand_in.py"), spec.with_name("model.py"))
    return sorted(p.parent.name for p in repository.glob("*/config.pbtxt"))
