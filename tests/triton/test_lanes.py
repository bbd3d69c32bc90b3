"""Lanes over a `send` of the test's own: what shares a request, what waits, and what becomes of each call."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.exceptions import (
    AdapterError,
    ClientGone,
    DeadlineExceeded,
    InvalidArgument,
    RemoteException,
    ServiceUnavailable,
)
from adapter.mailbox import Mailbox
from adapter.triton import lanes
from adapter.triton.lanes import Call, Lane
from adapter.triton.request import SentId


@dataclass
class Engine:
    """Answers each call with its body doubled, after some turns of the loop; notes what came."""

    turns: int = 1
    requests: list[list[Any]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    limits: list[float] = field(default_factory=list)

    async def send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        self.requests.append([call.body for call in calls])
        self.limits.append(limit_s)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            bodies = [call.body for call in calls]
            if any(isinstance(body, AdapterError) for body in bodies):
                raise next(body for body in bodies if isinstance(body, AdapterError))
            return [InvalidArgument("odd one out") if body == "odd" else body * 2 for body in bodies]
        finally:
            self.under_way -= 1


def lane_to(engine: Any, **options: Any) -> Lane:
    given: dict[str, Any] = {"most": 8, **options}
    return Lane("iris.predict", engine.send, asyncio.get_running_loop(), **given)


def call(body: Any, *, key: Any = None, size: int = 1, weight: int = 1, **options: Any) -> Call:
    return Call(key, body, size=size, weight=weight, **options)


async def result_of(lane: Lane, made: Call) -> Any:
    """The result of a call, or its error, as a task of the loop gets it."""
    future = made.for_task(asyncio.get_running_loop())
    lane.submit(made)
    try:
        return await future
    except asyncio.CancelledError:
        lane.abandon(made)
        raise
    except AdapterError as error:
        return error


def test_call_leaves_at_once_when_nothing_is_under_way() -> None:
    async def main() -> None:
        engine = Engine()
        assert await result_of(lane_to(engine), call(4)) == 8
        assert engine.requests == [[4]]
        assert engine.limits == [math.inf]

    asyncio.run(main())


def test_calls_that_come_together_share_a_request_up_to_the_largest_batch() -> None:
    async def main() -> None:
        engine = Engine(turns=5)
        lane = lane_to(engine, most=8)
        found = await asyncio.gather(*(result_of(lane, call(n, size=3)) for n in range(5)))
        assert found == [0, 2, 4, 6, 8]
        assert engine.requests == [[0, 1], [2, 3], [4]]  # 3 + 3 items, not 9
        assert engine.most_under_way == 2

    asyncio.run(main())


def test_request_beside_those_that_run_waits_until_it_is_as_large() -> None:
    async def main() -> None:
        engine = Engine(turns=50)
        lane = lane_to(engine)
        first = [asyncio.create_task(result_of(lane, call(n))) for n in range(3)]
        await asyncio.sleep(0)
        later = []
        for n in (3, 4, 5, 6):
            await asyncio.sleep(0)
            later.append(asyncio.create_task(result_of(lane, call(n))))
        await asyncio.gather(*first, *later)
        assert engine.requests == [[0, 1, 2], [3, 4, 5], [6]]

    asyncio.run(main())


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_call_leaves_at_once_while_an_instance_is_free(instances: int) -> None:
    async def main() -> None:
        engine = Engine(turns=50)
        lane = lane_to(engine, instances=instances)
        tasks = []
        for n in range(6):
            tasks.append(asyncio.create_task(result_of(lane, call(n))))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert engine.requests[: instances + 1] == [[n] for n in range(instances + 1)]
        await asyncio.gather(*tasks)
        assert engine.most_under_way == instances + 1

    asyncio.run(main())


def test_calls_of_another_key_wait_for_their_own_request_in_the_order_they_came() -> None:
    async def main() -> None:
        engine = Engine()
        lane = lane_to(engine)
        await asyncio.gather(*(result_of(lane, call(n, key=key)) for n, key in enumerate("ABAB")))
        assert engine.requests == [[0, 2], [1, 3]]

    asyncio.run(main())


def test_calls_go_alone_where_nothing_may_be_packed() -> None:
    async def main() -> None:
        engine = Engine(turns=3)
        lane = lane_to(engine, most=0)
        await asyncio.gather(*(result_of(lane, call(n)) for n in range(40)))
        assert engine.requests == [[n] for n in range(40)]
        assert engine.most_under_way == lanes.ALONE_IN_FLIGHT

    asyncio.run(main())


def test_calls_of_many_bytes_go_alone_and_several_at_a_time() -> None:
    async def main() -> None:
        engine = Engine(turns=5)
        lane = lane_to(engine)
        calls = [call(n, weight=lanes.LARGE + 1) for n in range(5)]
        assert await asyncio.gather(*(result_of(lane, each) for each in calls)) == [0, 2, 4, 6, 8]
        assert engine.requests == [[n] for n in range(5)]
        assert engine.most_under_way == 5

    asyncio.run(main())


@pytest.mark.parametrize(("most", "weight"), [(0, 1), (100, lanes.LARGE + 1)])
def test_calls_that_go_alone_do_not_wait_for_those_before(most: int, weight: int) -> None:
    async def main() -> None:
        engine = Engine(turns=50)
        lane = lane_to(engine, most=most)
        tasks = []
        for n in range(5):
            tasks.append(asyncio.create_task(result_of(lane, call(n, weight=weight))))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(engine.requests) == n + 1
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_next_request_leaves_before_the_answers_of_the_last_are_handed_out() -> None:
    async def main() -> None:
        engine = Engine(turns=3)
        lane = lane_to(engine)
        told: list[str] = []
        sent = engine.send

        async def send(calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
            told.append(f"sent {[c.body for c in calls]}")
            return await sent(calls, limit_s)

        lane._send = send

        async def one(n: int) -> None:
            await result_of(lane, call(n))
            told.append(f"answered {n}")

        await asyncio.gather(one(0), one(1), *(one(n) for n in (2, 3)))
        first = asyncio.gather(*(one(n) for n in (4, 5, 6)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        last = asyncio.create_task(one(7))  # too few to go beside the three
        await asyncio.gather(first, last)
        assert told.index("sent [7]") < told.index("answered 4")

    asyncio.run(main())


def test_members_of_a_failed_request_are_sent_once_more_each_by_itself() -> None:
    async def main() -> None:
        engine = Engine()
        poison = RemoteException("this one fails")
        lane = lane_to(engine)
        found = await asyncio.gather(*(result_of(lane, call(body)) for body in (1, poison, 3)))
        assert found == [2, poison, 6]
        assert engine.requests == [[1, poison, 3], [1], [poison], [3]]

    asyncio.run(main())


def test_failed_request_fails_all_its_members_where_nothing_is_sent_twice() -> None:
    async def main() -> None:
        engine = Engine()
        poison = RemoteException("this one fails")
        found = await asyncio.gather(
            *(result_of(lane, call(body)) for lane in [lane_to(engine, retry=False)] for body in (1, poison, 3))
        )
        assert found == [poison, poison, poison]
        assert len(engine.requests) == 1

    asyncio.run(main())


def test_error_in_place_of_a_result_is_one_callers_alone() -> None:
    async def main() -> None:
        engine = Engine()
        lane = lane_to(engine)
        found = await asyncio.gather(*(result_of(lane, call(body)) for body in (1, "odd", 3)))
        assert found[0] == 2
        assert found[2] == 6
        assert str(found[1]) == "odd one out"
        assert len(engine.requests) == 1

    asyncio.run(main())


def test_wrong_number_of_answers_leaves_nobody_waiting() -> None:
    class Short:
        async def send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
            return [1]

    async def main() -> None:
        lane = lane_to(Short(), retry=False)
        found = await asyncio.gather(*(result_of(lane, call(n)) for n in range(2)))
        assert all("answered 1 of 2 calls" in str(each) for each in found)

    asyncio.run(main())


class Stuck:
    """Answers nothing until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def send(self, calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError


def test_request_is_cancelled_when_its_last_caller_has_gone() -> None:
    async def main() -> None:
        engine = Stuck()
        lane = lane_to(engine)
        tasks = [asyncio.create_task(result_of(lane, call(n))) for n in range(2)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert engine.cancelled == 0
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert engine.cancelled == 1

    asyncio.run(main())


@pytest.mark.parametrize("retry", [True, False])
def test_interrupted_requests_fail_or_are_sent_once_more(retry: bool) -> None:
    async def main() -> None:
        engine = Stuck()
        lane = lane_to(engine, retry=retry)
        tasks = [asyncio.create_task(result_of(lane, call(n))) for n in range(2)]
        await asyncio.sleep(0.01)
        lane.interrupt()
        await asyncio.sleep(0.01)
        assert engine.cancelled == 1
        if retry:
            assert [task.done() for task in tasks] == [False, False]  # each alone, and stuck again
            lane.interrupt()
        for error in await asyncio.gather(*tasks):
            assert isinstance(error, ServiceUnavailable)

    asyncio.run(main())


def test_each_call_times_out_alone_with_the_error_of_its_own_limit() -> None:
    async def main() -> None:
        engine = Stuck()
        lane = lane_to(engine, limit_s=0.02)
        now = time.monotonic()
        short = asyncio.create_task(result_of(lane, call(1, until=now + 9, limit_s=0.02)))
        longer = asyncio.create_task(result_of(lane, call(2, until=now + 0.06)))
        first = await short
        assert isinstance(first, ServiceUnavailable)
        assert "max_latency_ms of 20" in str(first)
        assert not longer.done()
        assert engine.cancelled == 0
        second = await longer
        assert isinstance(second, DeadlineExceeded)
        await asyncio.sleep(0.01)
        assert engine.cancelled == 1

    asyncio.run(main())


def test_waiting_call_times_out_before_it_was_ever_sent() -> None:
    async def main() -> None:
        lane = lane_to(Stuck(), most=0)
        first = asyncio.create_task(result_of(lane, call(1)))
        await asyncio.sleep(0)
        found = await result_of(lane, call(2, until=time.monotonic() + 0.01))
        assert isinstance(found, DeadlineExceeded)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limit", "value", "weight"), [("MAX_WAITING_CALLS", 3, 1), ("MAX_WAITING_BYTES", 3 << 20, 1 << 20)]
)
def test_waiting_calls_are_bounded(limit: str, value: int, weight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, limit, value)

    async def main() -> list[Any]:
        lane = lane_to(Engine(turns=20), most=0)
        first = asyncio.create_task(result_of(lane, call(0)))
        await asyncio.sleep(0.001)
        return [await first, *await asyncio.gather(*(result_of(lane, call(n, weight=weight)) for n in range(1, 7)))]

    found = asyncio.run(main())
    assert found[:4] == [0, 2, 4, 6]
    assert all(isinstance(each, ServiceUnavailable) and "wait for Triton already" in str(each) for each in found[4:])


def test_closing_fails_what_is_under_way() -> None:
    async def main() -> None:
        lane = lane_to(Stuck(), most=0)
        tasks = [asyncio.create_task(result_of(lane, call(n))) for n in range(3)]
        await asyncio.sleep(0.01)
        lane.close()
        found = await asyncio.gather(*tasks)
        assert all(isinstance(each, ServiceUnavailable) and "was closed" in str(each) for each in found)

    asyncio.run(main())


class Counts:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.now = self.ends = self.failures = self.requests = self.calls = self.items = self.level = self.again = 0

    def ended(self, seconds: Sequence[float], *, failed: bool = False) -> None:
        assert all(each >= 0 for each in seconds)
        self.now -= len(seconds)
        self.ends += len(seconds)
        self.failures += failed * len(seconds)

    def departed(self, calls: int, items: int) -> None:
        self.level += 1
        self.requests += 1
        self.calls += calls
        self.items += items

    def landed(self) -> None:
        self.level -= 1

    def retried(self, calls: int) -> None:
        self.again += calls


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 40), instances=st.integers(1, 4))
def test_every_caller_gets_its_own_result_whatever_the_others_do(seed: int, most: int, instances: int) -> None:
    """1,000 interleaved calls of random lengths: some fail, some poison their request, some give up, some are late."""
    dice = random.Random(seed)

    async def main() -> None:
        engine, counts = Engine(turns=3), Counts()
        sent = engine.send

        async def send(calls: Sequence[Call], limit_s: float) -> Sequence[Any]:
            assert len({c.key for c in calls}) == 1
            assert len(calls) == 1 or sum(c.size for c in calls) <= most
            engine.turns = dice.randint(0, 4)
            return await sent(calls, limit_s)

        engine.send = send  # type: ignore[method-assign]  # the checks stand before it
        lane = lane_to(engine, most=most, instances=instances, observer=counts)

        async def one(n: int) -> str:
            for _ in range(dice.randint(0, 30)):
                await asyncio.sleep(0)
            kind = dice.choices(["good", "odd", "poison", "gone", "late"], [80, 5, 5, 5, 5])[0]
            body: Any = {"odd": "odd", "poison": RemoteException(f"poison {n}")}.get(kind, n)
            until = time.monotonic() - 1 if kind == "late" else None
            made = call(body, key=dice.randint(0, 2), size=dice.randint(1, max(1, most // 2)), until=until)
            if kind == "gone":
                task = asyncio.ensure_future(result_of(lane, made))
                for _ in range(dice.randint(0, 6)):
                    await asyncio.sleep(0)
                if not task.cancel():
                    assert task.result() == 2 * n
                await asyncio.wait([task])
                return kind
            found = await result_of(lane, made)
            if kind == "good":
                assert found == 2 * n
            elif kind == "odd":
                assert str(found) == "odd one out"
            elif kind == "poison":
                assert found is body
            else:  # it left before the alarm rang, or not
                assert found == 2 * n or isinstance(found, DeadlineExceeded)
            return kind

        kinds = await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(1000))), 60)
        assert set(kinds) == {"good", "odd", "poison", "gone", "late"}
        while engine.under_way:
            await asyncio.sleep(0)
        assert engine.most_under_way <= lanes.ALONE_IN_FLIGHT  # of those that are sent again alone
        assert 900 < counts.ends <= 1000  # some had gone before they were sent
        assert counts.now == counts.level == 0
        assert counts.calls <= 1000 + counts.again
        assert (lane._waiting, lane._bytes, lane._queues, lane._packs) == (0, 0, {}, set())

    asyncio.run(main())


def test_threads_wait_for_their_own_results_through_one_mailbox() -> None:
    async def main() -> dict[int, Any]:
        lane = lane_to(Engine(turns=2))
        arrivals: Mailbox[Call] = Mailbox(asyncio.get_running_loop(), lane.submit)
        found: dict[int, Any] = {}

        def work(start: int) -> None:
            for n in range(start, start + 25):
                made = call("odd" if n % 10 == 0 else n)
                wait = made.for_thread()
                arrivals.put(made)
                try:
                    found[n] = wait()
                except InvalidArgument as error:
                    found[n] = str(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 200, 25)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.001)
        return found

    assert asyncio.run(main()) == {n: "odd one out" if n % 10 == 0 else 2 * n for n in range(200)}


def test_calls_of_a_client_that_has_gone_end_and_others_with_an_equal_id_do_not() -> None:
    async def main() -> None:
        engine = Engine(turns=1000)
        lane = lane_to(engine)
        ids = [SentId("x"), SentId("x")]
        calls = [call(i, identity=identity) for i, identity in enumerate([ids[0], ids[1], ids[0]])]
        results = [asyncio.create_task(result_of(lane, each)) for each in calls]
        await asyncio.sleep(0.001)
        assert engine.requests == [[0, 1, 2]]
        lane.drop(ids[0])
        await asyncio.sleep(0)
        assert [result.done() for result in results] == [True, False, True]
        assert isinstance(await results[0], ClientGone)
        assert await results[1] == 2  # the request that it shared goes on
        alone = asyncio.create_task(result_of(lane, call(3, identity=ids[0])))
        await asyncio.sleep(0.001)
        lane.drop(ids[0])
        assert isinstance(await alone, ClientGone)
        await asyncio.sleep(0)
        assert engine.under_way == 0  # and this one was cancelled

    asyncio.run(main())
