"""Conversations over real libp2p hosts on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from market.errors import PeerBrokeProtocol, PeerGone, PeerTimedOut, StepNotAllowed
from market.message import Cancel, MessageType, Queued, TaskError, Tokens
from market.ports import Conversation
from market.task import TaskId
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewTask = Callable[[], TaskId]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
async def bob(join: Join) -> AsyncIterator[OctoNetwork]:
    async with join("bob") as network:
        yield network


async def test_a_conversation_goes_both_ways(join: Join, new_task: NewTask) -> None:
    async def serve(conversation: Conversation) -> None:
        asked = await conversation.receive(60)
        assert isinstance(asked.body, Queued)
        await conversation.send(Queued(position=asked.body.position + 1))
        await conversation.send(Cancel(reason="enough"))

    async with join("bob", serve=serve) as bob, join("anna", to=bob) as anna:
        task = new_task()
        conversation = await anna.open_conversation(bob.peer, task)
        await conversation.send(Queued(position=41))
        first, second = await conversation.receive(60), await conversation.receive(60)
        assert (first.body, second.body) == (Queued(position=42), Cancel(reason="enough"))
        assert (first.task, first.type, first.seq, second.seq) == (task, MessageType.STATUS_UPDATE, 0, 1)
        assert first.sent_ms > 0


async def test_either_side_may_open_tasks_on_its_own_stream(
    join: Join, bob: OctoNetwork, new_task: NewTask, until: Until
) -> None:
    async with join("anna", to=bob) as anna:
        await until(bob.peers)  # the dialer is done first
        forth = await anna.open_conversation(bob.peer, new_task())
        back = await bob.open_conversation(anna.peer, new_task())
        for conversation in (forth, back):
            await conversation.send(Queued(position=1))
        for conversation in (forth, back):
            assert (await conversation.receive(60)).body == Queued(position=1)


async def test_a_thousand_messages_arrive_in_order_before_anybody_reads(join: Join, new_task: NewTask) -> None:
    async def serve(conversation: Conversation) -> None:
        await conversation.receive(60)
        for number in range(1000):
            await conversation.send(Tokens(start=number, tokens=(number,)))

    async with join("bob", serve=serve) as bob, join("anna", to=bob) as anna:
        conversation = await anna.open_conversation(bob.peer, new_task())
        await conversation.send(Queued(position=0))
        await asyncio.sleep(0.3)
        starts = [(await conversation.receive(60)).body.start for _ in range(1000)]  # type: ignore[union-attr]
        assert starts == list(range(1000))


async def test_two_tasks_interleave_on_one_stream(join: Join, new_task: NewTask) -> None:
    streams: list[object] = []

    async def serve(conversation: Conversation) -> None:
        streams.append(conversation._link)  # type: ignore[attr-defined]
        for number in range(20):
            await conversation.receive(60)
            await conversation.send(Queued(position=number))

    async with join("bob", serve=serve) as bob, join("anna", to=bob) as anna:
        one = await anna.open_conversation(bob.peer, new_task())
        two = await anna.open_conversation(bob.peer, new_task())
        for number in range(20):
            for conversation in (two, one):
                await conversation.send(Queued(position=0))
            for conversation in (one, two):
                assert (await conversation.receive(60)).body == Queued(position=number)
        assert len(streams) == 2
        assert streams[0] is streams[1]


async def test_many_tasks_opened_at_once_share_one_stream(join: Join, bob: OctoNetwork, new_task: NewTask) -> None:
    async with join("anna", to=bob) as anna:
        opened = await asyncio.gather(*(anna.open_conversation(bob.peer, new_task()) for _ in range(20)))
        assert len({id(conversation._link) for conversation in opened}) == 1  # type: ignore[attr-defined]


async def test_a_task_has_one_conversation_with_a_peer(join: Join, bob: OctoNetwork, new_task: NewTask) -> None:
    async with join("anna", to=bob) as anna:
        task = new_task()
        conversation = await anna.open_conversation(bob.peer, task)
        with pytest.raises(StepNotAllowed):
            await anna.open_conversation(bob.peer, task)
        await conversation.aclose()
        await anna.open_conversation(bob.peer, task)


async def test_a_handler_that_raises_tells_the_peer_and_kills_nothing(join: Join, new_task: NewTask) -> None:
    async def serve(conversation: Conversation) -> None:
        if (await conversation.receive(60)).body == Queued(position=13):
            raise ValueError("secret prompt text")
        await conversation.send(Queued(position=1))

    async with join("bob", serve=serve) as bob, join("anna", to=bob) as anna:
        unlucky = await anna.open_conversation(bob.peer, new_task())
        await unlucky.send(Queued(position=13))
        error = (await unlucky.receive(60)).body
        assert isinstance(error, TaskError)
        assert (error.fault, error.code, error.retry) == ("provider", "internal_error", True)
        assert "secret" not in error.message
        lucky = await anna.open_conversation(bob.peer, new_task())
        await lucky.send(Queued(position=0))
        assert (await lucky.receive(60)).body == Queued(position=1)


async def test_silence_times_out_and_the_conversation_goes_on(join: Join, bob: OctoNetwork, new_task: NewTask) -> None:
    async with join("anna", to=bob) as anna:
        conversation = await anna.open_conversation(bob.peer, new_task())
        with pytest.raises(PeerTimedOut):
            await conversation.receive(0.05)
        await conversation.send(Queued(position=3))
        assert (await conversation.receive(60)).body == Queued(position=3)


async def test_a_cancelled_receive_loses_no_message(join: Join, bob: OctoNetwork, new_task: NewTask) -> None:
    async with join("anna", to=bob) as anna:
        conversation = await anna.open_conversation(bob.peer, new_task())
        receiving = asyncio.create_task(conversation.receive(60))
        await asyncio.sleep(0.02)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        await conversation.send(Queued(position=4))
        assert (await conversation.receive(60)).body == Queued(position=4)


async def test_a_slow_reader_is_bounded_and_blocks_nobody(join: Join, limits: NetworkLimits, new_task: NewTask) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def flood(conversation: Conversation) -> None:
        if (await conversation.receive(60)).body == Queued(position=0):
            await conversation.send(Queued(position=1))
            return
        for number in range(200):
            await conversation.send(Tokens(start=number, tokens=(number,)))
        body = (await conversation.receive(60)).body
        assert isinstance(body, TaskError)
        ended.set_result(body.code)

    small = replace(limits, unread_messages=50)
    async with join("bob", serve=flood) as bob, join("anna", to=bob, limits=small) as anna:
        slow = await anna.open_conversation(bob.peer, new_task())
        await slow.send(Queued(position=9))
        assert await asyncio.wait_for(ended, 60) == "too_many_unread"
        brisk = await anna.open_conversation(bob.peer, new_task())
        await brisk.send(Queued(position=0))
        assert (await brisk.receive(60)).body == Queued(position=1)
        received = 0
        with pytest.raises(PeerBrokeProtocol, match="unread"):
            while True:
                await slow.receive(60)
                received += 1
        assert received <= 51


async def test_a_peer_may_not_open_tasks_without_end(join: Join, limits: NetworkLimits, new_task: NewTask) -> None:
    async def hold(conversation: Conversation) -> None:
        await conversation.receive(60)
        await conversation.send(Queued(position=0))
        await conversation.receive(60)

    few = replace(limits, tasks_per_peer=2)
    async with join("bob", serve=hold, limits=few) as bob, join("anna", to=bob) as anna:
        opened = [await anna.open_conversation(bob.peer, new_task()) for _ in range(3)]
        for conversation in opened:
            await conversation.send(Queued(position=0))
        answers = [(await conversation.receive(60)).body for conversation in opened]
        assert answers[:2] == [Queued(position=0)] * 2
        assert isinstance(answers[2], TaskError)
        assert answers[2].code == "too_many_tasks"
        await opened[0].send(Queued(position=1))  # ends the first handler: its place is free again

        async def fourth() -> object:
            conversation = await anna.open_conversation(bob.peer, new_task())
            await conversation.send(Queued(position=0))
            return (await conversation.receive(60)).body

        async with asyncio.timeout(60):  # the place of an ended task is given away again
            while await fourth() != Queued(position=0):
                await asyncio.sleep(0.05)


async def test_a_conversation_learns_at_once_that_the_other_network_closed(
    join: Join, limits: NetworkLimits, new_task: NewTask
) -> None:
    async with join("anna", limits=replace(limits, ping_interval_s=300)) as anna:  # no ping tells it
        async with join("bob") as bob:
            await anna.connect(bob.addresses()[0])
            conversation = await anna.open_conversation(bob.peer, new_task())
            await conversation.send(Queued(position=0))
            await conversation.receive(60)
            waiting = asyncio.create_task(conversation.receive(60))
        with pytest.raises(PeerGone):
            await asyncio.wait_for(waiting, 60)
        with pytest.raises(PeerGone):
            await conversation.send(Queued(position=1))
        with pytest.raises((PeerGone, PeerTimedOut)):
            await anna.open_conversation(bob.peer, new_task())


async def test_what_arrived_before_the_end_is_still_received(join: Join, new_task: NewTask, until: Until) -> None:
    async with join("anna") as anna:
        async with join("bob") as bob:
            await anna.connect(bob.addresses()[0])
            conversation = await anna.open_conversation(bob.peer, new_task())
            for number in range(3):
                await conversation.send(Queued(position=number))
            await until(lambda: len(conversation._unread) == 3)  # type: ignore[attr-defined]
        assert [(await conversation.receive(60)).body for _ in range(3)] == [Queued(position=n) for n in range(3)]
        with pytest.raises(PeerGone):
            await conversation.receive(60)


async def test_an_error_in_the_body_of_the_network_comes_out_as_it_is(join: Join) -> None:
    with pytest.raises(ZeroDivisionError):
        async with join("anna"):
            raise ZeroDivisionError


async def test_a_crash_of_the_trio_thread_is_mended(
    join: Join, bob: OctoNetwork, new_task: NewTask, until: Until
) -> None:
    async def crash() -> None:
        async def boom() -> None:
            raise RuntimeError("planted")

        assert anna._mesh is not None
        anna._mesh._nursery.start_soon(boom)

    async with join("anna", to=bob) as anna:
        before = anna.addresses()
        conversation = await anna.open_conversation(bob.peer, new_task())
        assert anna._bridge is not None
        old = anna._bridge
        await old.in_trio(crash)
        with pytest.raises(PeerGone):
            await conversation.receive(60)
        await until(lambda: anna._bridge not in (None, old))
        assert anna.addresses() == before
        await until(lambda: [peer.peer for peer in anna.peers()] == [bob.peer])
        again = await anna.open_conversation(bob.peer, new_task())
        await again.send(Queued(position=1))
        assert (await again.receive(60)).body == Queued(position=1)
