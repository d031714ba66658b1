"""Blocks, ranges and small favours over `/octo/blocks`, between real hosts."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any

import pytest

from market.errors import ContentUnavailable, EncodingInvalid
from market.message import Queued
from market.task import TaskId
from market.testing_content import check_source
from p2p.blocks import AHEAD_BYTES, PIECE_LIMIT_BYTES
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewShelf = Callable[..., Any]
Until = Callable[..., Awaitable[None]]
MIB = 1024 * 1024
ABSENT = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


async def read(network: OctoNetwork, peer: str, root: str, start: int, length: int) -> bytes:
    data = bytearray()
    async with aclosing(network.content_of(peer).read_range(root, start, length)) as pieces:  # type: ignore[arg-type]
        async for piece in pieces:
            data += piece
    return bytes(data)


async def test_a_peer_is_a_source_like_any_other(join: Join, new_shelf: NewShelf) -> None:
    shelf, content = new_shelf(), os.urandom(5 * MIB + 12_345)
    root = shelf.put(content)
    async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
        source = anna.content_of(bob.peer)
        assert source.name == f"peer {bob.peer}"
        await check_source(source, root=root, content=content, absent=ABSENT)


async def test_what_is_not_for_us_is_told_in_the_words_of_what_is_not_there(join: Join, new_shelf: NewShelf) -> None:
    shelf = new_shelf()
    private, missing = shelf.put(b"x" * 2 * MIB, private=True), ABSENT
    async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
        words = set()
        for cid in (private, missing):
            with pytest.raises(ContentUnavailable) as refusal:
                await anna.content_of(bob.peer).block(cid)
            words.add(str(refusal.value))
            with pytest.raises(ContentUnavailable) as refusal:
                await read(anna, bob.peer, cid, 0, 10)
            words.add(str(refusal.value))
        assert len(words) == 1
        assert "/secret/folder" not in words.pop()
        shelf.private_for = anna.peer
        assert await read(anna, bob.peer, private, 0, 10) == b"x" * 10


async def test_a_node_without_a_shelf_has_nothing(join: Join) -> None:
    async with join("bob") as bob, join("anna", to=bob) as anna:
        with pytest.raises(ContentUnavailable, match="no such content"):
            await anna.content_of(bob.peer).block(ABSENT)
        with pytest.raises(ContentUnavailable, match="no such content"):
            await anna.ticket(bob.peer)


async def test_tickets_catalogs_and_pins_are_answered_to_the_authenticated_peer(
    join: Join, new_shelf: NewShelf
) -> None:
    shelf = new_shelf()
    manifest = shelf.put(b"")
    async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
        assert await anna.ticket(bob.peer) == f"a ticket for {anna.peer}"
        assert await anna.catalog(bob.peer, b"\x01" * 20, "octo") == b"catalog of " + b"\x01" * 20
        with pytest.raises(ContentUnavailable):
            await anna.catalog(bob.peer, b"\x01" * 20, "another")
        await anna.ask_to_pin(bob.peer, manifest)
        assert shelf.pinned == [(anna.peer, manifest)]
        with pytest.raises(ContentUnavailable):
            await anna.ask_to_pin(bob.peer, ABSENT)


async def test_a_peer_that_nobody_can_reach_is_unavailable(join: Join, make_key: Callable[[str], PeerKey]) -> None:
    async with join("anna") as anna:
        with pytest.raises(ContentUnavailable, match="no address"):
            await anna.content_of(make_key("nobody").peer).block(ABSENT)


async def test_over_the_limit_of_streams_the_answer_is_busy_and_later_there_is_room(
    join: Join, new_shelf: NewShelf, limits: NetworkLimits, until: Until
) -> None:
    shelf = new_shelf()
    root = shelf.put(bytes(2 * MIB))
    few = replace(limits, content_streams_per_peer=2)
    async with join("bob", shelf=shelf, limits=few) as bob, join("anna", to=bob) as anna:
        shelf.hold = asyncio.Event()
        slow = [asyncio.create_task(read(anna, bob.peer, root, 0, 2 * MIB)) for _ in range(2)]
        await until(lambda: shelf.reading == 2)
        with pytest.raises(ContentUnavailable, match="too many requests"):
            await anna.content_of(bob.peer).block(root)
        shelf.hold.set()
        assert [len(data) for data in await asyncio.gather(*slow)] == [2 * MIB, 2 * MIB]
        await until(lambda: shelf.reading == 0)
        assert await anna.content_of(bob.peer).block(root)


async def test_many_requests_of_one_node_wait_for_each_other_and_none_is_refused(
    join: Join, new_shelf: NewShelf
) -> None:
    shelf = new_shelf()
    root = shelf.put(os.urandom(64 * 1024))
    async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
        source = anna.content_of(bob.peer)
        blocks = await asyncio.gather(*(source.block(root) for _ in range(60)))
        assert set(blocks) == {shelf.blocks[root]}


async def test_a_reader_that_pauses_makes_nobody_hold_more_than_a_few_pieces(
    join: Join, new_shelf: NewShelf, until: Until
) -> None:
    shelf = new_shelf()
    root = shelf.put(bytes(32 * MIB))
    async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
        async with aclosing(anna.content_of(bob.peer).read_range(root, 0, 32 * MIB)) as pieces:
            size = len(await anext(pieces))
            await until(lambda: shelf.read_bytes > AHEAD_BYTES)
            await asyncio.sleep(6)  # more than the 5 s after which yamux gives up a stream whose window is shut
            assert shelf.read_bytes <= AHEAD_BYTES + 3 * PIECE_LIMIT_BYTES
            async for piece in pieces:
                size += len(piece)
        assert size == 32 * MIB


async def test_a_reader_that_pauses_for_ever_is_given_up(
    join: Join, new_shelf: NewShelf, limits: NetworkLimits, until: Until
) -> None:
    shelf = new_shelf()
    root = shelf.put(bytes(32 * MIB))
    async with (
        join("bob", shelf=shelf, limits=replace(limits, content_idle_s=0.5)) as bob,
        join("anna", to=bob) as anna,
        aclosing(anna.content_of(bob.peer).read_range(root, 0, 32 * MIB)) as pieces,
    ):
        await anext(pieces)
        await until(lambda: shelf.reading == 0)
        with pytest.raises(ContentUnavailable, match="hung up"):
            async for _ in pieces:
                pass


async def test_closing_a_range_ends_it_on_both_sides_and_spares_everything_else_on_the_connection(
    join: Join, new_shelf: NewShelf, limits: NetworkLimits, until: Until, new_task: Callable[[], TaskId]
) -> None:
    shelf, chance = new_shelf(), random.Random(1)
    root = shelf.put(bytes(32 * MIB))
    patient = replace(limits, content_idle_s=300)  # what is over in time is so because it was closed
    async with join("bob", shelf=shelf, limits=patient) as bob, join("anna", to=bob) as anna:
        conversation = await anna.open_conversation(bob.peer, new_task())
        since = anna.peers()[0].connected_since_ms
        # A window update or a credit mark is under way at most of these moments: cut off half way, it would
        # leave the noise session out of step, and every stream of the connection dead.
        for _ in range(40):
            async with aclosing(anna.content_of(bob.peer).read_range(root, 0, 32 * MIB)) as pieces:
                for _ in range(chance.randrange(1, 40)):
                    await anext(pieces)
        await until(lambda: shelf.reading == 0)
        await conversation.send(Queued(position=1))
        assert (await conversation.receive(60)).body == Queued(position=1)
        assert anna.peers()[0].connected_since_ms == since


async def test_a_shelf_that_fails_half_way_ends_the_answer_early_and_tells_nothing(
    join: Join, new_shelf: NewShelf
) -> None:
    shelf = new_shelf()
    root = shelf.put(bytes(3 * MIB))

    class Worn(Exception):
        pass

    def give_out() -> Iterator[int]:
        yield MIB
        raise Worn("/secret/folder")

    steps = give_out()
    type(shelf).piece_bytes = property(lambda _: next(steps))  # type: ignore[assignment]
    try:
        async with join("bob", shelf=shelf) as bob, join("anna", to=bob) as anna:
            with pytest.raises(ContentUnavailable) as refusal:
                await read(anna, bob.peer, root, 0, 3 * MIB)
            assert "secret" not in str(refusal.value)
            assert await anna.content_of(bob.peer).block(root)
    finally:
        type(shelf).piece_bytes = MIB


async def test_a_cid_that_is_none_cannot_be_provided_or_looked_for(join: Join) -> None:
    async with join("anna") as anna:
        for call in (anna.provide, anna.find_providers):
            with pytest.raises(EncodingInvalid):
                await call("not-a-cid")
