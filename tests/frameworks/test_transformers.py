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
import transformers
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from adapter import models
from adapter.exceptions import InvalidArgument
from adapter.frameworks import transformers as framework

Call = Callable[..., Any]
BATCHABLE: dict[str, dict[str, Any]] = {"__call__": {"batchable": True}}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "grün", "\N{SNOWMAN}"]
TEXTS = ["a good film", "bad", "a \N{SNOWMAN} film grün unheard", "film"]
BLACK, WHITE = (Image.new("RGB", (20, 12), color) for color in ("black", "white"))


def tokenizer(**options: Any) -> Any:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]", **options}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **given)


def moods(**options: Any) -> Any:
    """A text classifier with random weights."""
    torch.manual_seed(0)
    labels = {0: "sad", 1: "glad", 2: "mad"}
    sizes = {"vocab_size": len(WORDS), "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    config = DistilBertConfig(max_position_embeddings=16, id2label=labels, **sizes)
    model = DistilBertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer(), **options)


def pictures() -> Any:
    torch.manual_seed(1)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)).eval()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return transformers.pipeline("image-classification", model=model, image_processor=processor)


def writer() -> Any:
    torch.manual_seed(2)
    sizes = {"vocab_size": len(WORDS), "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(bos_token_id=2, eos_token_id=3, **sizes)
    return GPT2LMHeadModel(config).eval()


class Loud(transformers.TextClassificationPipeline):
    """A pipeline of a person's own, for a task that the library does not know."""

    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        return [{**found, "label": found["label"].upper()} for found in super().postprocess(*args, **kwargs)]


def loud() -> Any:
    of = moods()
    return Loud(model=of.model, tokenizer=of.tokenizer, task="shout", top_k=None)


@pytest.fixture(scope="module")
def call(adapter_home: Path, serve_models: Callable[..., Call]) -> Call:
    framework.save_model("moods", moods(), signatures=BATCHABLE)
    framework.save_model("pictures", pictures(), signatures=BATCHABLE)
    framework.save_model("writer", writer())
    framework.save_model("tokens", tokenizer(), signatures={"__call__": {}})
    framework.save_model("loud", loud(), task_name="cry", external_modules=[sys.modules[__name__]])
    return serve_models(*(models.get(name) for name in ("moods", "pictures", "writer", "tokens", "loud")))


def alike(found: Any, wanted: Any) -> None:
    assert [f["label"] for f in found] == [w["label"] for w in wanted]
    assert [f["score"] for f in found] == pytest.approx([w["score"] for w in wanted], abs=1e-5)


def test_save_model_when_it_is_a_pipeline() -> None:
    info = framework.save_model("plain", moods(), labels={"of": "moods"}).info
    assert (info.module, info.options["task"], info.options["class"]) == (
        "adapter.transformers",
        "text-classification",
        "TextClassificationPipeline",
    )
    assert {"torch", "transformers"} <= set(info.context["framework_versions"])
    assert [p.name for p in info.signatures["__call__"].parameters or ()] == ["inputs", "kwargs"]
    loaded = framework.load_model("plain", device="cpu")
    alike(loaded(TEXTS), moods()(TEXTS))
    assert not loaded.model.training


def test_save_model_when_its_weights_are_of_half_precision() -> None:
    framework.save_model("half", writer().to(torch.bfloat16))
    assert framework.load_model("half").dtype == torch.bfloat16
    assert framework.load_model("half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(("wrong", "said"), [(3, "not a int"), (GPT2LMHeadModel, "the class GPT2LMHeadModel itself")])
def test_save_model_when_it_is_nothing_of_transformers(wrong: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        framework.save_model("wrong", wrong)


def test_import_model_when_it_lies_in_a_folder(tmp_path: Path) -> None:
    moods().save_pretrained(tmp_path)
    saved = framework.import_model("imported", str(tmp_path), task="text-classification", signatures=BATCHABLE)
    assert saved.info.signatures["__call__"].batchable
    alike(framework.load_model("imported")(TEXTS), moods()(TEXTS))


@pytest.mark.parametrize(
    ("task", "source"), [("text-classification", "/no/such/folder"), (None, "."), ("sing", "no/model")]
)
def test_import_model_when_there_is_none(task: Any, source: str) -> None:
    with pytest.raises(InvalidArgument, match=r"No pipeline can be made of .*`task=`"):
        framework.import_model("wrong", source, task=task)


def test_load_model_when_another_process_made_the_class(tmp_path: Path) -> None:
    moods().save_pretrained(tmp_path)
    code = (
        "import sys, adapter, transformers\n"
        "class Quiet(transformers.TextClassificationPipeline):\n"
        "    def postprocess(self, *args, **kwargs):\n"
        "        return super().postprocess(*args, **kwargs)['label']\n"
        "of = transformers.pipeline('text-classification', model=sys.argv[1])\n"
        "adapter.transformers.save_model('quiet', Quiet(model=of.model, tokenizer=of.tokenizer, task='whisper'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert framework.load_model("quiet")("bad") == [moods()("bad")[0]["label"]]


def test_call_when_it_classifies_texts(call: Call) -> None:
    alike(call("moods", "__call__", TEXTS), moods()(TEXTS))
    alike(call("moods", "__call__", "bad"), moods()("bad"))
    assert call("moods", "__call__", TEXTS[:1] * 40) == call("moods", "__call__", TEXTS[:1] * 40)
    found = call("moods", "__call__", TEXTS, top_k=2)
    assert [len(each) for each in found] == [2] * 4


def test_call_when_it_classifies_pictures(call: Call) -> None:
    found, wanted = call("pictures", "__call__", [BLACK, WHITE]), pictures()([BLACK, WHITE])
    for mine, theirs in zip(found, wanted, strict=True):
        alike(mine, theirs)


def test_call_when_it_is_a_model(call: Call) -> None:
    ids = np.array([[5, 6, 8], [5, 7, 8]])
    with torch.inference_mode():
        wanted = writer()(torch.from_numpy(ids)).logits
    torch.testing.assert_close(call("writer", "__call__", input_ids=ids)["logits"], wanted, rtol=1e-4, atol=1e-5)
    found = call("writer", "generate", ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(
        found, writer().generate(torch.from_numpy(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    )


def test_call_when_it_is_a_tokenizer(call: Call) -> None:
    assert call("tokens", "__call__", TEXTS[:2], padding=True)["input_ids"] == [[5, 6, 8], [7, 0, 0]]
    assert torch.equal(call("tokens", "__call__", "bad", return_tensors="pt")["input_ids"], torch.tensor([[7]]))


def test_save_model_when_it_is_a_tokenizer() -> None:
    runner = framework.save_model("words", tokenizer()).to_runner()
    runner.init_local(quiet=True)
    try:
        assert runner.decode.run([5, 6]) == "a good"
        assert runner.batch_decode.run([[5], [6, 8]]) == ["a", "good film"]
    finally:
        runner.destroy()


def test_call_when_the_pipeline_is_of_a_persons_own(call: Call) -> None:
    """Its class, its task, and the options that it was made with stay what they were."""
    assert models.get("loud").info.options["task"] == "cry"
    (found,), (wanted,) = call("loud", "__call__", ["a good film"]), moods(top_k=None)(["a good film"])
    alike(found, [{**each, "label": each["label"].upper()} for each in wanted])
    assert len(found) == 3
