"""The Runnable that holds an endpoint's service: what runs in the worker process."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.datastructures import Headers

from adapter.endpoint import fetching
from adapter.endpoint.service import Endpoint, Service, endpoints_of
from adapter.endpoint.types import File
from adapter.exceptions import AdapterError, RemoteException, message_of, sentence, status_of
from adapter.runnable import Runnable

LAUNCHED, SET_UP, FAILED = "launched", "set up", "failed"


class Reporter:
    """Tells the server what becomes of the process, by datagrams to a socket in its folder."""

    def __init__(self, address: str) -> None:
        self._address = address

    def say(self, event: str, text: str = "") -> None:
        """Send one event; nothing happens where the server has gone."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(
                    json.dumps({"event": event, "pid": os.getpid(), "text": text[:8192]}).encode(), self._address
                )
            except OSError:
                return


class Answerer:
    """Answers the calls of a service: makes the arguments, calls the method, and writes what it returns as JSON."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._endpoints = {endpoint.method: endpoint for endpoint in endpoints_of(service)}
        self._loop: asyncio.AbstractEventLoop | None = None

    def answer(self, name: str, body: Any) -> dict[str, Any]:
        """The output of a method as JSON and its milliseconds, or the status and detail of an HTTPException.

        `body` is the JSON of a request, or the fields of a form. An adapter error that the method raises keeps its
        status.
        """
        endpoint = self._endpoints[name]
        arguments = _fields(body) if endpoint.input is None else _arguments(endpoint, body)
        began = time.perf_counter_ns()
        try:
            result = getattr(self._service, name)(**arguments)
            if inspect.isawaitable(result):
                result = self._run(result)
        except AdapterError as error:
            return {"status": status_of(error), "detail": message_of(error), "headers": {}}
        except Exception as error:
            if isinstance(status := getattr(error, "status_code", None), int) and hasattr(error, "detail"):
                headers = dict(getattr(error, "headers", None) or {})
                return {"status": status, "detail": error.detail, "headers": headers}
            raise
        took = (time.perf_counter_ns() - began) / 1e6
        return {"milliseconds": took, "output": _output(endpoint, result)}

    def _run(self, awaitable: Any) -> Any:
        if self._loop is None:  # one for all calls: what setup or a call before has left on it goes on
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(_awaited(awaitable))

    def close(self) -> None:
        """Let its loop go, where no call still runs on it."""
        if self._loop is not None and not self._loop.is_running():
            self._loop.close()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


class HostedEndpoint(Runnable):
    """Makes the service of a pickle, sets it up, and answers its calls one by one."""

    SUPPORTED_RESOURCES = ("nvidia.com/gpu", "cpu")
    SUPPORTS_CPU_MULTI_THREADING = True

    def __init__(
        self,
        pickled: bytes,
        folder: str,
        path: Sequence[str],
        package: str,
        reports: str,
        gpus: str | None,
        limits: Mapping[str, Any],
    ) -> None:
        """`folder`, `path` and `gpus` are the server's working directory, sys.path and CUDA_VISIBLE_DEVICES.

        `package` is where adapter is installed: the module of the service may import anything of it.
        """
        reporter = Reporter(reports)
        reporter.say(LAUNCHED)
        os.chdir(folder)
        # in the server's order: a module beside the service comes before one of the same name that is installed
        sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
        _complete(package)
        if gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        fetching.allow(fetching.Limits(**limits))
        try:
            service = pickle.loads(pickled)
            service.setup()
        except BaseException:
            reporter.say(FAILED, traceback.format_exc())
            raise
        self._answerer = Answerer(service)
        reporter.say(SET_UP)

    @Runnable.method
    def answer(self, name: str, body: Any) -> Any:
        return self._answerer.answer(name, body)


def _complete(package: str) -> None:
    """Let the modules of adapter that do not travel with an entry be imported from where it is installed."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "adapter" and hasattr(module, "__path__"):
            module.__path__.append(os.path.join(package, *name.split(".")[1:]))


def _arguments(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    assert endpoint.input is not None
    model = endpoint.input.model_validate(json.loads(body))
    return {name: getattr(model, name) for name in endpoint.input.model_fields}


def _fields(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _file(value) if isinstance(value, Mapping) else value for name, value in body.items()}


def _file(record: Mapping[str, Any]) -> File:
    content = record["content"]
    return File(io.BytesIO(content), size=len(content), filename=record["filename"], headers=Headers(record["headers"]))


def _output(endpoint: Endpoint, result: Any) -> bytes:
    try:
        output = endpoint.output(output=_plain(result))
        return output.model_dump_json(exclude={Endpoint.ANALYTICS}).encode()
    except ValidationError as error:
        problems = error.error_count()
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RemoteException(
            f"{endpoint.method}() returned {_shown(result)}, which is not what its annotation says: {where}: "
            f"{first['msg']}{f' (and {problems - 1} more)' if problems > 1 else ''}."
        ) from error
    except ValueError as error:  # pydantic's own for what it cannot write
        raise RemoteException(
            f"{endpoint.method}() returned {_shown(result)}, which cannot be written as JSON: {sentence(error)}."
        ) from error


def _plain(result: Any) -> Any:
    """A number or a list of numbers where the method returned numpy's own."""
    return result.tolist() if isinstance(result, (np.generic, np.ndarray)) else result


def _shown(value: Any) -> str:
    return f"a {type(value).__qualname__}"
