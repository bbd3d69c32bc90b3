"""Whether a worker can serve requests now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from adapter.server.threads import Threads


class Health:
    """What `/readyz` asks; whoever ends the worker sets `draining`."""

    def __init__(self, threads: Threads, runners_not_ready: Callable[[], Awaitable[str]]) -> None:
        self.draining = False
        self._threads = threads
        self._runners_not_ready = runners_not_ready

    async def not_ready(self) -> str:
        """Why requests would fail now; "" when they would not."""
        if self.draining:
            return "This worker is shutting down."
        if self._threads.exhausted:
            return f"All {self._threads.count} threads of this worker are held by requests whose time is over."
        return await self._runners_not_ready()
