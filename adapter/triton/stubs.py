"""What a tritonserver has started, as Linux tells it: its stubs, their shared memory, its session."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapter.triton.stub_memory import SHM_FOLDER, SHM_NAME

_STUB = "triton_python_backend_stub"
_EXIT_CODE = 49  # among the fields of /proc/<pid>/stat after the name; see proc(5)
_ESTABLISHED = "01"  # in /proc/net/tcp


@dataclass(frozen=True)
class Stub:
    """A process of the python backend: one instance of one version of an entry; `region` lies in /dev/shm."""

    pid: int
    entry: str
    version: str
    region: str


def stubs_of(server: int) -> list[Stub]:
    """List the live stubs of a tritonserver."""
    return [stub for pid in _children(server) if (stub := stub_of(pid)) is not None]


def stub_of(pid: int) -> Stub | None:
    """Read what a process is from its command line: `<stub> <entry>/<version>/model.py <region> …`."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(arguments) < 4 or not arguments[0].endswith(_STUB) or not arguments[2].startswith(SHM_NAME):
        return None
    version = Path(arguments[1]).parent
    return Stub(pid, version.parent.name, version.name, arguments[2])


def dead_children(parent: int) -> list[int]:
    """List the children of a process that have ended and that it has not noticed yet."""
    return [pid for pid in _pids() if (fields := _stat(pid)) and int(fields[1]) == parent and fields[0] == "Z"]


def ended_badly(pid: int) -> bool | None:
    """Whether a process that has ended, and that its parent has not noticed yet, did so with an error, else None."""
    fields = _stat(pid)
    if not fields or fields[0] != "Z":
        return None
    return fields[_EXIT_CODE] != "0"


def connected(port: int) -> bool:
    """Whether anybody on this machine has a TCP connection, by IPv4, to a port."""
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return True
    return any(row[3] == _ESTABLISHED and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def session(leader: int) -> list[int]:
    """List the live processes of a session, its leader left out."""
    found = []
    for pid in _pids():
        fields = _stat(pid)
        if fields and pid != leader and int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(pid)
    return found


def mapped_regions(pid: int) -> set[str]:
    """Name the backend's shared memory that a process has open, that of dead stubs included."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    names = (line.rpartition(f"{SHM_FOLDER}/")[2].removesuffix(" (deleted)") for line in lines if SHM_NAME in line)
    return set(names)


def _children(parent: int) -> list[int]:
    return [pid for pid in _pids() if (fields := _stat(pid)) and int(fields[1]) == parent]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the name, which may hold spaces: state, ppid, process group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
