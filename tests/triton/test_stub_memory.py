from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapter.triton.stub_memory import StubMemory


def _mapped(fd: int, size: int) -> tuple[mmap.mmap, int]:
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_position_of_an_address_is_that_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "region"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    small, first = _mapped(fd, 1 << 16)
    memory = StubMemory(path)
    assert memory.position(first + 100, 50) == 100
    assert memory.position(first, 1 << 16) == 0
    assert memory.position(first + 1, 1 << 16) is None, "a byte of it lies beyond"
    # Triton leaves the mapping of before in place when it makes a larger one
    large, second = _mapped(fd, 1 << 20)
    large[700_000:700_004] = b"data"
    position = memory.position(second + 700_000, 4)
    assert position == 700_000
    assert os.pread(memory.fd, 4, position) == b"data"
    assert memory.position(first + 100, 50) == 100
    os.close(fd)
    os.close(memory.fd)
    assert len(small) < len(large)


def test_position_of_an_address_elsewhere_is_none(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(bytes(4096))
    elsewhere = ctypes.create_string_buffer(64)
    memory = StubMemory(path)
    assert memory.position(ctypes.addressof(elsewhere), 64) is None
    assert memory.position(0, 0) is None
    os.close(memory.fd)


@pytest.mark.parametrize("file", [None, Path("/dev/shm/there-is-no-such-file")])
def test_position_when_there_is_no_file(file: Path | None) -> None:
    memory = StubMemory(file)
    assert memory.fd == -1
    assert memory.position(4096, 8) is None


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("triton_python_backend_shm_region_7", "/dev/shm/triton_python_backend_shm_region_7"),
        ("another_name", "None"),
        ("", "None"),  # no such argument
    ],
)
def test_shared_file_is_the_second_argument_of_the_stub(argument: str, expected: str, tmp_path: Path) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text("from adapter.triton.stub_memory import shared_file\nprint(shared_file())")
    command = [sys.executable, str(stub), *[a for a in [argument] if a]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == expected
