"""A class-based service inside Triton: the Runnable that makes its object, runs its hooks and calls its methods."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from adapter.dependency import Near, dependencies_of, hooks_of
from adapter.exceptions import RemoteException
from adapter.model import Model
from adapter.runnable import Runnable
from adapter.runner import Runner

CONTEXT = "adapter_context"
STARTUP, SHUTDOWN = "startup", "shutdown"
_READ_BYTES = 256 << 20
_END: Any = object()

logger = logging.getLogger("adapter.runner")


class Hosted(Runnable):
    """One object of the class `__adapter_served__`; its `__init__` and start-up hooks run when this is made.

    The methods beside these are the APIs of the class, whose names never begin with two underscores.
    """

    __adapter_served__: ClassVar[type]
    SUPPORTED_RESOURCES: ClassVar[tuple[str, ...]] = ("nvidia.com/gpu", "cpu")
    SUPPORTS_CPU_MULTI_THREADING: ClassVar[bool] = True

    def __init__(self) -> None:
        self.__adapter_held__ = Held(self.__adapter_served__)

    def __adapter_end__(self) -> None:
        self.__adapter_held__.end()


class Held:
    """An object of a class, and those of the services that it depends on, from start-up to shutdown.

    All that is `async` runs on one event loop, which has a thread of its own.
    """

    def __init__(self, cls: type) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="async-methods", daemon=True).start()
        self.state: dict[str, Any] = {}
        self._made: dict[type, Any] = {}
        self._local: list[Runner] = []
        self.instance = self._make(cls)

    def _make(self, cls: type) -> Any:
        if cls in self._made:
            return self._made[cls]
        for runner in runners_of(cls):
            if not runner.running:
                runner.init_local(quiet=True)
                self._local.append(runner)
        near = {name: Near(self._make(used.cls), self.loop) for name, used in dependencies_of(cls).items()}
        instance = made(cls, near)
        self._made[cls] = instance
        for name in hooks_of(cls, STARTUP):
            self.wait(getattr(instance, name)())
        return instance

    def wait(self, value: Any) -> Any:
        """A result, waited for where it is one of an `async def` method."""
        return self.begun(_awaited(value)).result() if inspect.isawaitable(value) else value

    def begun(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def end(self) -> None:
        """Run every shutdown hook, also after one that failed."""
        for cls, instance in reversed(self._made.items()):
            for name in hooks_of(cls, SHUTDOWN):
                try:
                    self.wait(getattr(instance, name)())
                except Exception:
                    logger.exception("The shutdown hook %s failed.", name)
        for runner in self._local:
            runner.destroy()
        self.begun(self.loop.shutdown_asyncgens()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)


def runners_of(cls: type) -> list[Runner]:
    """The runners that are attributes of a class, those of its parents that it does not hide included."""
    found: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        found |= vars(parent)
    return [value for value in found.values() if isinstance(value, Runner)]


def local_runner(model: Model | None, name: str, cls: type[Runnable], init_params: Mapping[str, Any]) -> Runner:
    """A runner that a hosted class has as an attribute, as it is inside Triton: it runs in the same process."""
    return Runner(cls, runnable_init_params=init_params, name=name) if model is None else model.to_runner(name=name)


def made(cls: type, attributes: Mapping[str, Any]) -> Any:
    """An object with some attributes that its `__init__` finds already."""
    maker: Any = cls
    instance = maker.__new__(cls)
    for name, value in attributes.items():
        vars(instance)[name] = value  # what stands in the class answers for what is not here
    instance.__init__()
    return instance


async def _awaited(value: Any) -> Any:
    try:
        return await value
    except (SystemExit, KeyboardInterrupt) as error:  # it would end the event loop, and every later call would wait
        raise _Left(f"{type(error).__name__}: {error}") from error


class _Left(Exception):
    """An `async def` method has tried to end the process."""


@dataclass(frozen=True)
class Shape:
    """How a method of a hosted class is called: the name of its Context, and what of it are files."""

    name: str
    context: str | None = None
    paths: tuple[str, ...] = ()
    returns_path: bool = False

    @property
    def plain(self) -> bool:
        return self.context is None and not self.paths and not self.returns_path


def method(shape: Shape) -> Callable[..., Any]:
    """The served method of a Hosted class for a method of the class that it holds."""
    if shape.plain:

        def call(self: Hosted, *args: Any, **kwargs: Any) -> Any:
            held = self.__adapter_held__
            return held.wait(getattr(held.instance, shape.name)(*args, **kwargs))

        return call

    def complete(self: Hosted, *args: Any, **kwargs: Any) -> Any:
        held = self.__adapter_held__
        with _around(held, shape, kwargs) as context:
            value = held.wait(getattr(held.instance, shape.name)(*_with_files(shape, context, args), **kwargs))
            answer = {"value": file_of(value) if shape.returns_path else value}
            return answer if shape.context is None else {**answer, "response": context.response.record()}

    return complete


def stream(shape: Shape, *, asynchronous: bool) -> Callable[..., Any]:
    """The same of a method that is a generator."""
    if asynchronous:

        async def pieces(self: Hosted, *args: Any, **kwargs: Any) -> Any:
            held = self.__adapter_held__
            with _around(held, shape, kwargs) as context:
                given = _with_files(shape, context, args)
                values = getattr(held.instance, shape.name)(*given, **kwargs)
                async with contextlib.aclosing(_relayed(held, values)) as relayed:
                    async for piece in relayed:
                        yield piece

        return pieces

    def steps(self: Hosted, *args: Any, **kwargs: Any) -> Iterator[Any]:
        held = self.__adapter_held__
        with _around(held, shape, kwargs) as context:
            yield from getattr(held.instance, shape.name)(*_with_files(shape, context, args), **kwargs)

    return steps


async def _relayed(held: Held, values: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """What a generator of the class gives, stepped on the loop of its object."""
    # a function of its own: what `stream` makes travels by value, and would have another `_END`
    try:
        while (piece := await asyncio.wrap_future(held.begun(_step(values)))) is not _END:
            yield piece
    finally:
        await asyncio.wrap_future(held.begun(_close(values)))


async def _step(values: AsyncGenerator[Any, None]) -> Any:
    return await _awaited(anext(values, _END))


async def _close(values: AsyncGenerator[Any, None]) -> None:
    while getattr(values, "ag_running", False):  # a step that has been cancelled, and is not over yet
        await asyncio.sleep(0.001)
    await values.aclose()


@contextlib.contextmanager
def _around(held: Held, shape: Shape, kwargs: dict[str, Any]) -> Iterator[HostedContext]:
    """The Context of a call, put among its arguments where the method takes it; its folder goes with it."""
    context = HostedContext(held.state, HostedRequest(**(kwargs.pop(CONTEXT, None) or {})))
    try:
        if shape.context is not None:
            kwargs[shape.context] = context
        for name in shape.paths:
            if name in kwargs:
                kwargs[name] = _paths(kwargs[name], context)
        yield context
    finally:
        context.close()


def _with_files(shape: Shape, context: HostedContext, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_paths(value, context) for value in args) if shape.paths else args


def _paths(value: Any, context: HostedContext) -> Any:
    """Files that travelled as their bytes, as files."""
    if isinstance(value, list):
        return [_paths(item, context) for item in value]
    return written(value, context.temp_dir) if is_file(value) else value


def is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"adapter_file", "data"}


def file_of(value: Any) -> Any:
    """A file as it travels: its name and its bytes."""
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value)
    try:
        if path.stat().st_size > _READ_BYTES:
            raise RemoteException(f"The file {path.name} is too large to leave Triton: {path.stat().st_size} bytes.")
        return {"adapter_file": path.name, "data": path.read_bytes()}
    except OSError as error:
        raise RemoteException(f"The result is the path of no file that can be read: {error}.") from error


def written(file: Mapping[str, Any], folder: str) -> Path:
    """A file that travelled, in a folder of its own below `folder`."""
    path = Path(tempfile.mkdtemp(dir=folder)) / (Path(file["adapter_file"]).name or "file")
    path.write_bytes(file["data"])
    return path


# ---- the Context ----------------------------------------------------------------------------------------------------


class Headers(dict[str, str]):
    """Headers, found in any case."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        super().__init__({key.lower(): value for key, value in (values or {}).items()})

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())

    def __setitem__(self, key: str, value: str) -> None:
        super().__setitem__(key.lower(), value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(str(key).lower())

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)


@dataclass
class HostedRequest:
    """What came with a request, for a method inside Triton."""

    method: str = ""
    url: str = ""
    headers: Any = field(default_factory=dict)
    query_params: dict[str, str] = field(default_factory=dict)
    path_params: dict[str, Any] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.headers = Headers(self.headers)

    @property
    def metadata(self) -> Headers:
        return self.headers  # type: ignore[no-any-return]  # made so above


class HostedResponse:
    """What goes out beside the result of a method inside Triton."""

    def __init__(self) -> None:
        self.status_code = 200
        self.headers = Headers()
        self.cookies: list[dict[str, Any]] = []

    @property
    def metadata(self) -> Headers:
        return self.headers

    def set_cookie(self, key: str, value: str = "", **options: Any) -> None:
        """Add a cookie; the arguments are those of `adapter.Cookie`."""
        self.cookies.append({"key": key, "value": value, **options})

    def record(self) -> dict[str, Any]:
        return {"status_code": self.status_code, "headers": dict(self.headers), "cookies": self.cookies}


class HostedContext:
    """What a method inside Triton gets as its Context: the same as in a front, as far as it can travel.

    `state` is the dict of this process, `temp_dir` a folder of this call.
    """

    def __init__(self, state: dict[str, Any], request: HostedRequest) -> None:
        self.state = state
        self.request = request
        self.response = HostedResponse()
        self._temp_dir: str | None = None

    @property
    def temp_dir(self) -> str:
        if self._temp_dir is None:
            self._temp_dir = tempfile.mkdtemp(prefix="adapter-call-")
        return self._temp_dir

    def close(self) -> None:
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)


def context_class() -> type:
    """What stands for adapter.Context where a class is read inside Triton."""
    return HostedContext
