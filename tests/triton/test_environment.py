from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from adapter import allocator
from adapter.exceptions import EngineError
from adapter.triton.environment import environment
from adapter.triton.installation import Installation, libpython, needs_libpython, running_python


def test_environment_when_installation_is_a_containers(tmp_path: Path) -> None:
    made = environment(Installation(tmp_path / "bin" / "tritonserver", "PATH"), {"PATH": "/sbin", "A": "b"})
    path = "/sbin:/usr/local/bin:/usr/bin:/bin"
    assert made == {"PATH": path, "A": "b", "ADAPTER_WORKER_PYTHON": sys.executable, **allocator.ENVIRONMENT}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, "/usr/local/bin:/usr/bin:/bin"),
        ("", "/usr/local/bin:/usr/bin:/bin"),
        ("/mine", "/mine:/usr/local/bin:/usr/bin:/bin"),
        ("/bin:/mine:/usr/bin", "/bin:/mine:/usr/bin:/usr/local/bin"),
    ],
)
def test_environment_when_path_lacks_the_systems_programs(tmp_path: Path, path: str | None, expected: str) -> None:
    env = {} if path is None else {"PATH": path}
    assert environment(Installation(tmp_path / "bin" / "tritonserver", "PATH"), env)["PATH"] == expected


def test_environment_when_bundled_has_no_stub_for_this_python(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"this is Python {running_python()}.*--development"):
        environment(Installation(tmp_path / "bin" / "tritonserver", "cache", "2.51.0", bundled=True), {})


def test_environment_when_the_virtual_environment_has_no_plain_name(tmp_path: Path) -> None:
    venv.create(tmp_path / "vénv", symlinks=True)
    (tmp_path / f"backends-{running_python()}").mkdir()
    code = f"""
import sys
from pathlib import Path
sys.path += {sys.path!r}
from adapter.triton.environment import environment
from adapter.triton.installation import Installation
installation = Installation(Path({str(tmp_path)!r}) / "bin" / "tritonserver", "cache", "2.51.0", bundled=True)
made = environment(installation, {{"ADAPTER_CACHE": {str(tmp_path / "cache")!r}}}, plain=lambda path: Path("/link"))
print(made["PATH"])
"""
    # a numpy among its own packages, or the stub is led to one elsewhere
    packages = tmp_path / "vénv" / "lib" / f"python{running_python()}" / "site-packages"
    (packages / "numpy").symlink_to(Path(np.__file__).parent)
    done = subprocess.run([tmp_path / "vénv" / "bin" / "python", "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "/link/bin:/usr/local/bin:/usr/bin:/bin\n")


def test_environment_when_bundled(tmp_path: Path) -> None:
    (tmp_path / f"backends-{running_python()}").mkdir()
    env = {"PATH": "/bin", "LD_LIBRARY_PATH": "/mine", "ADAPTER_CACHE": str(tmp_path / "cache")}
    made = environment(Installation(tmp_path / "bin" / "tritonserver", "cache", "2.51.0", bundled=True), env)
    assert made["PATH"] == f"{Path(sys.executable).parent}:/bin:/usr/local/bin:/usr/bin"
    if needs_libpython(running_python()):
        folder, mine = made["LD_LIBRARY_PATH"].split(":")
        assert mine == "/mine"
        assert [p.resolve() for p in Path(folder).iterdir()] == [Path(libpython() or "").resolve()]
