"""Saved models behind a real engine, each method of each an entry of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapter.model import Model
from adapter.resources import Machine
from adapter.services import Service
from adapter.triton.client import TritonClient
from adapter.triton.engine import Engine
from adapter.triton.export import plan, write
from adapter.triton.manifest import Manifest
from adapter.triton.transport import connect
from tests.frameworks.environments import GROUPS

# collected only where they are named on the command line, as they are in the environment of their group
collect_ignore = [file for group in GROUPS.values() for file in group.tests]

EngineOf = Callable[[Path, Sequence[str]], Engine]
Call = Callable[..., Any]
Serve = Callable[..., Call]


@pytest.fixture(scope="module")
def serve_models(engine_of: EngineOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Export saved models, start a tritonserver on them, and call them there: `call("iris_clf", "predict", rows)`.

    What runs there has read the files of the entry in a process of its own.
    """
    loop = asyncio.new_event_loop()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)

        def serve(*models: Model, threads: int = 1) -> Call:
            runners = {model.tag.name: model.to_runner() for model in models}
            service = Service("models", runners=list(runners.values()))
            repository = tmp_path_factory.mktemp("repository")
            written = write(plan(service, folder=repository, machine=Machine(cpus=threads, gpus=0)), repository)
            engine = engine_of(repository, [w.name for w in written])

            async def begin() -> TritonClient:
                client, manifest = TritonClient(engine.url), Manifest.read(repository)
                for runner in service.runners:
                    connect(client, runner, manifest.entries(service.name, runner.name))
                return client

            client = loop.run_until_complete(begin())
            stack.callback(lambda: loop.run_until_complete(client.close()))

            def call(name: str, method: str, *args: Any, **kwargs: Any) -> Any:
                (found,) = (m for m in runners[name].runner_methods if m.name == method)
                return loop.run_until_complete(found.async_run(*args, **kwargs))

            return call

        yield serve
