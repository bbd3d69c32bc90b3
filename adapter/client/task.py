"""APIs as attributes of a client, and the tasks that some of them begin."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from adapter.client.asynchronous import AsyncHTTPClient


class AsyncAPI:
    """One API of a client: call it, or, where it is a task, `submit` it."""

    def __init__(self, client: AsyncHTTPClient, name: str) -> None:
        self._client = client
        self._name = name

    def __call__(self, *values: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        return self._client.call(self._name, *values, **options)

    async def submit(self, *values: Any, **options: Any) -> AsyncTask:
        """Begin a task with the arguments of the API; NotFound where the API is none."""
        return self.task(await self._client.submit(self._name, *values, **options))

    def task(self, identity: str) -> AsyncTask:
        """The task of this id."""
        return AsyncTask(self._client, self._name, identity)


class AsyncTask:
    """A task on a server; `id` finds it again from anywhere."""

    def __init__(self, client: AsyncHTTPClient, name: str, identity: str) -> None:
        self.id = identity
        self._client = client
        self._name = name

    async def status(self) -> str:
        """How far it is: in_progress, completed, failed or cancelled."""
        return str((await self._client.task(self._name, self.id, "status"))["status"])

    async def get(self) -> Any:
        """What came of it, as calling the API gives it; InvalidArgument while it is not completed."""
        return await self._client.task(self._name, self.id, "get")

    async def wait(self, timeout: float | None = None) -> Any:
        """What came of it, once it is over; DeadlineExceeded after `timeout` seconds."""
        return await self._client.task_result(self._name, self.id, timeout)

    async def cancel(self) -> None:
        """End it; InvalidArgument where it is over."""
        await self._client.task(self._name, self.id, "cancel")

    async def retry(self) -> AsyncTask:
        """Begin it anew, as another task."""
        again = await self._client.task(self._name, self.id, "retry")
        return AsyncTask(self._client, self._name, again["task_id"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self.id!r})"


class Waiting(Protocol):
    """Awaits on the thread of a client."""

    def __call__(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any: ...


class SyncAPI:
    """One API of a client: call it, or, where it is a task, `submit` it."""

    def __init__(self, call: Callable[..., Any], api: AsyncAPI, wait: Waiting) -> None:
        self._call = call
        self._api = api
        self._wait = wait

    def __call__(self, *values: Any, **options: Any) -> Any:
        return self._call(*values, **options)

    def submit(self, *values: Any, **options: Any) -> SyncTask:
        """Begin a task with the arguments of the API; NotFound where the API is none."""
        return SyncTask(self._wait(self._api.submit, *values, **options), self._wait)

    def task(self, identity: str) -> SyncTask:
        """The task of this id."""
        return SyncTask(self._api.task(identity), self._wait)


class SyncTask:
    """A task on a server, as `AsyncTask`; `id` finds it again from anywhere."""

    def __init__(self, task: AsyncTask, wait: Waiting) -> None:
        self.id = task.id
        self._task = task
        self._wait = wait

    def status(self) -> str:
        return str(self._wait(self._task.status))

    def get(self) -> Any:
        return self._wait(self._task.get)

    def wait(self, timeout: float | None = None) -> Any:
        return self._wait(self._task.wait, timeout)

    def cancel(self) -> None:
        self._wait(self._task.cancel)

    def retry(self) -> SyncTask:
        return SyncTask(self._wait(self._task.retry), self._wait)

    def __repr__(self) -> str:
        return repr(self._task).replace("AsyncTask", "SyncTask")
