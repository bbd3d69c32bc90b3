"""What a call becomes, whatever calls came before it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adapter
from adapter.exceptions import InvalidArgument
from adapter.tensor import TensorSpec
from adapter.triton.client import TritonClient
from adapter.triton.routes import Route
from adapter.triton.transport import TritonTransport

MOST = 4
Labels = Annotated[npt.NDArray[Any], TensorSpec("int64", (-1,))]
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Typed(adapter.Runnable):
    SUPPORTED_RESOURCES = ("cpu",)

    @adapter.Runnable.method(batchable=True)
    def free(self, x: Annotated[npt.NDArray[Any], TensorSpec("float32", (-1, -1))]) -> Labels:
        raise NotImplementedError

    @adapter.Runnable.method(batchable=True)
    def fixed(self, x: Annotated[npt.NDArray[Any], TensorSpec("float32", (2, 2))]) -> Labels:
        raise NotImplementedError

    @adapter.Runnable.method(batchable=True, batch_dim=(1, 0))
    def behind(self, x: Annotated[npt.NDArray[Any], TensorSpec("float32", (2, -1))]) -> Labels:
        raise NotImplementedError


def route_of(client: TritonClient, method: str) -> Route:
    runner = adapter.Runner(Typed, name="typed", max_batch_size=MOST)
    return TritonTransport(client, runner.spec, {name: name for name in runner.spec.methods})._routes[method]


def sent(route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return [(call.key, call.body, call.size, call.weight, call.alone) for call in route.calls(args, kwargs)]
    except (InvalidArgument, TypeError) as error:
        return str(error)


@st.composite
def arguments(draw: st.DrawFn) -> Call:
    shape = tuple(draw(st.lists(st.integers(0, MOST + 1), max_size=3)))
    array = np.arange(np.prod(shape, dtype=int), dtype=draw(st.sampled_from(["float32", ">f4", "float64", "int8"])))
    value: Any = array.reshape(shape)
    if draw(st.booleans()):
        value = np.asfortranarray(value)
    how = draw(st.sampled_from(["array", "array", "array", "list", "named", "twice", "nothing"]))
    args: tuple[Any, ...] = {"list": (value.tolist(),), "named": (), "twice": (value, value), "nothing": ()}.get(
        how, (value,)
    )
    return args, {"x": value} if how == "named" else {}


@pytest.mark.parametrize("method", ["free", "fixed", "behind"])
@settings(max_examples=200, deadline=None)
@given(made=st.lists(arguments(), min_size=2, max_size=6))
def test_a_call_is_sent_as_if_it_were_the_first(method: str, made: list[Call]) -> None:
    async def main() -> None:
        client = TritonClient("127.0.0.1:1")
        used = route_of(client, method)
        for args, kwargs in made:
            assert sent(used, args, kwargs) == sent(route_of(client, method), args, kwargs)
        await client.close()

    asyncio.run(main())


def test_an_array_may_be_changed_as_soon_as_it_was_handed_over() -> None:
    async def main() -> None:
        client = TritonClient("127.0.0.1:1")
        route = route_of(client, "free")
        array = np.ones((1, 2), "float32")
        for _ in range(2):
            (call,) = route.calls((array,), {})
            array[:] = 7
            assert call.body == [np.ones((1, 2), "float32").tobytes()]
            array[:] = 1
        await client.close()

    asyncio.run(main())
