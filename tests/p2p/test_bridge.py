"""Results, errors, cancellations and back-pressure cross between asyncio and trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from p2p.bridge import Bridge, QueueClosed, ToAsyncio, ToTrio, TrioStopped, run_trio


@asynccontextmanager
async def bridged() -> AsyncIterator[Bridge]:
    ready: asyncio.Future[Bridge] = asyncio.get_running_loop().create_future()

    async def main(bridge: Bridge) -> None:
        bridge.post_to_asyncio(ready.set_result, bridge)
        await trio.sleep_forever()

    running = asyncio.create_task(run_trio(main))
    try:
        yield await ready
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_call_goes_there_and_back_through_both() -> None:
    async with bridged() as bridge:

        async def in_asyncio(number: int) -> int:
            await asyncio.sleep(0)
            return number + 1

        async def in_trio(number: int) -> int:
            await trio.sleep(0)
            return await bridge.in_asyncio(in_asyncio, number) * 10

        assert await bridge.in_trio(in_trio, 1) == 20


async def test_an_error_crosses_both_ways() -> None:
    async with bridged() as bridge:

        async def in_asyncio() -> None:
            raise KeyError("from asyncio")

        async def in_trio() -> None:
            await bridge.in_asyncio(in_asyncio)

        with pytest.raises(KeyError, match="from asyncio"):
            await bridge.in_trio(in_trio)


async def test_a_cancellation_crosses_twice() -> None:
    seen: list[str] = []
    both = asyncio.Event()
    async with bridged() as bridge:

        async def in_asyncio() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("asyncio")
                both.set()

        async def in_trio() -> None:
            try:
                await bridge.in_asyncio(in_asyncio)
            finally:
                seen.append("trio")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await bridge.in_trio(in_trio)
        await asyncio.wait_for(both.wait(), 60)
    assert sorted(seen) == ["asyncio", "trio"]


async def test_who_waits_when_trio_ends_is_told() -> None:
    async with bridged() as bridge:
        waiting = asyncio.create_task(bridge.in_trio(trio.sleep_forever))
        await bridge.in_trio(trio.sleep, 0)
    with pytest.raises(TrioStopped):
        await waiting
    with pytest.raises(TrioStopped):
        await bridge.in_trio(trio.sleep, 0)


async def test_what_main_raises_comes_out_of_run_trio() -> None:
    async def main(_: Bridge) -> None:
        raise ValueError("the host died")

    with pytest.raises(ExceptionGroup) as caught:
        await run_trio(main)
    assert caught.group_contains(ValueError, match="the host died")


async def test_items_reach_trio_in_order_and_in_batches() -> None:
    async with bridged() as bridge:
        queue: ToTrio[int] = ToTrio(bridge, limit=10_000)
        batches: list[list[int]] = []

        async def take() -> None:
            while sum(map(len, batches)) < 1000:
                batches.append(await queue.take_all())

        for number in range(500):
            queue.put(number, 1)
        taking = asyncio.create_task(bridge.in_trio(take))
        for number in range(500, 1000):
            await queue.ready()
            queue.put(number, 1)
            if number % 50 == 0:
                await asyncio.sleep(0.001)
        await asyncio.wait_for(taking, 60)
    assert [number for batch in batches for number in batch] == list(range(1000))
    assert len(batches[0]) >= 500


async def test_a_full_queue_to_trio_makes_the_putter_wait() -> None:
    async with bridged() as bridge:
        queue: ToTrio[str] = ToTrio(bridge, limit=10)
        queue.put("heavy", 10)
        assert queue.is_full
        waiting = asyncio.create_task(queue.ready())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await bridge.in_trio(queue.take_all) == ["heavy"]
        await asyncio.wait_for(waiting, 60)


async def test_a_closed_queue_to_trio_wakes_both_sides() -> None:
    async with bridged() as bridge:
        queue: ToTrio[str] = ToTrio(bridge, limit=1)
        taking = asyncio.create_task(bridge.in_trio(queue.take_all))
        await asyncio.sleep(0.02)
        queue.close()
        assert await asyncio.wait_for(taking, 60) == []
        with pytest.raises(QueueClosed):
            await queue.ready()
        with pytest.raises(QueueClosed):
            queue.put("late", 1)


async def test_items_reach_asyncio_in_order_even_before_anybody_listens() -> None:
    async with bridged() as bridge:
        queue: ToAsyncio[int] = ToAsyncio(bridge, limit=10_000)
        got: list[int] = []

        async def put(numbers: range) -> None:
            for number in numbers:
                await queue.put([number], 1)

        await bridge.in_trio(put, range(10))
        queue.attach(got.extend)
        await bridge.in_trio(put, range(10, 1000))
        await bridge.in_trio(trio.sleep, 0)
    assert got == list(range(1000))


async def test_trio_waits_while_asyncio_is_too_far_behind() -> None:
    async with bridged() as bridge:
        queue: ToAsyncio[int] = ToAsyncio(bridge, limit=5)
        put: list[int] = []

        async def pour() -> None:
            for number in range(100):
                await queue.put([number], 1)
                put.append(number)

        pouring = asyncio.create_task(bridge.in_trio(pour))
        await asyncio.sleep(0.1)
        assert len(put) <= 6
        got: list[int] = []
        queue.attach(got.extend)
        await asyncio.wait_for(pouring, 60)
        await asyncio.sleep(0.01)
    assert got == list(range(100))


async def test_cancelling_run_trio_lets_trio_clean_up() -> None:
    cleaned: list[bool] = []
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def main(bridge: Bridge) -> None:
        bridge.post_to_asyncio(ready.set_result, None)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope() as scope:
                scope.shield = True
                await trio.sleep(0.05)
            cleaned.append(True)

    running = asyncio.create_task(run_trio(main))
    await ready
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cleaned == [True]
