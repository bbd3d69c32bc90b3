"""The code of the pages in docs/, run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import ROOT, Serve


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def python(folder: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "ADAPTER_DEVELOPMENT": "1"},  # other tests start enough engines
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_calling_and_testing(serve: Serve, tmp_path: Path) -> None:
    service, client, tests, program = blocks("client-and-testing.md")
    (tmp_path / "service.py").write_text(service)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "test_service.py").write_text(tests)
    served = serve("service:svc", "--development", working_dir=tmp_path)
    (tmp_path / "client.py").write_text(client.replace("http://127.0.0.1:3000", served.url))
    assert "under" in python(tmp_path, "client.py")
    assert "2 passed" in python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert "[[2 4]]" in python(tmp_path, "program.py")
