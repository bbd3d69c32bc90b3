from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import easyocr
import numpy as np
import pytest
import torch
from easyocr.craft import CRAFT
from easyocr.detection import get_textbox
from easyocr.model.vgg_model import Model
from easyocr.utils import CTCLabelConverter
from PIL import Image, ImageDraw

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import easyocr as framework

pytestmark = pytest.mark.filterwarnings("ignore")  # of easyocr itself, which is older than the torch beside it

Call = Callable[..., Any]
BOXES: dict[str, Any] = {"horizontal_list": [[4, 60, 4, 36], [60, 116, 4, 36]], "free_list": []}


def reader(folder: Path) -> Any:
    """A reader whose networks have random weights: its own would be downloaded."""
    torch.manual_seed(0)
    places = {"model_storage_directory": str(folder), "user_network_directory": str(folder)}
    made = easyocr.Reader(["en"], gpu=False, download_enabled=False, detector=False, recognizer=False, **places)
    made.detector, made.get_textbox = CRAFT().eval(), get_textbox
    made.recognizer = Model(1, 8, 8, len(made.character) + 1).eval()
    made.converter = CTCLabelConverter(made.character, {}, {})
    return made


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return reader(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def picture() -> Any:
    image = Image.new("RGB", (120, 40), "white")
    ImageDraw.Draw(image).text((10, 10), "some text", fill="black")
    return image


@pytest.fixture(scope="module")
def call(native: Any, adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    framework.save_model("reader", native, signatures={"detect": {}, "recognize": {}})
    return serve_models(models.get("reader"))


def test_save_model_when_it_is_a_reader(native: Any) -> None:
    info = framework.save_model("plain", native).info
    assert list(info.signatures) == ["detect", "readtext", "readtextlang", "recognize"]
    assert {"easyocr", "torch"} <= set(info.context["framework_versions"])
    code = "import adapter; print(adapter.easyocr.load_model('plain').model_lang)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "english\n"


def test_save_model_when_it_is_no_reader_on_a_cpu(native: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"saves an easyocr\.Reader, not a CRAFT"):
        framework.save_model("wrong", native.detector)
    elsewhere = reader(tmp_path)
    elsewhere.device = "cuda"
    with pytest.raises(InvalidArgument, match=r"on the device 'cuda'.*gpu=False"):
        framework.save_model("wrong", elsewhere)


def test_call_gives_what_the_reader_does(call: Call, native: Any, picture: Any) -> None:
    pixels = np.asarray(picture)
    found, wanted = call("reader", "recognize", pixels, **BOXES), native.recognize(pixels, **BOXES)
    assert [(text, len(box)) for box, text, _ in found] == [(text, len(box)) for box, text, _ in wanted]
    assert [score for *_, score in found] == pytest.approx([score for *_, score in wanted], rel=1e-3)
    assert len(found) == 2
    # black and white: the order of its colors does not matter
    assert [text for _, text, _ in call("reader", "recognize", picture, **BOXES)] == [text for _, text, _ in found]
    assert repr(call("reader", "detect", pixels)) == repr(native.detect(pixels))
