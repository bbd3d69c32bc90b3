"""A service whose runners die and hang on demand, beside one that has nothing to do with it."""

import ctypes
import os
import time
from pathlib import Path

import adapter
from adapter.io import Text

FOLDER = Path(os.environ.get("FAULTS", "/nonexistent"))


class Mortal(adapter.Runnable):
    """Does what it is told: answers after a while, dies in one of several ways, or hangs."""

    def __init__(self, name: str) -> None:
        if (FOLDER / f"{name}-dies-at-its-start").exists():
            os._exit(4)
        if (FOLDER / f"{name}-starts-slowly").exists():
            time.sleep(30)

    @adapter.Runnable.method(batchable=True, batch_dim=0)
    def do(self, calls: list[str]) -> list[str]:
        for call in calls:
            if call == "exit":
                os._exit(3)
            if call == "segfault":
                ctypes.string_at(0)
            if call == "memory":
                bytearray(1 << 62)
            if call == "hang":
                time.sleep(3600)
        time.sleep(0.005)
        return [f"{call} {os.getpid()}" for call in calls]


def mortal(name: str, cpu: int) -> adapter.Runner:
    return adapter.Runner(Mortal, name=name, runnable_init_params={"name": name}, cpu=cpu, max_batch_size=8)


one, two, calm = mortal("one", 1), mortal("two", 2), mortal("calm", 1)
svc = adapter.Service("faulty", runners=[one, two, calm])


@svc.api(input=Text(), output=Text(), name="one")
async def call_one(text: str) -> str:
    return str((await one.do.async_run([text]))[0])


@svc.api(input=Text(), output=Text(), name="two")
async def call_two(text: str) -> str:
    return str((await two.do.async_run([text]))[0])


@svc.api(input=Text(), output=Text(), name="calm")
async def call_calm(text: str) -> str:
    return str((await calm.do.async_run([text]))[0])
