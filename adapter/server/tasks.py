"""Tasks: requests to an API that are kept in a file, worked on by whichever worker is free, and asked about later.

A worker takes one task after another from the file, which all workers of a deployment share. Of a worker that has died
the others learn by its lock file, and put its tasks back: a task runs at least once, and fails when it has cost three
workers their life.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.exceptions import InvalidArgument, NotFound, ServiceUnavailable
from adapter.io.base import accept
from adapter.services import API
from adapter.triton.request import deadline, request_id

T = TypeVar("T")

VERBS: Mapping[str, str] = {"submit": "POST", "status": "GET", "get": "GET", "cancel": "PUT", "retry": "POST"}
MOST_ATTEMPTS = 3
_MOST_AT_A_TIME = 64  # of `async def` methods, in one worker
_POLL_S = 1.0
_PATIENCE_S = 5.0  # for tasks that run when the worker is told to end
_KEPT_S = 24 * 3600.0  # what has become of a task
_BUSY_S = 10.0  # how long another worker may hold the file

logger = logging.getLogger("adapter.server")

_TABLE = """
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, api TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, begun REAL, ended REAL,
    owner TEXT, attempts INTEGER NOT NULL DEFAULT 0, request TEXT NOT NULL, body BLOB NOT NULL,
    status INTEGER, headers TEXT, answer BLOB
);
CREATE INDEX IF NOT EXISTS waiting ON tasks (state, created);
"""
_BRIEF, _REQUEST, _ANSWER = ("state", "created", "begun"), ("request", "body"), ("state", "status", "headers", "answer")
_STATUS = {"queued": "in_progress", "running": "in_progress"}


@dataclass(frozen=True)
class Task:
    """One request that is worked on: the headers and the query of its request as JSON, and its body."""

    id: str
    api: str
    request: str
    body: bytes


class TaskFile:
    """The tasks of a deployment in one SQLite file; every method is one transaction."""

    def __init__(self, folder: Path) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = folder
        self._lock = (folder / f"{self.owner}.worker").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._db = sqlite3.connect(folder / "tasks.db", timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLE)

    def close(self) -> None:
        self._db.close()
        self._lock.close()
        (self._folder / f"{self.owner}.worker").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add(self, api: str, request: str, body: bytes) -> str:
        """Keep a task; returns its id."""
        identity = uuid.uuid4().hex
        self._db.execute(
            "INSERT INTO tasks (id, api, state, created, request, body) VALUES (?, ?, 'queued', ?, ?, ?)",
            (identity, api, time.time(), request, body),
        )
        return identity

    def take(self, apis: Sequence[str]) -> Task | None:
        """Take the oldest task of these APIs that waits; None where there is none."""
        marks = ", ".join("?" * len(apis))
        with self._transaction() as db:
            row = db.execute(
                f"SELECT id, api, request, body FROM tasks WHERE state = 'queued' AND api IN ({marks}) "
                "ORDER BY created LIMIT 1",
                tuple(apis),
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE tasks SET state = 'running', owner = ?, begun = ?, attempts = attempts + 1 WHERE id = ?",
                (self.owner, time.time(), row[0]),
            )
        return Task(*row)

    def finish(self, identity: str, status: int, headers: str, answer: bytes) -> None:
        """Keep what came of a task of this worker, unless it has been cancelled meanwhile."""
        self._db.execute(
            "UPDATE tasks SET state = ?, ended = ?, status = ?, headers = ?, answer = ? "
            "WHERE id = ? AND owner = ? AND state = 'running'",
            ("completed" if status < 400 else "failed", time.time(), status, headers, answer, identity, self.owner),
        )

    def give_back(self, identity: str) -> None:
        """Let another worker take a task that this one cannot end."""
        self._db.execute(
            "UPDATE tasks SET state = 'queued', owner = NULL, attempts = attempts - 1 "
            "WHERE id = ? AND owner = ? AND state = 'running'",
            (identity, self.owner),
        )

    def cancel(self, identity: str) -> bool:
        """End a task; False where it is over already."""
        changed = self._db.execute(
            "UPDATE tasks SET state = 'cancelled', ended = ? WHERE id = ? AND state IN ('queued', 'running')",
            (time.time(), identity),
        )
        return changed.rowcount > 0

    def cancelled(self) -> set[str]:
        """The tasks of this worker that somebody has cancelled."""
        rows = self._db.execute("SELECT id FROM tasks WHERE owner = ? AND state = 'cancelled'", (self.owner,))
        return {identity for (identity,) in rows.fetchall()}

    def find(self, identity: str, api: str, columns: Sequence[str] = _BRIEF) -> dict[str, Any] | None:
        """What is known of a task of an API."""
        query = f"SELECT {', '.join(columns)} FROM tasks WHERE id = ? AND api = ?"
        row = self._db.execute(query, (identity, api)).fetchone()
        return None if row is None else dict(zip(columns, row, strict=True))

    def tidy(self) -> None:
        """Put back the tasks of workers that have died, and forget what is long over."""
        rows = self._db.execute(
            "SELECT DISTINCT owner FROM tasks WHERE state = 'running' AND owner != ?", (self.owner,)
        )
        for (owner,) in rows.fetchall():
            if self._lives(owner):
                continue
            sentence = f"The worker of this task died {MOST_ATTEMPTS} times while it ran; it is not tried again."
            with self._transaction() as db:
                db.execute(
                    "UPDATE tasks SET state = 'failed', ended = ?, status = 500, headers = ?, answer = ? "
                    "WHERE owner = ? AND state = 'running' AND attempts >= ?",
                    (time.time(), _JSON, json.dumps({"error": sentence}).encode(), owner, MOST_ATTEMPTS),
                )
                db.execute(
                    "UPDATE tasks SET state = 'queued', owner = NULL WHERE owner = ? AND state = 'running'", (owner,)
                )
        self._db.execute("DELETE FROM tasks WHERE ended < ?", (time.time() - _KEPT_S,))

    def _lives(self, owner: str) -> bool:
        try:
            with (self._folder / f"{owner}.worker").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        (self._folder / f"{owner}.worker").unlink(missing_ok=True)
        return False


_JSON = json.dumps([["content-type", "application/json"]])


class Tasks:
    """The tasks of one worker: it takes those that wait, as many at a time as it has room for."""

    def __init__(self, endpoints: Mapping[str, ASGIApp], apis: Mapping[str, API], threads: int) -> None:
        """`endpoints` run the tasks of `apis`, by name; `threads` is how many plain methods run at a time."""
        self._endpoints = endpoints
        self._apis = apis
        self._room = {True: _MOST_AT_A_TIME, False: threads}  # by whether the method is an `async def`
        self._running: dict[str, asyncio.Task[None]] = {}
        self._apis_running: dict[str, str] = {}
        self._file: TaskFile | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    async def start(self, folder: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tasks")
        self._file = await self._act(lambda: TaskFile(folder))
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Wait a little for tasks that run, and leave those that go on to another worker."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._running:
            await asyncio.wait(self._running.values(), timeout=_PATIENCE_S)
        left = dict(self._running)
        for identity, task in left.items():
            task.cancel()
            await self._act(lambda identity=identity: self._open.give_back(identity))  # type: ignore[misc]  # a default
        if self._file is not None and self._thread is not None:
            await self._act(self._file.close)
            self._thread.shutdown()
            self._file = None

    @property
    def _open(self) -> TaskFile:
        if self._file is None:
            raise ServiceUnavailable("This worker is starting or ending; try again.")
        return self._file

    async def _act(self, act: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    # ---- what routes ask ------------------------------------------------------------------------------------------

    async def submit(self, api: str, request: Request) -> str:
        """Keep a request as a task; InvalidArgument where its body is none of the API."""
        body = await request.body()
        await self._apis[api].input.from_http_request(Request(request.scope, _receive(body)))
        kept = [[k.decode("latin-1"), v.decode("latin-1")] for k, v in request.scope["headers"]]
        record = json.dumps({"headers": kept, "query": request.scope.get("query_string", b"").decode("latin-1")})
        identity = await self._act(lambda: self._open.add(api, record, body))
        self._woken.set()
        return identity

    async def find(self, api: str, identity: str, columns: Sequence[str] = _BRIEF) -> dict[str, Any]:
        if not identity:
            raise InvalidArgument("task_id is required: write for example ?task_id=….")
        found = await self._act(lambda: self._open.find(identity, api, columns))
        if found is None:
            raise NotFound(f"There is no task {identity[:80]!r} of {api}.")
        return found

    async def cancel(self, api: str, identity: str) -> None:
        found = await self.find(api, identity)
        if not await self._act(lambda: self._open.cancel(identity)):
            raise InvalidArgument(f"The task {identity} is {found['state']} already, so it cannot be cancelled.")
        if (running := self._running.get(identity)) is not None:
            running.cancel()

    async def retry(self, api: str, identity: str) -> str:
        """Begin a task anew, as another one."""
        found = await self.find(api, identity, _REQUEST)
        again = await self._act(lambda: self._open.add(api, found["request"], found["body"]))
        self._woken.set()
        return again

    # ---- the work ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                await self._act(self._open.tidy)
                for identity in await self._act(self._open.cancelled):
                    if (running := self._running.get(identity)) is not None:
                        running.cancel()
                while (free := self._free()) and (task := await self._take(free)) is not None:
                    self._begin(task)
            except sqlite3.Error:
                logger.exception("The file of tasks cannot be used now.")
            self._woken.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _POLL_S)

    async def _take(self, apis: Sequence[str]) -> Task | None:
        return await self._act(lambda: self._open.take(apis))

    def _free(self) -> list[str]:
        """The APIs of which this worker has room for one more task."""
        busy = dict.fromkeys(self._room, 0)
        for api in self._apis_running.values():
            busy[self._apis[api].is_async] += 1
        return [name for name, api in self._apis.items() if busy[api.is_async] < self._room[api.is_async]]

    def _begin(self, task: Task) -> None:
        self._apis_running[task.id] = task.api
        running = self._running[task.id] = asyncio.create_task(self._run(task))

        def over(_: asyncio.Task[None]) -> None:  # also of one that is cancelled before its first step
            self._running.pop(task.id, None)
            self._apis_running.pop(task.id, None)
            self._woken.set()

        running.add_done_callback(over)

    async def _run(self, task: Task) -> None:
        request_id.set(task.id)
        deadline.set(None)
        record = json.loads(task.request)
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in record["headers"]]
        accept.set(next((v.decode("latin-1") for k, v in headers if k == b"accept" and v != b"*/*"), ""))
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": self._apis[task.api].route,
            "query_string": record["query"].encode("latin-1"),
            "headers": headers,
            "path_params": {},
        }
        answer = _Answer()
        try:
            await self._endpoints[task.api](scope, _receive(task.body), answer.send)
            kept = json.dumps([[k.decode("latin-1"), v.decode("latin-1")] for k, v in answer.headers])
            await self._keep_answer(task, answer.status, kept, b"".join(answer.body))
        except Exception:
            logger.exception("The task %s could not be ended.", task.id)

    async def _keep_answer(self, task: Task, status: int, headers: str, answer: bytes) -> None:
        while True:
            finish = functools.partial(self._open.finish, task.id, status, headers, answer)
            try:
                return await self._act(finish)
            except (sqlite3.DataError, OverflowError):  # SQLite holds a gigabyte at most
                sentence = f"The answer of this task is too large to be kept: {len(answer)} bytes."
                logger.error("task %s: %s", task.id, sentence)
                status, headers, answer = 500, _JSON, json.dumps({"error": sentence}).encode()
            except sqlite3.OperationalError:  # somebody holds the file, or the disk is full
                logger.exception("The answer of the task %s cannot be kept now; it is tried again.", task.id)
                await asyncio.sleep(_POLL_S)


class _Answer:
    """What an endpoint answers, kept."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body.append(bytes(message.get("body", b"")))


def _receive(body: bytes) -> Receive:
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:  # a task has no client that could go away
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


class TaskRoute:
    """One route of a task: what `verb` asks about the tasks of one API."""

    def __init__(self, tasks: Tasks, api: API, verb: str) -> None:
        self.api = api
        self._tasks = tasks
        self._verb = verb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        expected = VERBS[self._verb]
        if scope["method"] != expected:
            text = f"{scope['path']} does not answer {scope['method']}: send it a {expected}."
            response: Response = JSONResponse({"error": text}, 405, {"allow": expected})
        else:
            try:
                response = await self._answer(Request(scope, receive))
            except sqlite3.OperationalError as error:
                logger.exception("The file of tasks cannot be used now.")
                raise ServiceUnavailable("The file of tasks cannot be used now; try again.") from error
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        name, identity = self.api.name, request.query_params.get("task_id", "")
        if self._verb in ("submit", "retry"):
            begun = self._tasks.submit(name, request) if self._verb == "submit" else self._tasks.retry(name, identity)
            return JSONResponse({"task_id": await begun, "status": "in_progress"})
        if self._verb == "cancel":
            await self._tasks.cancel(name, identity)
            return JSONResponse({"task_id": identity, "status": "cancelled"})
        if self._verb == "status":
            found = await self._tasks.find(name, identity)
            return JSONResponse(
                {
                    "task_id": identity,
                    "status": _STATUS.get(found["state"], found["state"]),
                    "created_at": _time(found["created"]),
                    "executed_at": _time(found["begun"]),
                }
            )
        found = await self._tasks.find(name, identity, _ANSWER)
        if found["state"] not in ("completed", "failed"):
            state = "cancelled" if found["state"] == "cancelled" else "not completed yet"
            raise InvalidArgument(f"task {identity} is {state}")
        response = Response(found["answer"], found["status"])
        sent = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in json.loads(found["headers"])]
        response.raw_headers[:] = [(k, v) for k, v in sent if k != b"content-length"]
        response.headers["content-length"] = str(len(found["answer"]))
        return response


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def routes(tasks: Tasks, apis: Mapping[str, API]) -> dict[str, TaskRoute]:
    """The routes of all tasks by their path."""
    return {f"{api.route}/{verb}": TaskRoute(tasks, api, verb) for api in apis.values() for verb in VERBS}
