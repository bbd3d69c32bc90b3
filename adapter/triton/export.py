"""Services as entries of a Triton model repository: `plan` decides, `write` writes."""

from __future__ import annotations

import collections
import fcntl
import hashlib
import io
import json
import logging
import shutil
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle

import adapter
from adapter import warmup
from adapter.exceptions import ExportError
from adapter.model import Model
from adapter.requirements import requirements_of
from adapter.resources import Machine
from adapter.runner import RunnerSpec
from adapter.services import Service
from adapter.tag import valid_name
from adapter.triton import spec as spec_file
from adapter.triton.capture import capture, file_digest
from adapter.triton.config import Entry, method_record, model_config, to_text
from adapter.triton.copies import Copy, copies_of, is_address, write_copy
from adapter.triton.manifest import FILE, Manifest
from adapter.triton.placement import doubts, placement
from adapter.triton.spec import EntrySpec

logger = logging.getLogger(__name__)

_LOCK = ".adapter.lock"
_MODEL_PY = """import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "runtime.zip"))
from adapter.triton.backend import TritonPythonModel
"""
# what travels with an entry: everything that worker.py and backend.py import, and the framework files
_RUNTIME = (
    *(
        "__init__.py",
        "absent.py",
        "allocator.py",
        "kinds.py",
        "exceptions.py",
        "tag.py",
        "tensor.py",
        "payload.py",
        "model.py",
        "models.py",
        "requirements.py",
        "ledger.py",
        "worker_metrics.py",
        "measured.py",
        "metrics.py",
    ),
    *("validators.py", "dependency.py", "hosted.py"),
    *("resources.py", "runnable.py", "strategy.py", "method.py", "invocation.py"),
    *("streaming.py", "warmup.py", "runner.py", "frameworks/*.py"),
    *(f"endpoint/{name}.py" for name in ("__init__", "service", "types", "fetching", "hosted")),
    *(
        f"triton/{name}.py"
        for name in (
            "__init__",
            "spec",
            "channel",
            "dlpack",
            "backend",
            "instance",
            "worker_process",
            "stub_memory",
            "streams",
            "stream_worker",
            "worker",
            "worker_log",
            "stub_metrics",
        )
    ),
)

Content = bytes | Path | Callable[[], bytes]


@dataclass(frozen=True)
class PlannedEntry:
    """One entry as it will be written: its configuration, the record of its version, and the files of that."""

    entry: Entry
    spec: EntrySpec
    files: Mapping[str, Content]

    @property
    def name(self) -> str:
        return self.entry.name


@dataclass(frozen=True)
class ExportPlan:
    """All that `write` needs: the entries of one service, and what its manifest says.

    `copies` are entries that exist already, and `existing` those of them that each runner calls.
    """

    service: str
    entries: tuple[PlannedEntry, ...]
    tags: Mapping[str, str]
    models: tuple[Model, ...]
    copies: tuple[Copy, ...] = ()
    existing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What became of one entry: its name, its version, and whether that is new."""

    name: str
    version: int
    changed: bool


# a converter of an entry to another backend of Triton; None where the python entry stays
Convert = Callable[[Entry, RunnerSpec], PlannedEntry | None]


def plan(
    service: Service,
    *,
    folder: Path,
    tags: Mapping[str, str] | None = None,
    machine: Machine | None = None,
    prefix: str = "",
    convert: Convert | None = None,
) -> ExportPlan:
    """Decide the entries of a service whose code lies in `folder`; `tags` are the tags it asked for, resolved.

    Raises ExportError where something of it cannot leave this process.
    """
    place = machine or Machine.here()
    found = list(entries_of(service, place, prefix))
    for name, number in collections.Counter(entry.name for entry, _ in found).items():
        if number > 1:
            same = " and ".join(repr(entry.runner) for entry, _ in found if entry.name == name)
            raise ExportError(f"The runners {same} would both be the entry {name!r}: give one another `name=`.")
    existing = [r.spec for r in service.runners if r.spec.existing is not None and not is_address(r.spec.existing)]
    copies = {copy.folder: copy for spec in existing for copy in copies_of(spec)}
    _refuse_same(copies.values(), [entry.name for entry, _ in found])
    for runner in service.runners:
        for sentence in doubts(runner.spec, place) if _is_ours(runner.spec) else ():
            logger.warning("%s", sentence)
    entries = [(convert and convert(entry, runner)) or planned_entry(entry, runner, folder) for entry, runner in found]
    models = {m.tag: m for r in service.runners for m in (*r.models, *filter(None, [r.model]))}
    models |= {m.tag: m for m in service.models}
    return ExportPlan(
        service.name,
        tuple(entries),
        dict(tags or {}),
        tuple(models.values()),
        tuple(copies.values()),
        {spec.name: tuple(spec.methods) for spec in existing},
    )


def _is_ours(runner: RunnerSpec) -> bool:
    """Whether entries are made of a runner: not of one in the front, nor of one whose entries exist already."""
    return not runner.embedded and runner.existing is None


def _refuse_same(copies: Iterable[Copy], entries: Sequence[str]) -> None:
    seen: dict[str, str] = dict.fromkeys(entries, "an entry of this service")
    for copy in copies:
        if copy.name in seen:
            raise ExportError(f"{copy.folder} and {seen[copy.name]} have one name, {copy.name!r}: rename one of them.")
        seen[copy.name] = str(copy.folder)


def entries_of(service: Service, machine: Machine, prefix: str = "") -> Iterator[tuple[Entry, RunnerSpec]]:
    """The entries that a service has, each with its runner; nothing of them is read or written."""
    before = f"{valid_name(prefix, 'prefix')}." if prefix else ""
    for runner in (r.spec for r in service.runners if _is_ours(r.spec)):
        where = placement(runner, machine)
        methods = tuple(runner.methods.values())
        if runner.model is None:
            whole = f"{before}{service.name}.{runner.name}"
            streams = tuple(m for m in methods if m.stream)
            others = tuple(m for m in methods if not m.stream)
            # an entry of Triton answers every request once, or every one by a stream
            for name, some in ((whole, others), (f"{whole}.stream" if others else whole, streams)):
                if some:
                    yield Entry(name, runner.name, some, where), runner
        else:
            for method in methods:
                yield Entry(f"{before}{runner.name}.{method.name}", runner.name, (method,), where), runner


def planned_entry(entry: Entry, runner: RunnerSpec, folder: Path) -> PlannedEntry:
    """An entry of the python backend with its files."""
    if runner.model is not None:
        return _plan_model(entry, runner, runner.model)
    return _plan_runnable(entry, runner, folder)


def _plan_model(entry: Entry, runner: RunnerSpec, model: Model) -> PlannedEntry:
    files: dict[str, Content] = {f"model/{name}": path for name, path in _files_in(model.folder)}
    versions = model.info.context.get("framework_versions") or {}
    requirements = [f"{name}=={version}" for name, version in sorted(versions.items())]
    calls = _warmup(entry, runner, files)
    spec = entry_spec(
        entry,
        runner,
        fingerprint=fingerprint_of(model),
        warmup=calls,
        models=({"folder": "model", "info": model.info.to_dict()},),
        options=dict(model.info.options),
    )
    return _planned(entry, spec, files, requirements)


def _plan_runnable(entry: Entry, runner: RunnerSpec, folder: Path) -> PlannedEntry:
    taken = capture(runner.runnable_class, runner.init_params, runner.models, folder)
    files: dict[str, Content] = {**taken.code, **taken.files}
    models = []
    for model in taken.models:
        place = f"models/{model.tag.name}/{model.info.version}"
        files |= {f"{place}/{name}": path for name, path in _files_in(model.folder)}
        models.append({"folder": place, "info": model.info.to_dict()})
    files["runnable.pkl"] = taken.pickle
    spec = entry_spec(
        entry,
        runner,
        fingerprint=taken.fingerprint,
        warmup=_warmup(entry, runner, files),
        models=tuple(models),
        pickle="runnable.pkl",
    )
    return _planned(entry, spec, files, list(taken.requirements))


def _warmup(entry: Entry, runner: RunnerSpec, files: dict[str, Content]) -> dict[str, str]:
    """The files of the calls that warm an entry up, by method, which it puts among its files."""
    methods = {method.name: method for method in entry.methods}
    found = {}
    for name, arguments in warmup.samples(runner.warmup, methods, runner.model, runner.name).items():
        call = warmup.encode(methods[name], arguments)
        found[name] = f"warmup/{hashlib.sha256(call).hexdigest()[:16]}"
        files[found[name]] = call
    return found


def _planned(entry: Entry, spec: EntrySpec, files: dict[str, Content], requirements: list[str]) -> PlannedEntry:
    lines = sorted({*requirements, *requirements_of({"numpy"})})
    return PlannedEntry(
        entry,
        spec,
        {
            **files,
            "model.py": _MODEL_PY.encode(),
            "runtime.zip": runtime_zip(),
            "requirements.txt": ("\n".join(lines) + "\n").encode(),
            spec_file.FILE: spec.to_json().encode(),
        },
    )


def entry_spec(entry: Entry, runner: RunnerSpec, *, fingerprint: str, **more: Any) -> EntrySpec:
    """The record of a version of an entry; `more` are fields of EntrySpec."""
    spec = EntrySpec(
        entry=entry.name,
        adapter=adapter.__version__,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        typed=entry.typed,
        batched=entry.batched,
        methods=[dict(method_record(m)) for m in entry.methods],
        environments=[dict(group.environment) for group in entry.placement.groups],
        retry_failed_batch=runner.retry_failed_batch,
        call_timeout_s=runner.call_timeout_s,
        interface=entry.interface,
        **more,
    )
    digest = hashlib.sha256(f"{fingerprint}\0{_runtime_digest()}\0{spec.to_json()}".encode())
    return replace(spec, content=digest.hexdigest()[:16])


def fingerprint_of(model: Model) -> str:
    """What differs where the files or the options of a saved model do."""
    digest = hashlib.sha256("\0".join(f"{n} {file_digest(p)}" for n, p in _files_in(model.folder)).encode())
    digest.update(json.dumps(model.info.options, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _files_in(folder: Path) -> list[tuple[str, Path]]:
    return sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())


# ---- the runtime that travels ---------------------------------------------------------------------------------------


@cache
def runtime_zip() -> bytes:
    """adapter's own code for the stub and the worker, and cloudpickle, as one archive that is always the same."""
    package, pickle = Path(adapter.__file__).parent, Path(cloudpickle.__file__).parent
    found = {f"adapter/{p.relative_to(package).as_posix()}": p for pattern in _RUNTIME for p in package.glob(pattern)}
    found |= {f"cloudpickle/{p.name}": p for p in pickle.glob("*.py")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(found.items()):
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@cache
def _runtime_digest() -> str:
    return hashlib.sha256(runtime_zip()).hexdigest()


# ---- writing --------------------------------------------------------------------------------------------------------


def write(planned: ExportPlan, repository: Path) -> list[Written]:
    """Write what is new into a model repository, atomically; an unchanged service writes nothing.

    Version folders are never changed: other content becomes the next version. An entry whose interface changed gets
    another name, so that fronts of both can share one Triton. ExportError where an entry belongs to another service.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with (repository / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _write(planned, repository)
    except OSError as error:
        raise ExportError(f"{repository} cannot be written: {error}. Name another with --repository.") from error


def _write(planned: ExportPlan, repository: Path) -> list[Written]:
    manifest = _manifest(repository)
    named = [_named(repository, manifest, planned.service, p) for p in planned.entries]
    written = [_write_entry(repository, p) for p in named]
    before = manifest.services.get(planned.service, {}).get("entries", {})
    copied = [
        Written(c.name, c.version, write_copy(c, repository, owned=before.get(c.name, {}).get("copied", False)))
        for c in planned.copies
    ]
    updated = _updated(manifest, planned, named, written)
    if updated != manifest:
        _replace(repository / FILE, updated.to_json().encode())
    return [*written, *copied]


def _manifest(repository: Path) -> Manifest:
    return Manifest.read(repository) if (repository / FILE).exists() else Manifest(str(repository / FILE), {}, {})


def _named(repository: Path, manifest: Manifest, service: str, planned: PlannedEntry) -> PlannedEntry:
    """The entry under the name that it can have: its own, or one with its interface where that has changed."""
    name = planned.name
    others = [s for s, record in manifest.services.items() if s != service and name in record["entries"]]
    folder = repository / name
    if not folder.exists():
        return planned
    latest = _latest(folder)
    if latest is None:
        raise ExportError(f"{folder} is not an entry that adapter wrote: remove it, or export with `--prefix`.")
    old = EntrySpec.read(folder / str(latest))
    if old.content == planned.spec.content:
        return planned
    if others:
        raise ExportError(
            f"The entry {name!r} belongs to the service {others[0]!r} and has other content there: export with "
            f"`--prefix {service}` to give the entries of {service!r} names of their own."
        )
    if old.interface == planned.spec.interface:
        return planned
    fresh = f"{name}.{planned.spec.interface[:8]}"
    spec = replace(planned.spec, entry=fresh)
    return PlannedEntry(
        replace(planned.entry, name=fresh), spec, {**planned.files, spec_file.FILE: spec.to_json().encode()}
    )


def _write_entry(repository: Path, planned: PlannedEntry) -> Written:
    folder = repository / planned.name
    config = to_text(model_config(planned.entry)).encode()
    latest = _latest(folder)
    if latest is not None and EntrySpec.read(folder / str(latest)).content == planned.spec.content:
        file = folder / "config.pbtxt"
        same = file.exists() and file.read_bytes() == config
        if not same:
            _replace(folder / "config.pbtxt", config)
        return Written(planned.name, latest, changed=not same)
    version = (latest or 0) + 1
    # on the same file system, so that the rename is atomic; Triton loads by name, so it does not look in here
    scratch = repository / f".{planned.name}.{uuid.uuid4().hex}"
    try:
        for name, content in planned.files.items():
            _put(scratch / str(version) / name, content)
        if latest is None:
            _put(scratch / "config.pbtxt", config)
            scratch.rename(folder)
        else:
            (scratch / str(version)).rename(folder / str(version))
            _replace(folder / "config.pbtxt", config)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Written(planned.name, version, changed=True)


def _put(target: Path, content: Content) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content() if callable(content) else content)


def _replace(target: Path, content: bytes) -> None:
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    scratch.write_bytes(content)
    scratch.replace(target)


def _latest(folder: Path) -> int | None:
    versions = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal() and (p / spec_file.FILE).exists()]
    return max(versions, default=None)


def _updated(manifest: Manifest, planned: ExportPlan, named: list[PlannedEntry], written: list[Written]) -> Manifest:
    runners: dict[str, dict[str, str]] = {
        runner: {name: name for name in names} for runner, names in planned.existing.items()
    }
    for p in named:
        for method in p.entry.methods:
            runners.setdefault(p.entry.runner, {})[method.name] = p.name
    service = {
        "runners": runners,
        "tags": dict(planned.tags),
        "models": sorted(str(m.tag) for m in planned.models),
        "entries": {
            p.name: {
                "interface": p.spec.interface,
                "content": p.spec.content,
                "version": w.version,
                **({} if p.spec.native is None else {"native": p.spec.native}),
            }
            for p, w in zip(named, written, strict=True)
        }
        | {
            c.name: {"interface": "", "content": c.content, "version": c.version, "copied": True}
            for c in planned.copies
        },
    }
    services = {**manifest.services, planned.service: service}
    models = {**manifest.models, **{str(m.tag): m.info.to_dict() for m in planned.models}}
    needed = {tag for s in services.values() for tag in s["models"]}
    return Manifest(manifest.place, services, {tag: m for tag, m in models.items() if tag in needed})
