"""New versions of a service's entries in Tritons that run, tried before they serve, and the versions of before again.

A version is tried under a name that nobody calls. Under its own name Triton would send it every call from the moment it
is ready, since a call that names no version gets the highest one; and a load that failed there would leave that Triton
"not ready" until the very same version loads. The file that decides what serves is `config.pbtxt`, which names one
version: it is replaced when every Triton has tried the new one, and what it named before serves until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from adapter import warmup
from adapter.exceptions import AdapterError, DeploymentError, EngineError, message_of, sentence
from adapter.runner import RunnerSpec
from adapter.services import Service
from adapter.triton import trial
from adapter.triton.address import Address, Target
from adapter.triton.admin import Control
from adapter.triton.client import TritonClient
from adapter.triton.config import Entry, to_text
from adapter.triton.copies import CONFIG, Copy, content_of, write_copy
from adapter.triton.export import (
    Export,
    ExportPlan,
    add_version,
    is_owned,
    read_manifest,
    read_spec,
    targets_of,
    updated,
    use_version,
    versions_of,
    write_manifest,
)
from adapter.triton.manifest import Manifest, served
from adapter.triton.storage import Content, Storage, Tell, hidden, storage
from adapter.triton.transport import TritonTransport

DEFAULT_LIMIT_S = 300.0
DEFAULT_KEEP = 2

_TRIAL = "_check."  # no service and no runner can have a name that begins so
_TRIED = 1  # always the same version: Triton forgets that one failed when the same one loads
_FILE = "trial.py"
_ROWS = 8  # of a sample
_GRACE_S = 15.0  # for Triton, beyond the limit that a version on trial keeps itself
_UNLOAD_S = 30.0
_SHOWN_LINES = 12
_NOT_FOUND = "failed to poll from model repository"
_NOT_EXPLICIT = "explicit model load / unload is not allowed"

# the Tritons that serve a runner, by its name
Addresses = Callable[[str], Address]


@dataclass(frozen=True)
class Row:
    """What became of one entry; `before` is the version that served, None where there was none."""

    entry: str
    before: int | None
    version: int
    replicas: int
    check: str
    seconds: float


@dataclass(frozen=True)
class _Replica:
    """One Triton: for admin calls, and alone for calls of what is tried."""

    control: Control
    address: Address


@dataclass(frozen=True)
class _Step:
    """One entry that is to be served in one version, with one configuration.

    `export` is set where that is to be written, `copy` where the entry exists already elsewhere, and `entry` and
    `runner` where it is known how to call it.
    """

    name: str
    version: int
    config: bytes
    interface: str
    replicas: tuple[_Replica, ...]
    runner: RunnerSpec | None = None
    entry: Entry | None = None
    export: Export | None = None
    copy: Copy | None = None

    @property
    def trial(self) -> str:
        return f"{_TRIAL}{self.name}"

    @property
    def calls(self) -> warmup.Samples:
        """The calls that show whether it works, by method: the runner's warm-up, else the model's sample."""
        if self.runner is None or self.entry is None:
            return {}
        methods = {method.name: method for method in self.entry.methods}
        if self.runner.warmup:
            return warmup.samples(self.runner.warmup, methods, self.runner.model, self.runner.name)
        sample = None if self.runner.model is None else self.runner.model.sample
        if sample is None:
            return {}
        return {name: (_few(sample), {}) for name, method in methods.items() if not method.stream}

    @property
    def check(self) -> str:
        names = ", ".join(f"{name}()" for name in self.calls)
        return f"sample of {names}" if names else "ready, has no sample"


def deploy(
    service: Service,
    planned: ExportPlan,
    place: str | Path,
    addresses: Addresses,
    *,
    tell: Tell,
    limit_s: float = DEFAULT_LIMIT_S,
    keep: int = DEFAULT_KEEP,
) -> list[Row]:
    """Have a service, as it is now, served by Tritons that run; what serves of it goes on until all have tried it.

    A load may take `limit_s`; `keep` versions of each entry stay in the repository beside the one that serves.
    DeploymentError where it cannot be served: then everything is as it was.
    """
    repository = storage(place)
    with repository.lock(tell):
        tritons = _Tritons(addresses)
        manifest = read_manifest(repository)
        exports = targets_of(planned, repository, manifest)
        runners = {runner.name: runner.spec for runner in service.runners}
        steps = [_exported(export, runners[export.planned.entry.runner], tritons) for export in exports]
        steps += [_copied(copy, repository, manifest, planned.service, tritons) for copy in planned.copies]
        rows = _Deployment(repository, tritons, limit_s).run(steps)
        after = updated(manifest, planned, exports)
        record = after.services[planned.service]
        after = after.replaced(planned.service, {**record, "history": record.get("history", [])[:keep]})
        write_manifest(repository, manifest, after)
        _prune(repository, after, planned.service, keep)
        return rows


def rollback(
    service: Service | str,
    place: str | Path,
    addresses: Addresses,
    *,
    tell: Tell,
    entry: str | None = None,
    to: int | None = None,
    limit_s: float = DEFAULT_LIMIT_S,
) -> list[Row]:
    """Have a service served as it was before, or one entry of it in its version before, or in version `to`.

    With only the name of a service nothing is known to call its entries with. DeploymentError as `deploy`.
    """
    name = service if isinstance(service, str) else service.name
    repository = storage(place)
    with repository.lock(tell):
        manifest = read_manifest(repository)
        if name not in manifest.services:
            known = ", ".join(manifest.services) or "none"
            raise DeploymentError(f"{manifest.place} has no service {name!r}; it has: {known}.")
        record = manifest.services[name]
        after = _before(manifest, name) if entry is None else _other_version(repository, manifest, name, entry, to)
        tritons = _Tritons(addresses)
        wanted = after.services[name]
        runners = {} if isinstance(service, str) else {runner.name: runner.spec for runner in service.runners}
        now = served(record)
        steps = [
            _known(repository, after, name, found, runners, tritons)
            for found, version in served(wanted).items()
            if now.get(found) != version
        ]
        rows = _Deployment(repository, tritons, limit_s).run(steps)
        write_manifest(repository, manifest, after)
        return rows


# ---- what is to be done ---------------------------------------------------------------------------------------------


class _Tritons:
    """The Tritons that serve each runner, each of which is reached once."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._known: dict[Address, tuple[_Replica, ...]] = {}

    def of(self, runner: str) -> tuple[_Replica, ...]:
        """The Tritons of a runner; DeploymentError where one of them cannot be asked."""
        address = self._addresses(runner)
        if address not in self._known:
            self._known[address] = tuple(_replicas(address))
        return self._known[address]


def _replicas(address: Address) -> Iterator[_Replica]:
    for found in address.replicas():
        tls = replace(address.tls, server_name=address.server_name(found)) if address.secure else address.tls
        alone = replace(address, targets=(Target(found.host, found.port),), tls=tls)
        replica = _Replica(Control.of(address, found), alone)
        try:
            replica.control.versions()
        except EngineError as error:
            raise DeploymentError(
                f"The Triton at {found} does not tell what it serves ({error}), so nothing was changed: every one of "
                f"{address} must be there, and allow model control."
            ) from error
        yield replica


def _exported(export: Export, runner: RunnerSpec, tritons: _Tritons) -> _Step:
    planned = export.planned
    return _Step(
        export.name,
        export.version,
        export.config,
        planned.spec.interface,
        tritons.of(runner.name),
        runner,
        planned.entry,
        export,
    )


def _copied(copy: Copy, repository: Storage, manifest: Manifest, service: str, tritons: _Tritons) -> _Step:
    there = repository.digests(copy.name)
    changed = not there or content_of(there) != copy.content
    if there and changed and not is_owned(manifest, service, copy):
        raise DeploymentError(
            f"{repository.place}/{copy.name} is another entry than {copy.folder}, which the runner {copy.runner!r} "
            "calls: rename one of them, or use another repository."
        )
    return _Step(copy.name, copy.version, b"", "", tritons.of(copy.runner), copy=copy if changed else None)


def _known(
    repository: Storage,
    manifest: Manifest,
    service: str,
    name: str,
    runners: Mapping[str, RunnerSpec],
    tritons: _Tritons,
) -> _Step:
    """The step to a version that is in the repository."""
    record = manifest.services[service]
    version = record["entries"][name]["version"]
    there = versions_of(repository, name)
    if version not in there:
        raise DeploymentError(
            f"{repository.place} has no version {version} of {name} any more; it has: {', '.join(map(str, there))}. "
            "Deploy the service as it was, which makes a version of it."
        )
    spec = read_spec(repository, name, version)
    runner = next(r for r, methods in record["runners"].items() if name in methods.values())
    entry = None
    if runner in runners:
        called = [m for m in runners[runner].methods.values() if record["runners"][runner].get(m.name) == name]
        known = Entry(name, runner, tuple(called), native=manifest.natives(service).get(name)) if called else None
        entry = known if known is not None and known.interface == spec.interface else None
    config = repository.read(f"{name}/{version}/{CONFIG}") or _pinned(repository, name, version)
    return _Step(name, version, config, spec.interface, tritons.of(runner), runners.get(runner), entry)


def _pinned(repository: Storage, name: str, version: int) -> bytes:
    """The configuration of an entry, for a version that has none of its own."""
    config = _parsed(repository.read(f"{name}/{CONFIG}") or b"")
    config.version_policy.specific.versions[:] = [version]
    return to_text(config).encode()


def _before(manifest: Manifest, service: str) -> Manifest:
    """The manifest with what a service was before."""
    history: Sequence[Mapping[str, Any]] = manifest.services[service].get("history", [])
    if not history:
        raise DeploymentError(
            f"{manifest.place} does not know of a version of {service!r} before this one: name an entry and one of its "
            "versions, with --entry and --to."
        )
    rest = {"history": history[1:]} if history[1:] else {}
    return manifest.replaced(service, {**history[0], **rest})


def _other_version(repository: Storage, manifest: Manifest, service: str, entry: str, to: int | None) -> Manifest:
    """The manifest with another version of one entry."""
    record = manifest.services[service]
    entries = record["entries"]
    if entry not in entries:
        raise DeploymentError(f"The service {service!r} has no entry {entry!r}; it has: {', '.join(entries)}.")
    if entries[entry].get("copied"):
        raise DeploymentError(f"{entry} is a copy of an entry that exists already, of which no versions are kept.")
    there, now = versions_of(repository, entry), entries[entry]["version"]
    earlier = [version for version in there if version < now]
    if to is None and not earlier:
        raise DeploymentError(f"{repository.place} has no version of {entry} before {now}.")
    version = earlier[-1] if to is None else to
    if version not in there:
        raise DeploymentError(
            f"{repository.place} has no version {version} of {entry}; it has: {', '.join(map(str, there))}."
        )
    spec = read_spec(repository, entry, version)
    changed = {**entries[entry], "version": version, "content": spec.content}
    after = {name: part for name, part in record.items() if name != "history"}
    return manifest.with_service(service, {**after, "entries": {**entries, entry: changed}})


# ---- doing it -------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """A step that cannot be done on one Triton, and why."""

    def __init__(self, step: _Step, why: str) -> None:
        super().__init__(why)
        self.step = step
        self.why = why


@dataclass
class _Deployment:
    """Steps of one deployment, from the first trial to the last Triton that has switched."""

    repository: Storage
    tritons: _Tritons
    limit_s: float
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, steps: Sequence[_Step]) -> list[Row]:
        """Try what is not served yet, then switch to it; DeploymentError where either fails, and nothing is changed."""
        before = {step.name: _serving(step) for step in steps}
        self._clear(steps)
        todo = [step for step in steps if step.copy is not None or self._differs(step, before[step.name])]
        tried = [step for step in todo if step.copy is None and step.config]
        try:
            for step in tried:
                self._write_trial(step)
            self._everywhere(tried, self._try, before)
            self._switch(todo, before)
        finally:
            for step in tried:
                self.repository.remove(step.trial)
        named = {step.name for step in todo}
        return [
            Row(
                step.name,
                _highest(before[step.name]),
                step.version,
                len(step.replicas),
                step.check if step.name in named else "unchanged",
                self.seconds[step.name],
            )
            for step in steps
        ]

    def _differs(self, step: _Step, serving: set[int | None]) -> bool:
        """Whether something else than a step wants is served, or written."""
        config = self.repository.read(f"{step.name}/{CONFIG}")
        return serving != {step.version} or bool(step.config and step.config != config)

    def _clear(self, steps: Sequence[_Step]) -> None:
        """Remove what a deployment has left that was killed."""
        self.repository.sweep()
        left = [name for name in self.repository.names("") or () if name.startswith(_TRIAL)]
        replicas = {replica.control.url: replica for step in steps for replica in step.replicas}
        for replica in replicas.values():
            loaded = [name for name in replica.control.versions() if name.startswith(_TRIAL)]
            for name in loaded:
                _forget(replica, name)
        for name in left:
            self.repository.remove(name)

    def _write_trial(self, step: _Step) -> None:
        """Write the entry under which a version is tried; as it lies there it does nothing."""
        empty = Path(trial.__file__).read_bytes()
        place = hidden(step.trial) if self.repository.renames else step.trial
        version = f"{place}/{_TRIED}"
        if not self.repository.renames:  # so it does from the beginning
            self.repository.replace(f"{version}/{_FILE}", empty)
            self.repository.replace(f"{place}/{CONFIG}", to_text(_at_rest(step)).encode())
        if step.export is not None and step.export.added:
            add_version(self.repository, step.export, version, {_FILE: empty})
        else:
            self.repository.copy(f"{step.name}/{step.version}", version)
        if self.repository.renames:
            self.repository.replace(f"{version}/{_FILE}", empty)
            self.repository.replace(f"{place}/{CONFIG}", to_text(_at_rest(step)).encode())
            self.repository.move(place, step.trial)

    def _try(self, replica: _Replica, step: _Step) -> None:
        try:
            replica.control.load_one(step.trial, self.limit_s + _GRACE_S, _on_trial(step, self.limit_s))
            self._check(replica, step, step.trial, _TRIED)
        finally:
            _forget(replica, step.trial)

    def _check(self, replica: _Replica, step: _Step, name: str, version: int) -> None:
        """Find out whether a version of an entry works on one Triton."""
        found = replica.control.interface(name, version)
        if found is None:
            raise EngineError("it is loaded, but not ready")
        if found != step.interface:
            raise EngineError(f"its interface is {found or 'none'} there, and not {step.interface}: is it another one?")
        if step.calls:
            asyncio.run(_call(replica, step, name, self.limit_s))

    def _switch(self, steps: Sequence[_Step], before: Mapping[str, set[int | None]]) -> None:
        undo: list[tuple[_Step, Callable[[], None]]] = []
        backups: list[str] = []
        try:
            for step in steps:
                undo.append((step, self._use(step, backups)))
            self._everywhere(steps, self._load, before)
        except BaseException:
            for _, back in reversed(undo):
                back()
            for step, _ in undo:
                self._take_back(step, _highest(before[step.name]))
            raise
        finally:
            for name in backups:
                self.repository.remove(name)

    def _use(self, step: _Step, backups: list[str]) -> Callable[[], None]:
        """Let a version be the one that Triton loads; how to undo that."""
        repository, name = self.repository, step.name
        if step.copy is not None:
            return self._use_copy(step.copy, backups)
        file = f"{name}/{CONFIG}"
        old = repository.read(file)
        if step.export is not None and step.export.added:
            # a new entry with its configuration, since Triton may be told to load all that it finds
            place = hidden(name) if old is None and repository.renames else name
            repository.move(f"{step.trial}/{_TRIED}", f"{place}/{step.version}")
            repository.remove(f"{place}/{step.version}/{_FILE}")
            use_version(repository, place, step.version, step.config)
            if place != name:
                repository.move(place, name)
        elif step.config:
            use_version(repository, name, step.version, step.config)
        if old is None:
            return lambda: repository.remove(name)
        return lambda: repository.replace(file, old)

    def _use_copy(self, copy: Copy, backups: list[str]) -> Callable[[], None]:
        repository, backup = self.repository, ""
        if repository.names(copy.name) is not None:
            backup = hidden(copy.name)
            repository.copy(copy.name, backup)
            backups.append(backup)
        write_copy(copy, repository, owned=True)

        def back() -> None:
            repository.remove(copy.name)
            if backup:
                repository.copy(backup, copy.name)

        return back

    def _load(self, replica: _Replica, step: _Step) -> None:
        replica.control.load_one(step.name, self.limit_s + _GRACE_S)
        if step.config:
            self._check(replica, step, step.name, step.version)
        replica.control.wait_unloaded(step.name, _UNLOAD_S)  # until then Triton does not call itself ready

    def _take_back(self, step: _Step, before: int | None) -> None:
        """Have all Tritons serve what they served before, and remove what was added."""
        added = f"{step.name}/{step.version}" if step.export is not None and step.export.added else ""
        if before is None:
            self._take_away(step)
            return
        if added:
            # Triton forgets that a version failed when that one loads: it does, with what served before in its place
            self.repository.remove(added)
            self.repository.copy(f"{step.name}/{before}", added)
        for replica in step.replicas:
            with contextlib.suppress(EngineError):  # it serves that still, then
                config = None
                if added and replica.control.versions().get(step.name, {}).get(step.version) == "UNAVAILABLE":
                    config = _parsed(self.repository.read(f"{step.name}/{CONFIG}") or b"")
                    failed = pb.ModelConfig()
                    failed.CopyFrom(config)
                    failed.version_policy.specific.versions[:] = [step.version]
                    replica.control.load_one(step.name, self.limit_s, failed)
                # given once more, since to Triton the file is as it was
                replica.control.load_one(step.name, self.limit_s, config)
                replica.control.wait_unloaded(step.name, _UNLOAD_S)
        if added:
            self.repository.remove(added)

    def _take_away(self, step: _Step) -> None:
        """Unload an entry that was not served before, and leave the Tritons ready, with an empty model in its place."""
        new = self.repository.names(step.name) is None and bool(step.config)
        if new:
            config = _at_rest(step)
            config.name = step.name
            config.version_policy.specific.versions.append(step.version)
            empty: dict[str, Content] = {f"{step.version}/{_FILE}": Path(trial.__file__).read_bytes()}
            self.repository.put(step.name, {**empty, CONFIG: to_text(config).encode()}, (CONFIG,))
        for replica in step.replicas:
            _forget(replica, step.name)
        if new:
            self.repository.remove(step.name)

    def _everywhere(
        self,
        steps: Sequence[_Step],
        act: Callable[[_Replica, _Step], None],
        before: Mapping[str, set[int | None]],
    ) -> None:
        """Do some steps, one after the other, on all Tritons at once."""
        replicas = {replica.control.url: replica for step in steps for replica in step.replicas}

        def work(replica: _Replica) -> None:
            for step in steps:
                if any(other.control.url == replica.control.url for other in step.replicas):
                    begun = time.monotonic()
                    try:
                        act(replica, step)
                    except Exception as error:
                        known = isinstance(error, AdapterError)
                        raise _Failed(step, message_of(error) if known else sentence(error)) from error
                    finally:
                        self.seconds[step.name] = max(self.seconds[step.name], time.monotonic() - begun)

        failed: list[tuple[str, _Failed]] = []
        # whoever is told to end waits here for what Triton is doing, and takes it back afterwards
        with ThreadPoolExecutor(max_workers=max(1, len(replicas))) as pool:
            running = {url: pool.submit(work, replica) for url, replica in replicas.items()}
            for url, done in running.items():
                try:
                    done.result()
                except _Failed as error:
                    failed.append((url, error))
        if failed:
            raise DeploymentError(self._told(failed, len(replicas), before)) from failed[0][1]

    def _told(self, failed: Sequence[tuple[str, _Failed]], of: int, before: Mapping[str, set[int | None]]) -> str:
        url, first = failed[0]
        step = first.step
        why = (
            first.why.partition("\n\nAt:\n")[0] if step.copy is None else first.why
        )  # where in Triton's stub it was raised
        lines = [line for line in why.splitlines() if line.strip()] or ["no reason was given"]
        short = lines[-1].strip() if lines[0].startswith("Traceback") else lines[0]
        if _NOT_FOUND in first.why:
            short = f"it does not find what is in {self.repository.place}, so it serves another repository"
        elif _NOT_EXPLICIT in first.why:
            short = "it loads nothing on demand; start it with --model-control-mode=explicit"
        where = f"the Triton at {url}" + (f" and {len(failed) - 1} more of {of}" if len(failed) > 1 else "")
        serving = _highest(before[step.name])
        after = "Nothing was changed." if serving is None else f"Version {serving} goes on serving."
        what = f"Version {step.version} of {step.name} was not deployed"
        telling = f"{what}: {where} says: {short.strip().rstrip('.')}. {after}"
        shown = lines[-_SHOWN_LINES:] if len(lines) > 1 else []
        return "\n".join([telling, *(f"  {line}" for line in shown)])


def _forget(replica: _Replica, name: str) -> None:
    """Unload an entry that nobody calls, in a way that leaves that Triton ready: see the docstring of this file."""
    with contextlib.suppress(EngineError):
        states = replica.control.versions().get(name, {})
        if not states:
            return
        if "UNAVAILABLE" in states.values():
            with contextlib.suppress(EngineError):
                replica.control.load_one(name, _GRACE_S)
        replica.control.unload([name], _UNLOAD_S)
        replica.control.wait_unloaded(name, _UNLOAD_S)


def _serving(step: _Step) -> set[int | None]:
    """The versions that the Tritons of a step serve of its entry, None where one serves none."""
    found: set[int | None] = set()
    for replica in step.replicas:
        states = replica.control.versions().get(step.name, {})
        found.add(max((version for version, state in states.items() if state == "READY"), default=None))
    return found


def _highest(versions: Iterable[int | None]) -> int | None:
    return max((version for version in versions if version is not None), default=None)


async def _call(replica: _Replica, step: _Step, name: str, limit_s: float) -> None:
    """Make the calls of a step, as a front would; the error of the first that fails."""
    assert step.runner is not None
    assert step.entry is not None
    own = {method.name for method in step.entry.methods}
    entries = {method: name if method in own else step.name for method in step.runner.methods}
    client = TritonClient(replica.address)
    try:
        natives = {} if step.entry.native is None else {name: step.entry.native}
        transport = TritonTransport(client, step.runner, entries, natives=natives)
        for method, (args, kwargs) in step.calls.items():
            spec = step.runner.methods[method]
            call = _first(transport, spec, args, kwargs) if spec.stream else transport.async_run(spec, args, kwargs)
            try:
                await asyncio.wait_for(call, limit_s)
            except asyncio.TimeoutError:
                raise EngineError(f"{method}() did not answer its sample within {limit_s:g} s") from None
            except Exception as error:
                reason = message_of(error) if isinstance(error, AdapterError) else sentence(error)
                raise EngineError(f"{method}() failed on its sample: {reason}") from error
        transport.close()
    finally:
        await client.close()


async def _first(transport: TritonTransport, method: Any, args: Any, kwargs: Any) -> None:
    values: Any = transport.async_stream(method, args, kwargs)
    async with contextlib.aclosing(values):
        async for _ in values:
            return


def _few(sample: Any) -> tuple[Any, ...]:
    """The first rows of a sample, by argument; all of it where its arguments have no rows, or not equally many."""
    parts = sample if isinstance(sample, tuple) else (sample,)
    rows = {len(part) if isinstance(part, list) or getattr(part, "shape", None) else None for part in parts}
    return parts if len(rows) != 1 or None in rows else tuple(part[:_ROWS] for part in parts)


def _parsed(config: bytes) -> Any:
    return text_format.Parse(config.decode(), pb.ModelConfig())


def _on_trial(step: _Step, limit_s: float) -> Any:
    """The configuration with which a version is tried."""
    config = _parsed(step.config)
    config.name = step.trial
    config.ClearField("version_policy")
    if config.backend == "python":
        config.default_model_filename = _FILE
        config.parameters[trial.LIMIT].string_value = f"{limit_s:g}"
    return config


def _at_rest(step: _Step) -> Any:
    """The configuration of the empty model that is loaded of what is tried, by a Triton that loads all it finds."""
    config = _parsed(step.config)
    config.name, config.backend, config.platform = step.trial, "python", ""
    config.default_model_filename = _FILE
    for name in ("version_policy", "parameters", "instance_group", "dynamic_batching"):
        config.ClearField(name)
    config.instance_group.add(kind="KIND_CPU", count=1)
    return config


def _prune(repository: Storage, manifest: Manifest, service: str, keep: int) -> None:
    """Remove old versions of a service's entries, but for `keep` of each and those that a manifest goes back to."""
    named: dict[str, set[int]] = defaultdict(set)
    for found in manifest.services.values():
        for record in (found, *found.get("history", [])):
            for name, version in served(record).items():
                named[name].add(version)
    for name, entry in manifest.services[service]["entries"].items():
        if not entry.get("copied"):
            for version in outdated(versions_of(repository, name), named[name], keep):
                repository.remove(f"{name}/{version}")


def outdated(versions: Sequence[int], named: Collection[int], keep: int) -> list[int]:
    """The versions of an entry, oldest first, that are more than those that are `named`, and `keep` beside one of them.

    >>> outdated([1, 2, 3, 4], {4}, keep=2)
    [1]
    """
    others = [version for version in versions if version not in named]
    kept = max(0, keep + 1 - len(named))
    return others[: max(0, len(others) - kept)]
