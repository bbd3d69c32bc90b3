"""Sentences as vectors, batched by Triton: `adapter serve service:Embeddings`. No model is downloaded."""

from __future__ import annotations

import hashlib

import numpy as np

import adapter

DIMENSIONS = 256


@adapter.service(workers=2)
class Embeddings:
    """Hashes words and their letter triples into vectors of length 1; what shares words points the same way."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, float]] = {}

    @adapter.api(batchable=True, max_batch_size=64)
    def embed(self, sentences: list[str]) -> np.ndarray:
        """One vector for each sentence. Requests that arrive at the same time are one batch."""
        vectors = np.zeros((len(sentences), DIMENSIONS), dtype=np.float32)
        for row, sentence in zip(vectors, sentences, strict=True):
            for piece in pieces(sentence):
                place, sign = self.place(piece)
                row[place] += sign
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths == 0, 1, lengths)

    def place(self, piece: str) -> tuple[int, float]:
        if piece not in self.known:
            number = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")
            self.known[piece] = number % DIMENSIONS, 1.0 if number >> 63 else -1.0
        return self.known[piece]


@adapter.service
class Similarity:
    """How alike two sentences are; the vectors come from Triton. `adapter serve service:Similarity`."""

    embeddings = adapter.depends(Embeddings)

    @adapter.api
    async def compare(self, first: str, second: str) -> float:
        a, b = await self.embeddings.to_async.embed([first, second])
        return round(float(a @ b), 6)


def pieces(sentence: str) -> list[str]:
    words = sentence.lower().split()
    return words + [word[i : i + 3] for word in words for i in range(len(word) - 2)]
