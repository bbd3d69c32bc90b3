"""Arguments that people give a descriptor by another name."""

from __future__ import annotations

from collections.abc import Mapping

from adapter.exceptions import InvalidArgument


def refuse_arguments(descriptor: type, others: Mapping[str, object], advice: Mapping[str, str]) -> None:
    """Raise for the first argument that the descriptor does not have; `advice` by name is the end of the sentence.

    A name without advice raises TypeError, as it does for any function.
    """
    for name in others:
        if name in advice:
            raise InvalidArgument(f"{descriptor.__name__} has no argument {name!r}: {advice[name]}.")
        raise TypeError(f"{descriptor.__name__} has no argument {name!r}")
