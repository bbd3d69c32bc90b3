"""An endpoint with everything that tests of the endpoint server call."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from fastapi import HTTPException

from adapter.endpoint import Service, path
from adapter.endpoint.types import File, Image
from adapter.exceptions import InvalidArgument


class Everything(Service):
    """What `setup` waits for comes by a file, so that a test can look at the server meanwhile."""

    def __init__(self) -> None:
        self.made_in = os.getpid()
        self.greeting = ""
        self.order: list[str] = []

    def on_server_startup(self) -> None:
        self.greeting = "Hello"

    def setup(self) -> None:
        print("setup begins", flush=True)
        while (gate := os.environ.get("GATE")) and not os.path.exists(gate):
            time.sleep(0.01)
        if os.environ.get("BROKEN"):
            raise RuntimeError("no weights here")
        self.lock = threading.Lock()  # cannot be pickled, and need not be

    def on_server_shutdown(self) -> None:
        print(f"shut down in {os.getpid()}, made in {self.made_in}, locked: {hasattr(self, 'lock')}", flush=True)

    def infer(self, name: str, seconds: float = 0.0) -> str:
        """Greet somebody, after a while."""
        time.sleep(seconds)
        return f"{self.greeting}, {name}!"

    def whoami(self, name: str) -> int:
        return os.getpid()

    async def add_later(self, numbers: list[int]) -> int:
        await asyncio.sleep(0.01)
        return sum(numbers)

    def turn(self, image: Image) -> Image:
        return Image.from_pil(image.to_pil().rotate(90, expand=True), "PNG")

    def fail(self, how: str) -> int:
        if how == "http":
            raise HTTPException(418, {"reason": "a teapot"}, {"x-kind": "pot"})
        if how == "ours":
            raise InvalidArgument("seven is too many")
        if how == "exit":
            raise SystemExit("leave")
        if how == "text":
            return "no number"  # type: ignore[return-value]  # on purpose
        raise ValueError("a secret of the server")

    def unsendable(self, name: str) -> object:
        return threading.Lock()

    def die(self, code: int) -> str:
        os._exit(code)

    @path("/uploads")
    def infer_form_data(self, file: File, label: str) -> dict[str, str | int | None]:
        content = file.file.read()
        return {
            "label": label,
            "size": len(content),
            "sum": sum(content[:1000]) + sum(content[-1000:]),
            "name": file.filename,
            "type": file.content_type,
        }
