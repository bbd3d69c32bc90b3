"""Blocks and functions that a metric measures; each can go with a Runnable into Triton, as the metrics can."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class Measured:
    """Stands around a `with` block, or each call of a function that it decorates: plain, async or a generator.

    To make one, override `begin` and `end`. One object may stand around any number of calls at once.
    """

    def begin(self) -> Any:
        """Note that a block begins; what is returned is passed to `end`."""

    def end(self, begun: Any, error: BaseException | None) -> None:
        """Note that a block has ended, with an error or without."""

    def __enter__(self) -> Measured:
        # a `with` statement has an object of its own; the calls of a function have a block of their own
        self._begun = self.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(self._begun, error)

    def __call__(self, function: F) -> F:
        around = self._around

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with around():
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with around():
                return await function(*args, **kwargs)

        @functools.wraps(function)
        def generated(*args: Any, **kwargs: Any) -> Any:
            with around():
                return (yield from function(*args, **kwargs))

        @functools.wraps(function)
        async def streamed(*args: Any, **kwargs: Any) -> Any:
            with around():
                async with contextlib.aclosing(function(*args, **kwargs)) as items:
                    async for item in items:
                        yield item

        found: Callable[..., Any] = called
        if inspect.iscoroutinefunction(function):
            found = awaited
        elif inspect.isgeneratorfunction(function):
            found = generated
        elif inspect.isasyncgenfunction(function):
            found = streamed
        return cast(F, found)

    @contextlib.contextmanager
    def _around(self) -> Any:
        begun = self.begin()
        try:
            yield
        except BaseException as error:
            self.end(begun, error)
            raise
        self.end(begun, None)


class Timed(Measured):
    """Tells the seconds that a block took."""

    def __init__(self, tell: Callable[[float], object]) -> None:
        self._tell = tell

    def begin(self) -> float:
        return time.perf_counter()

    def end(self, begun: float, error: BaseException | None) -> None:
        self._tell(max(0.0, time.perf_counter() - begun))


class InProgress(Measured):
    """Counts up when a block begins, and down when it ends."""

    def __init__(self, up: Callable[[], object], down: Callable[[], object]) -> None:
        self._up, self._down = up, down

    def begin(self) -> None:
        self._up()

    def end(self, begun: None, error: BaseException | None) -> None:
        self._down()


class Failures(Measured):
    """Counts the errors of some kinds that leave a block."""

    def __init__(
        self, count: Callable[[], object], kinds: type[BaseException] | tuple[type[BaseException], ...]
    ) -> None:
        self._count, self._kinds = count, kinds

    def end(self, begun: None, error: BaseException | None) -> None:
        if isinstance(error, self._kinds):
            self._count()
