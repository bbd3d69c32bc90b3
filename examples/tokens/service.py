"""An answer that comes word by word: `adapter serve service:Tokens`, then `curl -N`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import adapter


@adapter.service
class Tokens:
    """Says a text again, as slowly as a language model would."""

    @adapter.api
    async def repeat(self, text: str, pause: float = 0.05) -> AsyncIterator[str]:
        for word in text.split():
            yield word + " "
            await asyncio.sleep(pause)

    @adapter.task
    async def count(self, text: str, pause: float = 0.05) -> dict[str, int]:
        """Count the words: as a task, whose caller need not wait."""
        counts: dict[str, int] = {}
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
            await asyncio.sleep(pause)
        return counts
