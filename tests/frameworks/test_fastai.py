from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.vision.all import DataBlock, ImageBlock, Learner
from PIL import Image

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import fastai

pytestmark = pytest.mark.filterwarnings("ignore")  # of fastai itself, on this Python, pandas and torch

Call = Callable[..., Any]
RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame({"a": RANDOM.normal(size=60), "b": RANDOM.normal(size=60), "c": RANDOM.choice(["x", "y"], 60)})
FRAME["label"] = np.where(FRAME["a"] > 0, "above", "below")


def table() -> Any:
    torch.manual_seed(0)
    loaders = TabularDataLoaders.from_df(
        FRAME,
        procs=[Categorify, FillMissing, Normalize],
        cat_names=["c"],
        cont_names=["a", "b"],
        y_names="label",
        y_block=CategoryBlock(),
        bs=16,
        device="cpu",
    )
    learner = tabular_learner(loaders, layers=[8], n_out=2)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    return learner


def brightness(pixels: Any) -> str:
    return "light" if np.asarray(pixels).mean() > 127 else "dark"


def pictures() -> Any:
    torch.manual_seed(1)
    items = [Image.new("RGB", (8, 8), (value, value, value)) for value in range(0, 256, 16)]
    block = DataBlock((ImageBlock, CategoryBlock), get_y=brightness)
    loaders = block.dataloaders(items, bs=4, device="cpu", num_workers=0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    learner = Learner(loaders, model, loss_func=torch.nn.functional.cross_entropy)
    learner.dls.num_workers = 0
    return learner


@pytest.fixture(scope="module")
def learners() -> dict[str, Any]:
    return {"table": table(), "pictures": pictures()}


@pytest.fixture(scope="module")
def call(learners: dict[str, Any], adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    for name, learner in learners.items():
        fastai.save_model(name, learner, external_modules=[sys.modules[__name__]])
    return serve_models(models.get("table"), models.get("pictures"))


def test_save_model_when_it_is_a_learner(learners: dict[str, Any]) -> None:
    info = fastai.save_model("plain", learners["table"]).info
    assert info.module == "adapter.fastai"
    assert {"fastai", "torch"} <= set(info.context["framework_versions"])
    assert not info.signatures["predict"].typed
    found, wanted = (each.predict(FRAME.iloc[3]) for each in (fastai.load_model("plain"), learners["table"]))
    torch.testing.assert_close(found[2], wanted[2])


def test_save_model_when_it_is_no_learner() -> None:
    with pytest.raises(InvalidArgument, match="saves a Learner, not a Linear"):
        fastai.save_model("wrong", torch.nn.Linear(1, 1))


def test_load_model_in_a_new_process(learners: dict[str, Any]) -> None:
    fastai.save_model("new", learners["table"])
    code = "import adapter; print(type(adapter.fastai.load_model('new', cpu=True)).__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "TabularLearner\n"


def test_call_when_an_item_is_a_row(call: Call, learners: dict[str, Any]) -> None:
    for row in (0, 1):
        item = FRAME.drop(columns="label").iloc[row]
        _, index, scores = call("table", "predict", item)
        _, wanted, likely = learners["table"].predict(item)
        assert int(index) == int(wanted)
        torch.testing.assert_close(scores, torch.Tensor(likely))


def test_call_when_an_item_is_a_picture(call: Call, learners: dict[str, Any]) -> None:
    for grey in (10, 240):
        item = Image.new("RGB", (8, 8), (grey, grey, grey))
        label, _, scores = call("pictures", "predict", np.asarray(item))
        wanted = learners["pictures"].predict(np.asarray(item))
        assert label == wanted[0]
        assert type(label) is str
        torch.testing.assert_close(scores, torch.Tensor(wanted[2]))
