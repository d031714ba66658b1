"""Provider records over real hosts: said, found, confirmed, kept through restarts, and bounded."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import pytest

from market.offer import SignedOffer
from market.values import cid_text
from p2p.kademlia import Contacts, key_of
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewShelf = Callable[..., Any]
Until = Callable[..., Awaitable[None]]
MIB = 1024 * 1024


def fake_root(name: str) -> str:
    return cid_text(b"\x01\x70\x12\x20" + hashlib.sha256(name.encode()).digest())


async def finds(network: OctoNetwork, cid: str, *peers: str, within_s: float = 60) -> None:
    """Look until exactly these providers are found: saying takes a while."""
    found: set[str] = set()
    async with asyncio.timeout(within_s):
        while found != set(peers):
            answer = await network.find_providers(cid, timeout_s=5)
            assert len(answer) == len(set(answer)), "nobody is named twice"
            assert network.peer not in answer
            found = set(answer)
            await asyncio.sleep(0.05)


async def test_in_a_line_of_nodes_the_last_finds_what_the_first_has_and_reads_it(
    join: Join,
    new_shelf: NewShelf,
    make_key: Callable[[str], PeerKey],
    make_offer: Callable[..., SignedOffer],
) -> None:
    shelf, content = new_shelf(), os.urandom(4 * MIB)
    root = shelf.put(content)
    async with join("bob") as bob, join("anna", to=bob, shelf=shelf) as anna, join("carl", to=bob) as carl:
        await anna.announce(make_offer(make_key("anna"), content=("/ip4/127.0.0.1/tcp/8081",)))
        await anna.provide(root)
        await finds(carl, root, anna.peer)
        assert anna.peer in {peer.peer for peer in carl.peers()}
        assert [offer.offer.content for offer in carl.offers() if offer.offer.peer == anna.peer] == [
            ("/ip4/127.0.0.1/tcp/8081",)
        ]
        source = carl.content_of(anna.peer)
        assert await source.block(root) == shelf.blocks[root]
        data = b""
        async with aclosing(source.read_range(root, 500_000, 3 * MIB)) as pieces:
            async for piece in pieces:
                data += piece
        assert data == content[500_000 : 500_000 + 3 * MIB]


async def test_a_provider_that_hangs_up_once_it_was_found_is_reached_again(
    join: Join, new_shelf: NewShelf, until: Until
) -> None:
    """It met the seeker on a look-up of its own, say, and does not keep whom it only passes."""
    shelf = new_shelf()
    root = shelf.put(b"content")
    async with join("bob") as bob, join("anna", to=bob, shelf=shelf) as anna, join("carl", to=bob) as carl:
        await anna.provide(root)
        await finds(carl, root, anna.peer)
        assert anna._bridge is not None
        assert anna._mesh is not None
        await anna._bridge.in_trio(anna._mesh._host.abort, carl.peer)
        await until(lambda: {peer.peer for peer in carl.peers()} == {bob.peer})
        assert await carl.content_of(anna.peer).block(root) == shelf.blocks[root]


async def test_a_record_travels_further_than_a_neighbour(join: Join) -> None:
    names = ["one", "two", "three", "four", "five"]
    root = fake_root("far away")
    async with AsyncExitStack() as stack:
        line: list[OctoNetwork] = []
        for name in names:
            line.append(await stack.enter_async_context(join(name, to=line[-1] if line else None)))
        await line[0].provide(root)
        await finds(line[-1], root, line[0].peer)


async def test_thirty_roots_are_all_found_and_a_root_that_nobody_has_is_not(join: Join) -> None:
    roots = [fake_root(f"root {number}") for number in range(30)]
    async with join("bob") as bob, join("anna", to=bob) as anna, join("carl", to=bob) as carl:
        for root in roots:
            await anna.provide(root)
        for root in roots:
            await finds(carl, root, anna.peer)
        assert list(await carl.find_providers(fake_root("nobody's"), timeout_s=5)) == []


async def test_every_provider_is_found_once(join: Join) -> None:
    root = fake_root("popular")
    async with (
        join("bob") as bob,
        join("anna", to=bob) as anna,
        join("carl", to=bob) as carl,
        join("dora", to=bob) as dora,
    ):
        for provider in (anna, bob, carl):
            await provider.provide(root)
        await finds(dora, root, anna.peer, bob.peer, carl.peer)
        await finds(anna, root, bob.peer, carl.peer)  # never itself


async def test_a_provider_that_is_gone_is_not_found(join: Join) -> None:
    root = fake_root("short-lived")
    async with join("bob") as bob, join("carl", to=bob) as carl:
        async with join("anna", to=bob) as anna:
            await anna.provide(root)
            await finds(carl, root, anna.peer)
        await finds(carl, root)


async def test_a_peer_that_joins_later_learns_what_we_provide(join: Join) -> None:
    root = fake_root("early")
    async with join("anna") as anna:
        await anna.provide(root)
        async with join("bob", to=anna) as bob, join("carl", to=bob) as carl:
            await finds(carl, root, anna.peer)


async def test_what_we_provide_outlives_a_crash_of_the_network_thread(join: Join, until: Until) -> None:
    root, dropped = fake_root("kept"), fake_root("dropped")
    async with join("bob") as bob, join("anna", to=bob) as anna:
        for cid in (root, dropped):
            await anna.provide(cid)
        await anna.stop_providing(dropped)
        first = anna._bridge
        assert first is not None

        def crash() -> None:
            raise RuntimeError("a bug in the network thread")

        first.post_to_trio(crash)
        await until(lambda: anna._bridge is not None and anna._bridge is not first)
        assert anna._mesh is not None
        assert anna._mesh._dht is not None
        await until(lambda: set(anna._mesh._dht._roots) == {root})  # type: ignore[union-attr]
        async with join("carl", to=anna) as carl:
            await finds(carl, root, anna.peer)


async def test_a_node_without_the_dht_neither_answers_nor_finds(join: Join) -> None:
    root = fake_root("switched off")
    async with join("bob", dht=False) as bob, join("anna", to=bob) as anna, join("carl", to=bob) as carl:
        await anna.provide(root)
        await bob.provide(root)
        assert list(await bob.find_providers(root)) == []
        assert list(await carl.find_providers(root, timeout_s=3)) == []


async def test_whom_a_look_up_only_passes_does_not_stay(join: Join, limits: NetworkLimits, until: Until) -> None:
    # Anna and dora hear of each other from bob's answers alone: no offers, so no address book names them.
    root, alone = fake_root("passing by"), replace(limits, outbound_peers=0)
    async with join("bob") as bob, join("anna", to=bob) as anna, join("dora", to=bob, limits=alone) as dora:

        async def meets_anna() -> bool:
            await dora.find_providers(root, timeout_s=5)
            return anna.peer in {known.peer for known in contacts_of(dora).nearest(key_of(root))}

        async with asyncio.timeout(60):
            while not await meets_anna():
                await asyncio.sleep(0.05)
        await until(lambda: {peer.peer for peer in dora.peers()} == {bob.peer})
        await until(lambda: {peer.peer for peer in anna.peers()} == {bob.peer})


def contacts_of(network: OctoNetwork) -> Contacts:
    assert network._mesh is not None
    assert network._mesh._dht is not None
    return network._mesh._dht._contacts


async def test_a_neighbour_that_comes_back_with_an_empty_memory_is_told_again(join: Join) -> None:
    root = fake_root("told twice")
    async with join("anna") as anna:
        await anna.provide(root)
        for _ in range(2):
            async with join("bob", to=anna) as bob, join("carl", to=bob) as carl:
                await finds(carl, root, anna.peer)
