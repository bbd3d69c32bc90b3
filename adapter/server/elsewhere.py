"""Tritons that run elsewhere: those of `--triton`, those that single runners have, and those that code names."""

from __future__ import annotations

import asyncio
import math
import time

from adapter.exceptions import ConfigException, StateException
from adapter.runner import Runner, RunnerSpec
from adapter.services import Service
from adapter.settings import Triton
from adapter.triton.address import Address, is_address
from adapter.triton.client import TritonClient
from adapter.triton.existing import ExistingTransport
from adapter.triton.routes import CallMetrics, CallTracer

_READY_FOR_S = 1.0  # how long an answer to "is Triton ready?" is believed


def place_of(runner: RunnerSpec, triton: Triton) -> str | None:
    """Where the entries of a runner are: at an address of its own, else at that of all, None where there is none."""
    if runner.name in triton.runners and (own := triton.runners[runner.name].url) is not None:
        return own
    return runner.existing if runner.existing is not None and is_address(runner.existing) else triton.url


def check(service: Service, triton: Triton) -> None:
    """Raise ConfigException where the runners of a service and the Tritons that are set do not go together."""
    runners = {runner.name: runner.spec for runner in service.runners}
    for name in triton.runners:
        if name not in runners:
            known = ", ".join(runners) or "none"
            raise ConfigException(
                f"triton.runners has an address for the runner {name!r}, but the service {service.name!r} has {known}."
            )
        if runners[name].embedded:
            raise ConfigException(
                f"triton.runners has an address for the runner {name!r}, which is embedded: it runs in the front."
            )
    for name, runner in runners.items():
        if not runner.embedded and place_of(runner, triton) is None:
            raise ConfigException(
                f"The runner {name!r} has no Triton: set triton.url (--triton) for all runners, or "
                f"triton.runners.{name}.url for this one."
            )
    for url in dict.fromkeys(place_of(runner, triton) for runner in runners.values() if not runner.embedded):
        if url is not None:
            triton.at(url).context()


class Elsewhere:
    """One client for each address, for as long as the application lives."""

    def __init__(self, triton: Triton, *, metrics: CallMetrics | None = None, tracer: CallTracer | None = None) -> None:
        self._triton = triton
        self._metrics = metrics
        self._tracer = tracer
        self._clients: dict[Address, TritonClient] = {}
        self._asked, self._reason = -math.inf, ""

    def client(self, runner: RunnerSpec, service: Service) -> TritonClient:
        """The client for the Tritons that have the entries of a runner; on the event loop.

        StateException where they lie in a folder, which needs a Triton that serves it.
        """
        place = place_of(runner, self._triton)
        if place is None:
            raise StateException(
                f"The runner {runner.name!r} calls entries in {runner.existing}, which Triton alone can serve: run "
                "`adapter serve` without --development."
            )
        address = self._triton.at(place)
        if address not in self._clients:
            mend = f"run `adapter deploy {service.import_string} --triton {address}`"
            self._clients[address] = TritonClient(address, watch=True, mend=mend, observer=self._metrics)
        return self._clients[address]

    def connect(self, runner: Runner, service: Service) -> None:
        """Send the calls of a runner to entries that exist already; as `client`."""
        client = self.client(runner.spec, service)
        runner.connect(ExistingTransport(client, runner.spec, metrics=self._metrics, tracer=self._tracer))

    async def not_ready(self) -> str:
        """Why calls would fail now; "" when they would not."""
        if self._clients and time.monotonic() - self._asked > _READY_FOR_S:
            reasons = await asyncio.gather(*(client.not_ready() for client in self._clients.values()))
            self._reason = next(filter(None, reasons), "")
            self._asked = time.monotonic()
        return self._reason

    def abandon(self, identity: str) -> None:
        """End the calls of an HTTP request whose client has gone."""
        for client in self._clients.values():
            client.abandon(identity)

    async def close(self) -> None:
        """End the connections."""
        while self._clients:
            await self._clients.popitem()[1].close()
