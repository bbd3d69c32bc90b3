"""Runners whose entries lie in Tritons of their own: `adapter.triton.Runner("name", "grpc://host:8001")`."""

from __future__ import annotations

import math
import time

from adapter.exceptions import StateException
from adapter.runner import Runner
from adapter.triton.client import CallMetrics, CallTracer, TritonClient
from adapter.triton.copies import is_address
from adapter.triton.existing import ExistingTransport

_READY_FOR_S = 1.0  # how long an answer to "is Triton ready?" is believed


class Elsewhere:
    """One client for each such Triton, for as long as the application lives."""

    def __init__(self, metrics: CallMetrics | None = None, tracer: CallTracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._clients: dict[str, TritonClient] = {}
        self._expected: dict[str, dict[str, str]] = {}
        self._asked, self._reason = -math.inf, ""

    def connect(self, runner: Runner) -> None:
        """Send a runner's calls to the Triton that it names; on the event loop.

        StateException where it names a folder, which needs a Triton that serves it.
        """
        place = runner.spec.existing or ""
        if not is_address(place):
            raise StateException(
                f"The runner {runner.name!r} calls entries in {place}, which Triton alone can serve: run "
                "`adapter serve` without --development."
            )
        client = self._clients.get(place) or TritonClient(place)
        self._clients[place] = client
        transport = ExistingTransport(client, runner.spec, metrics=self._metrics, tracer=self._tracer)
        runner.connect(transport)
        self._expected.setdefault(place, {}).update(transport.interfaces)

    async def not_ready(self) -> str:
        """Why calls would fail now; "" when they would not."""
        if self._clients and time.monotonic() - self._asked > _READY_FOR_S:
            self._reason = ""
            for place, client in self._clients.items():
                self._reason = self._reason or await client.not_ready(self._expected[place])
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
