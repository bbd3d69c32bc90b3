"""The code of the pages in docs/, run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import adapter
from tests.e2e.conftest import ROOT, Serve

Run = Callable[..., "subprocess.CompletedProcess[str]"]


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


def test_runners(serve: Serve, run_adapter: Run, tmp_path: Path) -> None:
    service, strategy = blocks("runners.md")
    (tmp_path / "service.py").write_text(service)
    (tmp_path / "strategy.py").write_text(f"{strategy}\nsvc = adapter.Service('chips', runners=[runner])\n")
    served = serve("service:svc", "--development", working_dir=tmp_path)
    assert served.post("/score", json=[[1, 2, 3, -4]]).json() == [6.0]
    assert served.post("/explain", json=0).json() == {"weights": [1, 2, 3, 4]}
    shown = run_adapter("runners", "strategy:svc", working_dir=tmp_path).stdout
    assert "chips.chip" in shown
    assert '{"chips": ["a", "b"]}' in shown


def test_metrics(serve: Serve, tmp_path: Path) -> None:
    orders, reader = blocks("observability.md")
    parts = (
        "import adapter\nfrom adapter.io import Text\n",
        reader.replace("...", "return 'read'"),
        "runner = adapter.Runner(Reader)\nsvc = adapter.Service('cafe', runners=[runner])\n",
        orders.replace("...", "return await runner.read.async_run(kind.encode())"),
    )
    (tmp_path / "service.py").write_text("".join(parts))
    served = serve("service:svc", "--development", working_dir=tmp_path)
    assert served.post("/order", content="tea").text == "read"
    page = served.get("/metrics").text
    assert 'orders_total{kind="tea"} 1.0' in page
    assert "bytes_read_sum 3.0" in page
    assert "read_seconds_count 1.0" in page


def test_streaming(serve: Serve, tmp_path: Path) -> None:
    (service,) = blocks("streaming.md")
    (tmp_path / "service.py").write_text(service)
    served = serve("service:svc", "--development", working_dir=tmp_path)
    assert served.post("/spell", content="abc").text == "a b c "
    assert served.post("/events", content="a").text == "event: letter\ndata: a\n\n"


def test_frameworks(serve: Serve, tmp_path: Path) -> None:
    training, service = blocks("frameworks.md")
    (tmp_path / "train.py").write_text(training)
    (tmp_path / "service.py").write_text(service)
    python(tmp_path, "train.py")
    served = serve("service:svc", "--development", working_dir=tmp_path)
    assert served.post("/approve", json=[[0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]]).json() == [True, False]


def test_frameworks_of_the_page_are_those_there_are() -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(name for name, place in adapter._LAZY.items() if ".frameworks." in place)
