"""Peers that are killed, frozen, and come back: real processes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Protocol

import pytest

from market.errors import ContentUnavailable, PeerError, PeerGone
from market.message import Queued
from market.ports import Conversation
from market.task import TaskId
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = [pytest.mark.net, pytest.mark.processes]

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewTask = Callable[[], TaskId]
Until = Callable[..., Awaitable[None]]
PINGS = {"ping_interval_s": 0.3, "ping_timeout_s": 3.0}
"""Short, and long enough for a peer on a busy machine."""


class Peer(Protocol):
    address: str
    peer: str
    listen: str
    root: str

    def signal(self, number: int) -> None: ...
    def end(self) -> None: ...


StartPeer = Callable[..., Peer]


async def talk(anna: OctoNetwork, peer: str, task: TaskId) -> Conversation:
    conversation = await anna.open_conversation(peer, task)  # type: ignore[arg-type]
    await conversation.send(Queued(position=1))
    assert (await conversation.receive(60)).body == Queued(position=1)
    return conversation


async def test_a_killed_peer_is_gone_quickly_and_back_on_the_same_address(
    join: Join, start_peer: StartPeer, new_task: NewTask, until: Until
) -> None:
    peer = await asyncio.to_thread(start_peer, "peer")
    async with join("anna") as anna:
        await anna.connect(peer.address)
        conversation = await talk(anna, peer.peer, new_task())
        waiting = asyncio.create_task(conversation.receive(60))
        peer.signal(signal.SIGKILL)
        with pytest.raises(PeerGone):
            await asyncio.wait_for(waiting, 60)
        with pytest.raises(PeerGone):
            await conversation.send(Queued(position=2))
        await until(lambda: anna.peers() == ())
        with pytest.raises(PeerError):  # refused while it is down, and that may not poison the peer
            await anna.open_conversation(peer.peer, new_task())  # type: ignore[arg-type]
        peer.end()
        await asyncio.to_thread(start_peer, "peer", peer.listen)
        await until(lambda: [seen.peer for seen in anna.peers()] == [peer.peer])
        await talk(anna, peer.peer, new_task())


async def test_a_frozen_peer_is_gone_within_the_ping_limits_and_back_when_it_thaws(
    join: Join, start_peer: StartPeer, limits: NetworkLimits, new_task: NewTask, until: Until
) -> None:
    peer = await asyncio.to_thread(start_peer, "peer")
    async with join("anna", limits=replace(limits, **PINGS)) as anna:
        await anna.connect(peer.address)
        conversation = await talk(anna, peer.peer, new_task())
        waiting = asyncio.create_task(conversation.receive(60))
        peer.signal(signal.SIGSTOP)
        # 0.3 s between pings, two misses of 3 s: 6.3 s, and the rest for a busy machine
        with pytest.raises(PeerGone, match="stopped answering"):
            await asyncio.wait_for(waiting, 60)
        await until(lambda: anna.peers() == ())
        peer.signal(signal.SIGCONT)
        await until(lambda: [seen.peer for seen in anna.peers()] == [peer.peer])
        await talk(anna, peer.peer, new_task())


async def test_who_floods_a_frozen_peer_waits_and_is_then_told(
    join: Join, start_peer: StartPeer, limits: NetworkLimits, new_task: NewTask
) -> None:
    peer = await asyncio.to_thread(start_peer, "peer")
    async with join("anna", limits=replace(limits, **PINGS)) as anna:
        await anna.connect(peer.address)
        conversation = await talk(anna, peer.peer, new_task())
        peer.signal(signal.SIGSTOP)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await conversation.send(Queued(position=sent))
                sent += 1

        with pytest.raises(PeerGone):
            await asyncio.wait_for(flood(), 60)
        assert sent < 200_000


async def test_reading_content_from_a_peer_that_is_killed_ends_at_once(
    join: Join, start_peer: StartPeer, limits: NetworkLimits
) -> None:
    peer = await asyncio.to_thread(start_peer, "peer")
    async with join("anna", limits=replace(limits, ping_interval_s=300, content_wait_s=300)) as anna:
        await anna.connect(peer.address)
        with pytest.raises(ContentUnavailable):
            async with asyncio.timeout(60):
                await read_until(anna, peer, lambda: peer.signal(signal.SIGKILL))


async def test_reading_content_from_a_peer_that_freezes_ends_in_time(
    join: Join, start_peer: StartPeer, limits: NetworkLimits
) -> None:
    peer = await asyncio.to_thread(start_peer, "peer")
    # Without the pings, which would notice first: the time-out of the read itself.
    async with join("anna", limits=replace(limits, ping_interval_s=300, open_timeout_s=5, content_wait_s=5)) as anna:
        await anna.connect(peer.address)
        with pytest.raises(ContentUnavailable, match=r"silent for 5 s|hung up"):
            async with asyncio.timeout(60):
                await read_until(anna, peer, lambda: peer.signal(signal.SIGSTOP))
        with pytest.raises(ContentUnavailable):
            async with asyncio.timeout(60):
                await anna.content_of(peer.peer).block(peer.root)  # type: ignore[arg-type]


async def read_until(anna: OctoNetwork, peer: Peer, then: Callable[[], None]) -> None:
    """Read for 4 MiB, do something to the source, and read on."""
    size, is_done = 0, False
    async with aclosing(anna.content_of(peer.peer).read_range(peer.root, 0, 2**40)) as pieces:  # type: ignore[arg-type]
        async for piece in pieces:
            size += len(piece)
            if size > 4 * 2**20 and not is_done:
                then()
                is_done = True
