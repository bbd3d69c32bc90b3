"""How long the watchdog waits, before it starts again what dies and before it ends what was replaced.

tests/e2e/test_faults.py tries the rest.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapter.triton.watchdog import (
    _AT_ONCE,
    _LEFT_S,
    _LONGEST_PAUSE_S,
    _SHORTEST_PAUSE_S,
    _STEADY_S,
    _Backoff,
    _Retired,
)


def test_what_dies_soon_again_and_again_waits_longer_each_time() -> None:
    backoff = _Backoff()
    pauses = [backoff.died(0.1) for _ in range(_AT_ONCE + 8)]
    assert pauses[:_AT_ONCE] == [0.0] * _AT_ONCE
    assert pauses[_AT_ONCE] == _SHORTEST_PAUSE_S
    assert pauses[-1] == _LONGEST_PAUSE_S
    assert pauses == sorted(pauses)


def test_what_lived_long_is_started_again_at_once() -> None:
    backoff = _Backoff()
    for _ in range(20):
        backoff.died(0.1)
    assert backoff.died(_STEADY_S + 1) == 0.0


@given(st.lists(st.none() | st.floats(0, 1000), max_size=60))
def test_what_cannot_be_started_is_never_tried_without_a_pause(lives: list[float | None]) -> None:
    backoff = _Backoff()
    for lived in lives:
        pause = backoff.failed() if lived is None else backoff.died(lived)
        assert 0 <= pause <= _LONGEST_PAUSE_S
        assert lived is not None or pause >= _SHORTEST_PAUSE_S


def test_engine_that_was_replaced_ends_when_its_clients_have_left_and_not_when_one_look_misses_them() -> None:
    no_engine: Any = None
    retired = _Retired(no_engine, until=100.0, port=1)
    assert not retired.is_over(10.0, connected=False)
    assert not retired.is_over(10.1, connected=True)
    assert not retired.is_over(20.0, connected=False)
    assert not retired.is_over(20.0 + _LEFT_S, connected=False)
    assert retired.is_over(20.1 + _LEFT_S, connected=False)


def test_engine_that_was_replaced_ends_when_the_time_of_its_last_call_is_over() -> None:
    no_engine: Any = None
    retired = _Retired(no_engine, until=100.0, port=1)
    assert not retired.is_over(99.0, connected=True)
    assert retired.is_over(100.1, connected=True)
