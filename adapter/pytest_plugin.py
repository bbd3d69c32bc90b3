"""A pytest plugin with one fixture, `served`: a service of your own under a real `adapter serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import adapter

if TYPE_CHECKING:
    from adapter.client import SyncHTTPClient
    from adapter.services import Service


class Serve(Protocol):
    """What the fixture `served` is."""

    def __call__(self, service: Service | str, **options: Any) -> SyncHTTPClient: ...


@pytest.fixture(scope="module")
def served() -> Iterator[Serve]:
    """Serve a service with Triton on a free port of 127.0.0.1, and get a client: `client = served(svc)`.

    A service is a global of a module, the test's own included, or what `adapter serve` takes; options are those of
    adapter.HTTPServer, with one front process unless `api_workers` says otherwise. It is started once for all tests
    of a module, and ended after them.
    """
    with contextlib.ExitStack() as stack:
        clients: dict[tuple[Any, ...], SyncHTTPClient] = {}

        def serve(service: Service | str, **options: Any) -> SyncHTTPClient:
            asked = {"port": 0, "api_workers": 1, **options}
            key = (service, repr(sorted(asked.items())))
            if key not in clients:
                clients[key] = stack.enter_context(adapter.HTTPServer(service, **asked))
            return clients[key]

        yield serve
