"""TorchScript as entries of Triton's PyTorch backend, for which Python code stands in here."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adapter
from adapter.frameworks.torchscript import undeprecated
from adapter.resources import Machine
from adapter.services import Service
from adapter.triton.client import TritonClient
from adapter.triton.conversion import Conversion
from adapter.triton.export import plan, write
from adapter.triton.manifest import Manifest
from adapter.triton.transport import connect
from tests.frameworks.conftest import EngineOf
from tests.triton.standing_in import stand_in


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x) * scale
        return y, y.argmax(dim=1)


class Drawn(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(x.shape)


def save(name: str, module: Any, *sample: Any) -> adapter.Model:
    with undeprecated():
        scripted = torch.jit.script(module)
    signatures = {"__call__": {"batchable": True}}
    saved: adapter.Model = adapter.torchscript.save_model(name, scripted, signatures=signatures, sample=sample)
    return saved


def test_scripted_module_answers_as_in_python(engine_of: EngineOf, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Two().eval()
    x, scale = np.random.default_rng(0).random((10, 3), np.float32), np.full((10, 1), 2, np.float32)
    runner = save("two", module, x, scale).to_runner()
    service, conversion = Service("libtorch", runners=[runner]), Conversion(["fil", "pytorch"])
    planned = plan(service, folder=tmp_path, machine=Machine(1, 0), convert=conversion)
    write(planned, tmp_path)
    assert planned.entries[0].spec.parity is not None
    assert "two.__call__.pytorch is served by pytorch" in conversion.told[0]
    engine = engine_of(tmp_path, stand_in(tmp_path))

    async def call() -> Any:
        client, manifest = TritonClient(engine.url), Manifest.read(tmp_path)
        entries, natives = manifest.entries("libtorch", "two"), manifest.natives("libtorch")
        connect(client, runner, entries, natives=natives)
        try:
            assert await client.not_ready() == ""
            return await runner.async_run(x, scale)
        finally:
            runner.destroy()
            await client.close()

    scores, labels = asyncio.run(call())
    with torch.inference_mode():
        expected = module(torch.from_numpy(x), torch.from_numpy(scale))
    np.testing.assert_allclose(scores, expected[0].numpy(), atol=1e-6)
    assert labels.tolist() == expected[1].tolist()
    assert (scores.dtype, labels.dtype) == (np.float32, np.int64)


def test_module_that_was_saved_while_it_was_trained_is_written_in_its_eval_mode(tmp_path: Path) -> None:
    runner = save("trained", torch.nn.Sequential(torch.nn.Dropout()).train(), np.ones((3, 2), np.float32)).to_runner()
    conversion = Conversion(["pytorch"])
    planned = plan(Service("s", runners=[runner]), folder=tmp_path, machine=Machine(1, 0), convert=conversion)
    assert [p.name for p in planned.entries] == ["trained.__call__.pytorch"]
    content = planned.entries[0].files["model.pt"]
    assert isinstance(content, bytes)
    with undeprecated():
        loaded = torch.jit.load(io.BytesIO(content))
    assert torch.equal(loaded(torch.ones(9, 9)), torch.ones(9, 9))


def test_module_that_answers_otherwise_each_time_stays_with_python(tmp_path: Path) -> None:
    runner = save("drawn", Drawn(), np.ones((3, 2), np.float32)).to_runner()
    conversion = Conversion(["pytorch"])
    planned = plan(Service("s", runners=[runner]), folder=tmp_path, machine=Machine(1, 0), convert=conversion)
    assert [p.name for p in planned.entries] == ["drawn.__call__"]
    assert "drawn.__call__ stays with the python backend. pytorch: its scores differ" in conversion.told[0]
