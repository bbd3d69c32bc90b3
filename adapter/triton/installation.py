"""Find a tritonserver on this machine, or install one into the user's cache.

What is installed is the wheel `nvidia-pytriton`, which carries the real tritonserver with its python backend. It is not
a dependency of this package, because its metadata pins numpy<2, and none of its Python code is unpacked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter.exceptions import EngineError
from adapter.triton.package_index import PackageIndex, Progress

logger = logging.getLogger("adapter.engine")

PROJECT = "nvidia-pytriton"
TRITON_VERSION = "2.51.0"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MINIMUM_GLIBC = (2, 35)
CONTAINER_PREFIX = Path("/opt/tritonserver")
OTHER_WAYS = (
    "run `adapter serve --development` to do without Triton, or `--triton grpc://<host>:8001` to use one elsewhere"
)

_SERVER = Path("pytriton/tritonserver")
_WANTED = (
    "nvidia_pytriton.libs/",
    f"{_SERVER}/bin/",
    f"{_SERVER}/backends/",
    *(f"{_SERVER}/python_backend_stubs/{minor}/" for minor in PYTHONS),
)
_LICENSES = "/licenses/"
_PROGRAMS = ("tritonserver", "triton_python_backend_stub")
# The stub of 3.13 brings the libpython that it was linked with under a name of its own; the others look for the user's.
_BRING_LIBPYTHON = ("3.13",)


@dataclass(frozen=True)
class Wheel:
    """A file that the package index has; nothing but exactly this content is ever unpacked."""

    filename: str
    sha256: str
    size: int


WHEELS = {
    "x86_64": Wheel(
        "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
        "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
        55369373,
    ),
    "aarch64": Wheel(
        "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_aarch64.whl",
        "f99e07ee56fe065337453956afba17d2673e02ec6a632c3de26ce6e7b32a0898",
        53818874,
    ),
}


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    `source` says what led to it, `version` is None where its folder does not tell, and `bundled` means that it is the
    one which adapter installs, with a stub for each Python of `PYTHONS` rather than a Python of its own.
    """

    tritonserver: Path
    source: str
    version: str | None = None
    bundled: bool = False

    @property
    def prefix(self) -> Path:
        """The folder with `bin/` and `backends/`."""
        return self.tritonserver.parent.parent

    def backends(self, python: str | None = None) -> Path | None:
        """The folder for --backend-directory, or None where only Triton's own default can be right.

        A bundled one has a folder for each Python minor (that of this process by default), because the python backend
        takes its stub from beside itself.
        """
        folder = self.prefix / (f"backends-{python or running_python()}" if self.bundled else "backends")
        return folder if folder.is_dir() else None


def running_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find(env: Mapping[str, str]) -> Installation | None:
    """Return the tritonserver to use: ADAPTER_TRITONSERVER, one on PATH, /opt/tritonserver, or the cached engine.

    Raises EngineError where ADAPTER_TRITONSERVER names no program.
    """
    named = env.get("ADAPTER_TRITONSERVER")
    if named:
        path = Path(named).expanduser()
        if not _is_program(path):
            raise EngineError(
                f"ADAPTER_TRITONSERVER is {named!r}, which is not a program: set it to the path of a tritonserver, or "
                "unset it."
            )
        return _elsewhere(path, "ADAPTER_TRITONSERVER")
    on_path = shutil.which("tritonserver", path=env.get("PATH", os.defpath))
    if on_path:
        return _elsewhere(Path(on_path), "PATH")
    if _is_program(CONTAINER_PREFIX / "bin" / "tritonserver"):
        return _elsewhere(CONTAINER_PREFIX / "bin" / "tritonserver", str(CONTAINER_PREFIX))
    return _cached(env)


def install(env: Mapping[str, str], progress: Progress | None = None, *, force: bool = False) -> Installation:
    """Download tritonserver and unpack it into the cache; return the one that is there unless `force`.

    The cache is $ADAPTER_CACHE, or `adapter` in $XDG_CACHE_HOME or ~/.cache. The file comes from the package index that
    pip is configured for, or is $ADAPTER_ENGINE_WHEEL. Two calls at once, in any processes, do the work once, and a
    call that is killed leaves nothing that counts as installed. `progress` is told bytes done and bytes in all.
    """
    found = None if force else _cached(env)
    if found is not None:
        return found
    problem = obstacle()
    if problem:
        raise EngineError(f"{problem}: {OTHER_WAYS}.")
    target = engine_folder(env)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock"):
            found = None if force else _cached(env)  # another process may have done it meanwhile
            return found or _install(env, target, progress)
    except OSError as error:
        raise EngineError(
            f"The engine cannot be installed into {target.parent}: {error.strerror or error}. Set ADAPTER_CACHE to a "
            "folder that can be written and has 200 MB to spare."
        ) from error
    except zipfile.BadZipFile as error:
        raise EngineError(f"The wheel of the engine cannot be unpacked: {error}.") from error


def ensure(env: Mapping[str, str], progress: Progress | None = None) -> Installation:
    """Return the tritonserver to use; install one where there is none. Raises EngineError where that cannot be."""
    return find(env) or install(env, progress)


def obstacle(
    system: str = sys.platform, machine: str = "", glibc: tuple[int, int] | None = None, python: str = ""
) -> str | None:
    """Say why the engine that adapter installs cannot run here, or None where it can; the defaults are this machine."""
    machine, python, glibc = machine or platform.machine(), python or running_python(), glibc or running_glibc()
    what = f"Triton {TRITON_VERSION}, which adapter would install,"
    if system != "linux" or machine not in WHEELS:
        return f"{what} runs on Linux on {' or '.join(WHEELS)}, and this is {system} on {machine}"
    if glibc is None or glibc < MINIMUM_GLIBC:
        needed = ".".join(map(str, MINIMUM_GLIBC))
        here = "none" if glibc is None else ".".join(map(str, glibc))
        return f"{what} needs glibc {needed} or later, and this system has {here}"
    if python not in PYTHONS:
        return f"{what} runs models under Python {', '.join(PYTHONS)}, and this is Python {python}"
    return None


def running_glibc() -> tuple[int, int] | None:
    """The version of this process's glibc, None under another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
    except (ValueError, OSError):
        return None
    return (int(major), int(minor)) if name == "glibc" else None


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where adapter keeps what it can fetch again."""
    if env.get("ADAPTER_CACHE"):
        return Path(env["ADAPTER_CACHE"]).expanduser().absolute()
    home = Path(env.get("HOME") or Path.home())
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache").absolute() / "adapter"


def engine_folder(env: Mapping[str, str]) -> Path:
    """Where `install` puts the engine for this kind of machine."""
    return cache_folder(env) / "engine" / f"{TRITON_VERSION}-{platform.machine()}"


def libpython_name(python: str) -> str:
    return f"libpython{python}.so.1.0"


def libpython(python: str | None = None) -> Path | None:
    """Return the shared library of a Python minor (this one by default), which a bundled stub is linked with."""
    python = python or running_python()
    return next((f / libpython_name(python) for f in _library_folders() if (f / libpython_name(python)).exists()), None)


def missing_libpython(python: str) -> EngineError:
    """Make the error for a Python whose shared library is not on this machine."""
    return EngineError(
        f"Triton runs models with {libpython_name(python)}, and this machine has none: install it (on Debian or Ubuntu "
        f"`apt install libpython{python}`), use a Python that was built with a shared library, or {OTHER_WAYS}."
    )


def needs_libpython(python: str) -> bool:
    return python not in _BRING_LIBPYTHON


def _library_folders() -> Iterable[Path]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    configured = sysconfig.get_config_var("LIBDIR")
    for folder in (configured, f"{sys.base_prefix}/lib", "/usr/local/lib", "/usr/lib", "/usr/lib64"):
        if folder:
            yield Path(folder)
            yield Path(folder) / multiarch


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _elsewhere(path: Path, source: str) -> Installation:
    path = path.resolve()
    prefix = path.parent.parent
    if (prefix / f"backends-{PYTHONS[0]}").is_dir():
        return Installation(path, source, TRITON_VERSION, bundled=True)
    told = prefix / "TRITON_VERSION"
    return Installation(path, source, told.read_text().strip() if told.is_file() else None)


def _cached(env: Mapping[str, str]) -> Installation | None:
    path = engine_folder(env) / _SERVER / "bin" / "tritonserver"
    return Installation(path, "cache", TRITON_VERSION, bundled=True) if _is_program(path) else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:  # the lock goes with the process, so a killed one blocks nobody
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is installing the engine; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(env: Mapping[str, str], target: Path, progress: Progress | None) -> Installation:
    for abandoned in target.parent.glob(f"{target.name}.*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    wheel = WHEELS[platform.machine()]
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        file = _wheel_file(env, wheel, work, progress)
        _check(file, wheel)
        unpack(file, work / "engine")
        if target.exists():  # force: what runs from there goes on, its files only lose their names
            target.rename(work / "replaced")
        (work / "engine").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    logger.info("Triton %s is installed in %s.", TRITON_VERSION, target)
    found = _cached(env)
    if found is None:
        raise EngineError(f"{wheel.filename} holds no tritonserver.")
    return found


def _wheel_file(env: Mapping[str, str], wheel: Wheel, work: Path, progress: Progress | None) -> Path:
    named = env.get("ADAPTER_ENGINE_WHEEL")
    if not named:
        file = work / wheel.filename
        PackageIndex.configured(env).fetch(PROJECT, wheel.filename, file, wheel.size, progress)
        return file
    file = Path(named).expanduser()
    if not file.is_file():
        raise EngineError(
            f"ADAPTER_ENGINE_WHEEL is {named!r}, which is not a file: set it to the path of {wheel.filename}, or "
            "unset it."
        )
    return file


def _check(file: Path, wheel: Wheel) -> None:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != wheel.sha256:
        raise EngineError(
            f"{file.name} has the sha256 {digest.hexdigest()}, and that of {wheel.filename} is {wheel.sha256}: the "
            "file is damaged or another one, so it was not installed. Fetch it again."
        )


def unpack(wheel: Path, target: Path) -> None:
    """Unpack what serving needs of the wheel: server, python backend, their libraries, and licenses.

    The libraries are found relative to the programs, so the wheel's own layout is kept.
    """
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if n.startswith(_WANTED) or _LICENSES in n]
        archive.extractall(target, wanted)
    server = target / _SERVER
    for path in server.rglob("*"):
        if path.name in _PROGRAMS:
            path.chmod(0o755)
    for python in PYTHONS:
        # As deep as backends/python: a shared library looks for others relative to the path that it was opened by.
        folder = server / f"backends-{python}" / "python"
        folder.mkdir(parents=True)
        stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
        for file in (*(server / "backends" / "python").iterdir(), stub):
            (folder / file.name).symlink_to(os.path.relpath(file, folder))
