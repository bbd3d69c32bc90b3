"""The memory that Triton's python stub shares with its server, where the arguments of requests lie."""

from __future__ import annotations

import os
from pathlib import Path

SHM_FOLDER = Path("/dev/shm")
SHM_NAME = "triton_python_backend_shm_region_"  # what its name begins with


def shared_file() -> Path | None:
    """Its file, None where Triton names it otherwise than this knows."""
    arguments = Path("/proc/self/cmdline").read_bytes().decode(errors="replace").split("\0")
    name = arguments[2] if len(arguments) > 2 else ""
    return SHM_FOLDER / name if name.startswith(SHM_NAME) else None


class StubMemory:
    """Says where in that memory an address lies; `fd` is for the worker, which reads there itself (-1 for none)."""

    def __init__(self, file: Path | None) -> None:
        self._file = str(file)
        self._ranges: list[tuple[int, int, int]] = []  # first address, end, and where that is in the file
        self._size = 0  # of the file, when they were read
        try:
            self.fd = -1 if file is None else os.open(file, os.O_RDONLY)
        except OSError:
            self.fd = -1

    def position(self, address: int, size: int) -> int | None:
        """Where in the file some bytes of this process lie, None where they are elsewhere."""
        if (found := self._find(address, size)) is None and self.fd >= 0:
            grown = os.fstat(self.fd).st_size
            if grown != self._size:
                self._size = grown
                self._ranges = self._mapped()
                found = self._find(address, size)
        return found

    def _find(self, address: int, size: int) -> int | None:
        for first, end, start in self._ranges:
            if first <= address and address + size <= end:
                return address - first + start
        return None

    def _mapped(self) -> list[tuple[int, int, int]]:
        """Where the file is mapped here; Triton leaves a mapping in place when it makes a larger one."""
        found = []
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            addresses, _, start, _, _, *name = line.split(maxsplit=5)
            if name == [self._file]:
                first, end = (int(text, 16) for text in addresses.split("-"))
                found.append((first, end, int(start, 16)))
        return found
