"""Services as entries of a Triton model repository: `plan` decides, `write` writes."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import logging
import sys
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
from adapter.triton.address import is_address
from adapter.triton.capture import capture, file_digest
from adapter.triton.config import Entry, method_record, model_config, to_text
from adapter.triton.copies import Copy, copies_of, write_copy
from adapter.triton.manifest import FILE, Manifest
from adapter.triton.placement import doubts, placement
from adapter.triton.spec import EntrySpec
from adapter.triton.storage import Content, Storage, storage

logger = logging.getLogger(__name__)

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
            "in_stub",
            "stub_memory",
            "streams",
            "stream_worker",
            "worker",
            "worker_log",
            "stub_metrics",
        )
    ),
)


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
        isolated=runner.isolated,
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


@dataclass(frozen=True)
class Export:
    """What becomes of one entry: the version that has its content, what was the latest before, and its configuration.

    `added` where that version is not there yet, `changed` where anything is to be written.
    """

    planned: PlannedEntry
    version: int
    before: int | None
    config: bytes
    added: bool
    changed: bool

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def written(self) -> Written:
        return Written(self.name, self.version, self.changed)


def write(planned: ExportPlan, place: Path | str) -> list[Written]:
    """Write what is new into a model repository, each entry whole at any moment; an unchanged service writes nothing.

    `place` is a folder, or the address of object storage. Version folders are never changed: other content becomes the
    next version. An entry whose interface changed gets another name, so that fronts of both can share one Triton.
    ExportError where an entry belongs to another service, or the repository cannot be written.
    """
    repository = storage(place)
    with repository.lock(logger.warning):
        repository.sweep()
        manifest = read_manifest(repository)
        targets = targets_of(planned, repository, manifest)
        for target in targets:
            if target.added:
                add_version(repository, target)
            if target.changed:
                use_version(repository, target.name, target.version, target.config)
        copied = [
            Written(c.name, c.version, write_copy(c, repository, owned=is_owned(manifest, planned.service, c)))
            for c in planned.copies
        ]
        write_manifest(repository, manifest, updated(manifest, planned, targets))
        return [*(target.written for target in targets), *copied]


def read_manifest(repository: Storage) -> Manifest:
    """The manifest of a repository, an empty one where there is none."""
    place = f"{repository.place}/{FILE}"
    content = repository.read(FILE)
    return Manifest(place, {}, {}) if content is None else Manifest.parse(content, place)


def write_manifest(repository: Storage, before: Manifest, after: Manifest) -> None:
    """Write a manifest where it says anything new."""
    if after != before:
        repository.replace(FILE, after.to_json().encode())


def targets_of(planned: ExportPlan, repository: Storage, manifest: Manifest) -> list[Export]:
    """What an export would do to each entry; nothing is written."""
    return [_target(repository, _named(repository, manifest, planned.service, p)) for p in planned.entries]


def is_owned(manifest: Manifest, service: str, copy: Copy) -> bool:
    """Whether an entry was copied there for a service before."""
    entries = manifest.services.get(service, {}).get("entries", {})
    return bool(entries.get(copy.name, {}).get("copied", False))


def _named(repository: Storage, manifest: Manifest, service: str, planned: PlannedEntry) -> PlannedEntry:
    """The entry under the name that it can have: its own, or one with its interface where that has changed."""
    name = planned.name
    others = [s for s, record in manifest.services.items() if s != service and name in record["entries"]]
    there = repository.names(name)
    latest = latest_version(repository, name)
    if latest is None:
        if there is not None and (repository.renames or "config.pbtxt" in there):  # else its writer was killed
            raise ExportError(
                f"{repository.place}/{name} is not an entry that adapter wrote: remove it, or export with `--prefix`."
            )
        return planned
    old = read_spec(repository, name, latest)
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


def _target(repository: Storage, planned: PlannedEntry) -> Export:
    name, latest = planned.name, latest_version(repository, planned.name)
    same = latest is not None and read_spec(repository, name, latest).content == planned.spec.content
    version = latest if latest is not None and same else (latest or 0) + 1
    config = to_text(model_config(planned.entry, version)).encode()
    changed = not same or repository.read(f"{name}/config.pbtxt") != config
    return Export(planned, version, latest, config, added=not same, changed=changed)


def add_version(
    repository: Storage, target: Export, folder: str = "", beside: Mapping[str, Content] | None = None
) -> None:
    """Write the version of an entry, which nobody serves before `use_version`, to where it belongs or to `folder`.

    `beside` are more files in it.
    """
    repository.sweep(target.name)
    files: dict[str, Content] = {**target.planned.files, **(beside or {})}
    like = f"{target.name}/{target.before}" if target.before is not None else ""
    if target.before is None and not folder and repository.renames:
        # with its configuration, since Triton may be told to load all that it finds
        whole = {f"{target.version}/{name}": content for name, content in files.items()}
        repository.put(target.name, {**whole, "config.pbtxt": target.config}, ())
    else:
        repository.put(folder or f"{target.name}/{target.version}", files, (spec_file.FILE,), like)


def use_version(repository: Storage, name: str, version: int, config: bytes) -> None:
    """Let Triton load a version of an entry from now on; the version keeps its configuration, for another time."""
    repository.replace(f"{name}/{version}/config.pbtxt", config)
    repository.replace(f"{name}/config.pbtxt", config)


def versions_of(repository: Storage, name: str) -> list[int]:
    """The versions of an entry that are complete, in order."""
    numbers = sorted(int(found) for found in repository.names(name) or () if found.isdecimal())
    return [n for n in numbers if spec_file.FILE in (repository.names(f"{name}/{n}") or ())]


def latest_version(repository: Storage, name: str) -> int | None:
    return max(versions_of(repository, name), default=None)


def read_spec(repository: Storage, name: str, version: int) -> EntrySpec:
    """The record of a version; ExportError as `EntrySpec.parse`."""
    folder = f"{repository.place}/{name}"
    return EntrySpec.parse(repository.read(f"{name}/{version}/{spec_file.FILE}") or b"", f"{folder}/{version}", folder)


def updated(manifest: Manifest, planned: ExportPlan, targets: Sequence[Export]) -> Manifest:
    """The manifest after an export; what it said of the service before is kept where other versions served it."""
    runners: dict[str, dict[str, str]] = {
        runner: {name: name for name in names} for runner, names in planned.existing.items()
    }
    for target in targets:
        for method in target.planned.entry.methods:
            runners.setdefault(target.planned.entry.runner, {})[method.name] = target.name
    service = {
        "runners": runners,
        "tags": dict(planned.tags),
        "models": sorted(str(m.tag) for m in planned.models),
        "entries": {
            t.name: {
                "interface": t.planned.spec.interface,
                "content": t.planned.spec.content,
                "version": t.version,
                **({} if t.planned.spec.native is None else {"native": t.planned.spec.native}),
            }
            for t in targets
        }
        | {
            c.name: {"interface": "", "content": c.content, "version": c.version, "copied": True}
            for c in planned.copies
        },
    }
    return manifest.with_service(planned.service, service, {str(m.tag): m.info.to_dict() for m in planned.models})
