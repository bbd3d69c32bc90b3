from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapter.exceptions import EngineError
from adapter.triton.installation import (
    CONTAINER_PREFIX,
    PROJECT,
    PYTHONS,
    TRITON_VERSION,
    WHEELS,
    cache_folder,
    engine_folder,
    find,
    install,
    libpython,
    obstacle,
    running_python,
)
from adapter.triton.package_index import PackageIndex

without_container = pytest.mark.skipif(CONTAINER_PREFIX.exists(), reason="this machine has Triton's container")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real wheel: the one that is named, else downloaded once."""
    named = os.environ.get("ADAPTER_ENGINE_WHEEL")
    if named:
        return Path(named)
    asked = WHEELS[platform.machine()]
    path = tmp_path_factory.mktemp("wheel") / asked.filename
    PackageIndex.configured(os.environ).fetch(PROJECT, asked.filename, path, asked.size)
    return path


@pytest.fixture
def mirror(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    """An index with the wheel, and the paths it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = f'<a href="{wheel.name}">w</a>'.encode() if self.path.endswith("/") else wheel.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/simple", asked
    server.shutdown()
    server.server_close()
    thread.join()


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def _env(cache: Path, **more: str) -> dict[str, str]:
    left_out = ("ADAPTER_TRITONSERVER", "ADAPTER_ENGINE_WHEEL")
    kept = {name: text for name, text in os.environ.items() if name not in left_out}
    return {**kept, "ADAPTER_CACHE": str(cache), "PATH": "/nonexistent", **more}


@pytest.mark.parametrize(
    ("system", "machine", "glibc", "python", "expected"),
    [
        ("linux", "x86_64", (2, 35), "3.10", None),
        ("linux", "aarch64", (2, 41), "3.13", None),
        ("darwin", "arm64", (2, 35), "3.11", "this is darwin on arm64"),
        ("linux", "ppc64le", (2, 35), "3.11", "this is linux on ppc64le"),
        ("linux", "x86_64", (2, 31), "3.11", "needs glibc 2.35 or later, and this system has 2.31"),
        ("linux", "x86_64", (2, 35), "3.14", "this is Python 3.14"),
    ],
)
def test_obstacle(system: str, machine: str, glibc: tuple[int, int], python: str, expected: str | None) -> None:
    found = obstacle(system, machine, glibc, python)
    assert found is None if expected is None else expected in (found or "")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"ADAPTER_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/adapter"),
        ({"HOME": "/h"}, "/h/.cache/adapter"),
    ],
)
def test_cache_folder(env: dict[str, str], expected: str) -> None:
    assert cache_folder(env) == Path(expected)


def test_find_when_several_are_there(tmp_path: Path) -> None:
    named = _program(tmp_path / "named" / "bin" / "tritonserver")
    (tmp_path / "named" / "TRITON_VERSION").write_text("2.70.0\n")
    (tmp_path / "named" / "backends").mkdir()
    on_path = _program(tmp_path / "path" / "bin" / "tritonserver")
    cached = _program(engine_folder({"ADAPTER_CACHE": str(tmp_path)}) / "pytriton/tritonserver/bin/tritonserver")

    first = find(_env(tmp_path, ADAPTER_TRITONSERVER=str(named), PATH=str(on_path.parent)))
    assert first is not None
    assert (first.tritonserver, first.source, first.version) == (named, "ADAPTER_TRITONSERVER", "2.70.0")
    assert (first.bundled, first.backends()) == (False, tmp_path / "named" / "backends")
    second = find(_env(tmp_path, PATH=str(on_path.parent)))
    assert second is not None
    assert (second.tritonserver, second.source, second.version, second.backends()) == (on_path, "PATH", None, None)
    if not CONTAINER_PREFIX.exists():
        last = find(_env(tmp_path))
        assert last is not None
        assert (last.tritonserver, last.source, last.version) == (cached, "cache", TRITON_VERSION)


@without_container
def test_find_when_none_is_there(tmp_path: Path) -> None:
    assert find(_env(tmp_path)) is None


@pytest.mark.parametrize("kind", ["missing", "folder", "plain file"])
def test_find_when_named_one_is_no_program(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tritonserver"
    if kind == "folder":
        path.mkdir()
    elif kind == "plain file":
        path.write_text("")
    with pytest.raises(EngineError, match=r"ADAPTER_TRITONSERVER is '.*tritonserver', which is not a program"):
        find(_env(tmp_path, ADAPTER_TRITONSERVER=str(path)))


def test_install_when_wheel_is_named(tmp_path: Path, wheel: Path) -> None:
    env = _env(tmp_path, ADAPTER_ENGINE_WHEEL=str(wheel))
    made = install(env)
    assert (made.bundled, made.source, made.version) == (True, "cache", TRITON_VERSION)
    assert os.access(made.tritonserver, os.X_OK)
    for python in PYTHONS:
        backends = made.backends(python)
        assert backends is not None
        assert sorted(p.name for p in (backends / "python").iterdir() if p.exists()) == [
            "libtriton_python.so",
            "triton_python_backend_stub",
            "triton_python_backend_utils.py",
        ]
        assert os.access(backends / "python" / "triton_python_backend_stub", os.X_OK)
    assert made.backends("3.9") is None
    assert not list(made.prefix.parent.glob("*.py"))
    assert sorted(p.name for p in (tmp_path / "engine").iterdir()) == [engine_folder(env).name, "lock"]

    before = made.tritonserver.stat().st_ino
    assert install(_env(tmp_path, ADAPTER_ENGINE_WHEEL="/nonexistent")) == made  # it is there: nothing is read
    assert install(env, force=True).tritonserver.stat().st_ino != before


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_install_when_wheel_is_damaged(tmp_path: Path, wheel: Path, damage: str) -> None:
    copy = tmp_path / wheel.name
    content = bytearray(wheel.read_bytes())
    if damage == "changed":
        content[1000] ^= 1
    if damage != "missing":
        copy.write_bytes(content if damage == "changed" else content[:-1])
    expected = "which is not a file" if damage == "missing" else "has the sha256 .* damaged or another one"
    with pytest.raises(EngineError, match=expected):
        install(_env(tmp_path / "cache", ADAPTER_ENGINE_WHEEL=str(copy)))
    assert [p.name for p in (tmp_path / "cache" / "engine").iterdir()] == ["lock"]


def test_install_when_two_run_at_once(tmp_path: Path, mirror: tuple[str, list[str]]) -> None:
    url, asked = mirror
    env = {**_env(tmp_path, PIP_INDEX_URL=url, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", NO_PROXY="127.0.0.1")}
    (tmp_path / "engine" / f"{engine_folder(env).name}.killed").mkdir(parents=True)
    code = "import os; from adapter.triton.installation import install; print(install(os.environ).tritonserver)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len([path for path in asked if path.endswith(".whl")]) == 1
    assert sorted(p.name for p in (tmp_path / "engine").iterdir()) == [engine_folder(env).name, "lock"]


def test_install_when_cache_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(EngineError, match=r"cannot be installed into .*Set ADAPTER_CACHE"):
        install(_env(tmp_path / "cache"))


def test_libpython_when_this_python_has_one() -> None:
    found = libpython()
    if found is not None:
        assert found.is_file()
        assert found.name == f"libpython{running_python()}.so.1.0"
    assert libpython("3.99") is None
