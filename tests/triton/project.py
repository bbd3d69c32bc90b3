"""A folder with a person's service in it, whose modules no other test has."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.loader import load_service
from adapter.resources import Machine
from adapter.services import Service
from adapter.triton.export import ExportPlan, plan, write

MACHINE = Machine(cpus=2, gpus=0)
_numbers = itertools.count()

# what the worker in Triton does, with the code of the entry alone: adapter comes from its archive
_CALL = """
import json, sys
from pathlib import Path
folder, name, args = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, str(folder / "runtime.zip"))
from adapter import payload
from adapter.triton import worker
from adapter.triton.spec import EntrySpec
assert "runtime.zip" in payload.__file__
runnable, methods = worker.load(folder, EntrySpec.read(folder))
method = methods[name]
args, kwargs = payload.decode(payload.encode((tuple(args), {})))
call = method.rebuild(args, kwargs)
result = getattr(runnable, name)(*call.args, **call.kwargs)
print(json.dumps(payload.decode(payload.encode(result)), default=str))
"""


@dataclass
class Project:
    """`$` before the name of a module stands for letters of this project's own."""

    folder: Path
    mark: str = field(default_factory=lambda: f"p{next(_numbers)}_")

    def write(self, sources: Mapping[str, str]) -> Project:
        for name, source in sources.items():
            file = self.folder / self.named(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.named(source))
        return self

    def named(self, text: str) -> str:
        return text.replace("$", self.mark)

    def service(self, attribute: str = "svc") -> Service:
        """Import `$service.py` anew, as a new process would."""
        self.forget()
        return load_service(f"{self.mark}service:{attribute}", self.folder)

    def forget(self) -> None:
        for name in [n for n in sys.modules if n.startswith(self.mark)]:
            del sys.modules[name]

    def plan(self, **options: Any) -> ExportPlan:
        return plan(self.service(), folder=self.folder, machine=MACHINE, **options)

    def export(self, repository: Path, **options: Any) -> dict[str, int]:
        """Export the service; the version of each entry."""
        return {w.name: w.version for w in write(self.plan(**options), repository)}


def called(version: Path, method: str, *args: Any) -> Any:
    """What a method of an exported entry returns in a fresh process that has the entry only."""
    command = [sys.executable, "-I", "-c", _CALL, str(version), method, json.dumps(args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=os.sep)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
