"""What is asked of one running Triton beside inference: to load and unload entries, and how they are."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter.exceptions import EngineError
from adapter.triton.address import Address, Replica
from adapter.triton.config import INTERFACE
from adapter.triton.failures import explained

DEFAULT_LOAD_TIMEOUT_S = 300.0

_READY, _UNLOADED = "READY", "unloaded"
_OWN_REFUSAL = "TritonModelException: "
_ASK_S = 1.0
_REACH_S = 5.0
_POLL_S = 0.05
_FAILED_LOAD = re.compile(r"^load failed for model '[^']*': (version \d+ is at UNAVAILABLE state: )?")
_RESTART = "adapter_restart"  # a parameter of an entry's configuration
CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True)
class Control:
    """One Triton, as its admin calls reach it, from any process."""

    url: str
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    credentials: Any = field(default=None, repr=False)
    server_name: str = ""

    @classmethod
    def of(cls, address: Address, replica: Replica) -> Control:
        """One of the Tritons at an address; ConfigException where the files of its TLS cannot be used."""
        if address.context() is None:  # which has tried the files
            return cls(str(replica), address.metadata)
        ca, certificate, key = (
            None if file is None else file.read_bytes()
            for file in (address.tls.ca, address.tls.certificate, address.tls.key or address.tls.certificate)
        )
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        return cls(str(replica), address.metadata, credentials, address.server_name(replica))

    def load(self, entries: Sequence[str], timeout_s: float = DEFAULT_LOAD_TIMEOUT_S) -> None:
        """Load the newest version of each entry; the version before it serves until that is ready.

        Raises EngineError with Triton's reason where an entry cannot be loaded: what was loaded of it goes on serving.
        """
        failed: list[tuple[str, str | None]] = []
        with self.triton() as triton:
            for entry in entries:
                request = service_pb2.RepositoryModelLoadRequest(model_name=entry)
                try:
                    triton.RepositoryModelLoad(request, metadata=self.metadata, timeout=timeout_s)
                except grpc.RpcError as error:
                    failed.append((entry, reason(error, entry)))
        if failed:
            raise EngineError(refusal(failed, len(entries)))

    def load_one(self, entry: str, timeout_s: float, config: Any = None) -> None:
        """Load one entry, with another configuration than that in the repository where one is given.

        EngineError with Triton's reason alone where it cannot be loaded.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=entry)
        if config is not None:
            request.parameters["config"].string_param = MessageToJson(config, preserving_proto_field_name=True)
        with self.triton() as triton:
            try:
                triton.RepositoryModelLoad(request, metadata=self.metadata, timeout=timeout_s)
            except grpc.RpcError as error:
                raise EngineError(said(reason(error, entry))) from error

    def restart(self, entry: str, number: int, timeout_s: float, done: Callable[[], None]) -> Restart:
        """Begin to load an entry anew whose stub has died; `done` is called on another thread when that has ended.

        To Triton an entry with a dead stub is as it was, so a plain load does nothing: one with a configuration that
        differs, by a parameter with this `number`, does. Never unload it first: it would be missing meanwhile.
        """
        return Restart(self, entry, number, timeout_s, done)

    def unload(self, entries: Iterable[str], timeout_s: float = DEFAULT_LOAD_TIMEOUT_S) -> None:
        """Unload entries, each when its last request is answered; EngineError where Triton does not do it."""
        with self.triton() as triton:
            for entry in entries:
                request = service_pb2.RepositoryModelUnloadRequest(model_name=entry)
                try:
                    triton.RepositoryModelUnload(request, metadata=self.metadata, timeout=timeout_s)
                except grpc.RpcError as error:
                    raise EngineError(f"Triton cannot unload {entry}: {reason(error, entry)}.") from error

    def wait_unloaded(self, entry: str, timeout_s: float) -> None:
        """Return when nothing of an entry is in memory any more, or the time is over."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if all(state != "UNLOADING" for state in self.versions().get(entry, {}).values()):
                return
            time.sleep(_POLL_S)

    def versions(self) -> dict[str, dict[int, str]]:
        """The state of each version of each entry that Triton knows; one that was unloaded is left out.

        EngineError where it cannot be reached, or does not tell.
        """
        found: dict[str, dict[int, str]] = {}
        with self.triton() as triton:
            try:
                index: Any = triton.RepositoryIndex(
                    service_pb2.RepositoryIndexRequest(), metadata=self.metadata, timeout=_REACH_S
                )
            except grpc.RpcError as error:
                raise EngineError(reason(error, "")) from error
        for row in index.models:
            if row.version and row.reason != _UNLOADED:
                found.setdefault(row.name, {})[int(row.version)] = row.state
        return found

    def interface(self, entry: str, version: int) -> str | None:
        """The fingerprint of the interface of a version of an entry; None where that version is not ready."""
        with self.triton() as triton:
            try:
                asked = service_pb2.ModelReadyRequest(name=entry, version=str(version))
                if not triton.ModelReady(asked, metadata=self.metadata, timeout=_REACH_S).ready:
                    return None
                config = service_pb2.ModelConfigRequest(name=entry, version=str(version))
                found: Any = triton.ModelConfig(config, metadata=self.metadata, timeout=_REACH_S).config
            except grpc.RpcError as error:
                raise EngineError(reason(error, entry)) from error
        interface: str = found.parameters[INTERFACE].string_value
        return interface

    @contextlib.contextmanager
    def triton(self) -> Iterator[Any]:
        if self.credentials is None:
            channel = grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        else:
            named = (("grpc.ssl_target_name_override", self.server_name),)
            channel = grpc.secure_channel(self.url, self.credentials, options=(*CHANNEL_OPTIONS, *named))
        with channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


class Restart:
    """One load of an entry whose stub has died, under way."""

    def __init__(self, control: Control, entry: str, number: int, timeout_s: float, done: Callable[[], None]) -> None:
        self.entry = entry
        self._stack = contextlib.ExitStack()
        triton = self._stack.enter_context(control.triton())
        request = service_pb2.RepositoryModelLoadRequest(model_name=entry)
        with contextlib.suppress(grpc.RpcError):  # where no version is loaded, a plain load does something
            asked = service_pb2.ModelConfigRequest(name=entry)
            config = triton.ModelConfig(asked, timeout=_ASK_S).config
            config.parameters[_RESTART].string_value = str(number)
            request.parameters["config"].string_param = MessageToJson(config, preserving_proto_field_name=True)
        self._call = triton.RepositoryModelLoad.future(request, metadata=control.metadata, timeout=timeout_s)
        self._call.add_done_callback(lambda _: done())

    @property
    def done(self) -> bool:
        return bool(self._call.done())

    def result(self) -> None:
        """Return when it is loaded; EngineError with Triton's reason where it cannot be."""
        try:
            self._call.result()
        except grpc.RpcError as error:
            raise EngineError(refusal([(self.entry, reason(error, self.entry))], 1)) from error
        finally:
            self.cancel()

    def cancel(self) -> None:
        self._call.cancel()
        self._stack.close()


def reason(error: Any, entry: str) -> str:
    """Triton's reason, without what it says before and after each."""
    text = explained(error.details() or error.code().name)
    return _FAILED_LOAD.sub("", text.removeprefix(f"failed to load '{entry}', ")).rstrip("; \n")


def said(text: str) -> str:
    """A reason in adapter's own words, where it is one of those, without where in Triton's stub it was raised."""
    found = text.strip().removeprefix("Internal: ")
    return found.removeprefix(_OWN_REFUSAL).partition("\nAt:\n")[0] if found.startswith(_OWN_REFUSAL) else found


def refusal(failed: Sequence[tuple[str, str | None]], of: int) -> str:
    """Which entries Triton cannot load, and why."""
    parts = [f"Triton cannot load {len(failed)} of {of} {'entry' if of == 1 else 'entries'}."]
    for entry, why in failed:
        text = "it is not in the model repository" if why is None else said(why) or "no reason was given"
        lines = [line for line in text.splitlines() if line.strip()]
        parts.append("\n".join([f"{entry}: {lines[0]}", *(f"  {line}" for line in lines[1:])]))
    return "\n".join(parts)
