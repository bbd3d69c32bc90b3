from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import diffusers

Call = Callable[..., Any]
STEPS = {"num_inference_steps": 2, "batch_size": 2}


def pipeline() -> Any:
    """Random weights, which make pictures of 8 x 8 pixels."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, **blocks)
    made = DDIMPipeline(unet.eval(), DDIMScheduler(num_train_timesteps=10))
    made.set_progress_bar_config(disable=True)
    return made


def wanted(seed: int, **options: Any) -> Any:
    return pipeline()(generator=torch.Generator().manual_seed(seed), **STEPS, **options).images


@pytest.fixture(scope="module")
def call(adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    diffusers.save_model("pictures", pipeline(), partial_kwargs={"__call__": STEPS})
    return serve_models(models.get("pictures"))


def test_save_model_when_it_is_a_pipeline() -> None:
    saved = diffusers.save_model("plain", pipeline())
    assert (Path(saved.path) / "diffusion_model" / "model_index.json").exists()
    assert saved.info.module == "adapter.diffusers"
    assert {"diffusers", "torch"} <= set(saved.info.context["framework_versions"])
    loaded = diffusers.load_model("plain", device_id="cpu", torch_dtype=torch.float32)
    images = loaded(generator=torch.Generator().manual_seed(1), output_type="np", **STEPS).images
    np.testing.assert_allclose(images, wanted(1, output_type="np"), atol=1e-5)


def test_save_model_when_it_is_no_pipeline() -> None:
    with pytest.raises(InvalidArgument, match="saves a DiffusionPipeline, not a UNet2DModel"):
        diffusers.save_model("wrong", pipeline().unet)


def test_import_model_when_it_lies_in_a_folder(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path)
    diffusers.import_model("imported", str(tmp_path), labels={"from": "folder"})
    code = "import adapter; print(type(adapter.diffusers.load_model('imported')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert done.stdout == "DDIMPipeline\n"


def test_import_model_when_there_is_none(tmp_path: Path) -> None:
    for source in ("no/such-model", str(tmp_path)):
        with pytest.raises(InvalidArgument, match=r"No pipeline can be made of "):
            diffusers.import_model("wrong", source)


def test_call_gives_the_pictures_of_the_model(call: Call) -> None:
    (images,) = call("pictures", "__call__", generator=7)
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    for mine, theirs in zip(images, wanted(7), strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(theirs, int)).max() <= 1
    (other,) = call("pictures", "__call__", generator=8, output_type="np")
    np.testing.assert_allclose(other, wanted(8, output_type="np"), atol=1e-4)
    assert list(call("pictures", "__call__", generator=7, return_dict=True)) == ["images"]
