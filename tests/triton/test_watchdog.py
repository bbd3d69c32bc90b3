"""How long the watchdog waits before it starts again what dies; tests/e2e/test_faults.py tries the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapter.triton.watchdog import _AT_ONCE, _LONGEST_PAUSE_S, _SHORTEST_PAUSE_S, _STEADY_S, _Backoff


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
