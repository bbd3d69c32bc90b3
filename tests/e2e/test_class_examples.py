"""The examples of class-based services, each served by its one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from adapter.client import SyncHTTPClient
from tests.e2e.conftest import ROOT, Serve
from tests.e2e.test_docs import blocks

EXAMPLES = ROOT / "examples"


def test_notes_are_kept_in_the_file_by_every_worker(serve: Serve, tmp_path: Path) -> None:
    served = serve("service:Notes", working_dir=EXAMPLES / "notes", env={"NOTES_FILE": str(tmp_path / "notes.db")})
    assert [served.post("/add", json={"text": text}).json() for text in ("Buy milk", "Milk the cow")] == [1, 2]
    assert served.post("/find", json={"word": "milk"}).json() == ["Milk the cow", "Buy milk"]
    assert served.stop() == 0
    again = serve("service:Notes", working_dir=EXAMPLES / "notes", env={"NOTES_FILE": str(tmp_path / "notes.db")})
    assert again.post("/find", json={"word": "cow", "limit": 1}).json() == ["Milk the cow"]


def test_embeddings_are_batched_on_triton_and_used_by_another_class(serve: Serve) -> None:
    served = serve("service:Similarity", working_dir=EXAMPLES / "embeddings")
    with SyncHTTPClient.from_url(served.url) as client:
        assert client.compare("a red car", "a red car") == 1.0
        near, far = client.compare("a red car", "the red cars"), client.compare("a red car", "boiled eggs")
        assert near > far
    assert "serves similarity.embeddings" in served.log
    alone = serve("service:Embeddings", "--api-workers", "1", working_dir=EXAMPLES / "embeddings")
    with SyncHTTPClient.from_url(alone.url) as client:
        vectors = client.embed(["one", "two", ""])
        assert vectors.shape == (3, 256)
        assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0])


def test_tokens_come_one_by_one(serve: Serve) -> None:
    served = serve("service:Tokens", working_dir=EXAMPLES / "tokens")
    with SyncHTTPClient.from_url(served.url) as client:
        assert list(client.repeat("one two three", pause=0)) == ["one ", "two ", "three "]
        assert client.count.submit("a b a", pause=0).wait(20) == {"a": 2, "b": 1}


def test_page_about_classes_runs_as_it_stands(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(blocks("class-services.md")[0])
    served = serve("service:Greetings", "--api-workers", "1", working_dir=tmp_path)
    assert served.post("/greet", content=json.dumps({"name": "you"})).text == "hello you"
