"""Runnables that tell what batches they are called with."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

import adapter

PAIRS = ("float32", (-1, 2))
HOLD_S = 0.02  # of one batch, so that others gather meanwhile


class Slow(adapter.Runnable):
    """Each row comes back with the number of rows that it was called with."""

    @adapter.Runnable.method(batchable=True, input_spec=PAIRS, output_spec=[PAIRS, ("int64", (-1,))])
    def twice(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return 2 * x, np.full(len(x), len(x))


class Ragged(adapter.Runnable):
    """The same for rows of any length."""

    @adapter.Runnable.method(batchable=True, input_spec=("float32", (-1, -1)), output_spec=("float32", (-1,)))
    def total(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return x.sum(axis=1)


class Sideways(adapter.Runnable):
    """The batch is the second axis of what comes, and the first of what goes."""

    @adapter.Runnable.method(
        batchable=True, batch_dim=(1, 0), input_spec=("float32", (3, -1)), output_spec=("float32", (-1, 2))
    )
    def typed(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return np.stack([x.sum(axis=0), np.full(x.shape[1], x.shape[1])], axis=1)


class Anything(adapter.Runnable):
    """Values that are no typed tensors; each item comes back with the type of the batch and its length."""

    @adapter.Runnable.method(batchable=True)
    def told(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        items = [row for _, row in x.iterrows()] if hasattr(x, "iterrows") else list(x)
        return [(type(x).__name__, len(items), _described(item)) for item in items]

    @adapter.Runnable.method(batchable=True)
    def same(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return x

    @adapter.Runnable.method(batchable=True)
    def alone(self, x: Any) -> Any:
        """For what has no batch axis."""
        return type(x).__name__, x if isinstance(x, (str, dict, int)) else None

    @adapter.Runnable.method(batchable=True, batch_dim=(1, 0))
    def columns(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return [(float(column.sum()), x.shape[1]) for column in x.T]

    @adapter.Runnable.method(batchable=True)
    def short(self, x: Any) -> Any:
        time.sleep(HOLD_S)
        return x[:-1]


def _described(item: Any) -> Any:
    if hasattr(item, "getpixel"):
        return item.mode, item.size
    return item.tolist() if hasattr(item, "tolist") else item


class Shared(adapter.Runnable):
    """Two methods of one object."""

    def __init__(self) -> None:
        self.sum = 0

    @adapter.Runnable.method
    def add(self, number: int) -> int:
        self.sum += number
        return self.sum

    @adapter.Runnable.method(batchable=True)
    def asked(self, x: Any) -> Any:
        return [(self.sum, os.getpid())] * len(x)


slow = adapter.Runner(Slow, max_batch_size=16, cpu=1)
patient = adapter.Runner(Slow, name="patient", max_batch_size=4, max_wait_ms=400, cpu=1)
ragged = adapter.Runner(Ragged, max_batch_size=16, cpu=1)
sideways = adapter.Runner(Sideways, max_batch_size=16, cpu=1)
anything = adapter.Runner(Anything, max_batch_size=8, cpu=1)
shared = adapter.Runner(Shared, cpu=1)

svc = adapter.Service("batching", runners=[slow, patient, ragged, sideways, anything, shared])
