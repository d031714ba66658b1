"""Offers and addresses travel through the mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from market.errors import EncodingInvalid, NodeMisconfigured, PeerGone
from market.offer import SignedOffer
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
MakeKey = Callable[[str], PeerKey]
MakeOffer = Callable[..., SignedOffer]
Until = Callable[..., Awaitable[None]]


def offered(network: OctoNetwork) -> set[tuple[str, int]]:
    return {(checked.offer.peer, checked.offer.seq) for checked in network.offers()}


async def test_a_late_joiner_learns_the_offers_at_once(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        await anna.announce(make_offer(make_key("anna")))
        await until(lambda: offered(hub) == {(anna.peer, 1)})
        async with join("late", to=hub) as late:
            await until(lambda: offered(late) == {(anna.peer, 1)})


async def test_an_offer_made_after_the_connection_arrives_at_once(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        await hub.announce(make_offer(make_key("hub")))
        await until(lambda: offered(anna) == {(hub.peer, 1)})


async def test_newer_offers_travel_by_gossip_across_a_peer_in_between(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna, join("bob", to=hub) as bob:
        for seq in range(1, 6):
            await anna.announce(make_offer(make_key("anna"), seq=seq))
            await until(lambda seq=seq: offered(bob) == offered(hub) == {(anna.peer, seq)})


async def test_an_offer_expires_by_itself(join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        await anna.announce(make_offer(make_key("anna"), ttl_ms=6000))
        await until(lambda: offered(hub))
        await until(lambda: not offered(hub))
        assert [peer.peer for peer in hub.peers()] == [anna.peer]


async def test_the_offer_of_a_peer_that_leaves_goes_with_it(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    async with join("hub") as hub:
        async with join("anna", to=hub) as anna:
            await anna.announce(make_offer(make_key("anna")))
            await until(lambda: offered(hub))
        await until(lambda: not offered(hub) and not hub.peers())
        async with join("anna", to=hub) as anna:  # back within the life of its old offer, which still holds
            await anna.announce(make_offer(make_key("anna")))
            await until(lambda: offered(hub))


async def test_peers_find_each_other_through_the_addresses_in_offers(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        await anna.announce(make_offer(make_key("anna"), addresses=anna.addresses()))
        async with join("bob", to=hub) as bob:
            await until(lambda: anna.peer in {peer.peer for peer in bob.peers()})


async def test_an_offer_cannot_make_us_knock_where_its_peer_does_not_live(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    knocks: list[object] = []
    server = await asyncio.start_server(lambda *_: knocks.append(1), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    somebody = make_key("somebody else").peer
    async with server, join("hub") as hub, join("anna", to=hub) as anna:
        addresses = (f"/ip4/127.0.0.1/tcp/{port}/p2p/{somebody}", f"/dns4/localhost/tcp/{port}", "nonsense")
        await anna.announce(make_offer(make_key("anna"), addresses=addresses))
        await until(lambda: offered(hub))
        async with join("bob", to=hub) as bob:
            await until(lambda: offered(bob))
            await asyncio.sleep(0.6)
        assert knocks == []
        # The same door is tried once an offer names it for its own peer: the check above sees knocks.
        addresses = (f"/ip4/127.0.0.1/tcp/{port}",)
        await anna.announce(make_offer(make_key("anna"), seq=2, addresses=addresses))
        async with join("bob", to=hub) as bob:
            await until(lambda: knocks)


async def test_callers_can_wait_for_news(join: Join, make_key: MakeKey, make_offer: MakeOffer) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        seen = hub.version
        waiting = asyncio.create_task(hub.wait_for_change(seen))
        await anna.announce(make_offer(make_key("anna")))
        assert await asyncio.wait_for(waiting, 60) > seen


async def test_a_hub_of_many_providers_loses_no_offer(
    join: Join, make_key: MakeKey, make_offer: MakeOffer, until: Until
) -> None:
    names = [f"provider {number}" for number in range(8)]
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(join("hub"))
        networks = [await stack.enter_async_context(join(name, to=hub)) for name in names]
        for name, network in zip(names, networks, strict=True):
            await network.announce(make_offer(make_key(name)))
        everyone = {(network.peer, 1) for network in networks}
        for network in networks:
            await until(lambda network=network: offered(network) | {(network.peer, 1)} == everyone)


async def test_the_address_book_brings_us_back_without_bootstrap(join: Join, until: Until, tmp_path: Path) -> None:
    book = tmp_path / "peers.json"
    async with join("hub") as hub:
        async with join("anna", to=hub, address_book=book):
            pass
        assert json.loads(book.read_text())["addresses"] == [hub.addresses()[0]]
        async with join("anna", address_book=book) as anna:
            await until(lambda: [peer.peer for peer in anna.peers()] == [hub.peer])


async def test_a_damaged_address_book_is_ignored(join: Join, tmp_path: Path) -> None:
    book = tmp_path / "peers.json"
    book.write_bytes(b"\xff\x00 not json")
    async with join("anna", address_book=book) as anna:
        assert anna.addresses()


async def test_what_is_known_of_a_connected_peer(join: Join, until: Until) -> None:
    async with join("hub") as hub, join("anna", to=hub) as anna:
        await until(lambda: anna.peers() and anna.peers()[0].rtt_ms is not None)
        await until(hub.peers)
        (seen,) = anna.peers()
        assert (seen.peer, seen.direction) == (hub.peer, "outbound")
        assert f"{seen.address}/p2p/{hub.peer}" == hub.addresses()[0]
        assert seen.connected_since_ms > 0
        assert hub.peers()[0].direction == "inbound"


async def test_a_port_in_use_is_a_clear_error(join: Join) -> None:
    async with join("anna") as anna:
        with pytest.raises(NodeMisconfigured, match="in use"):
            async with join("bob", listen=anna.addresses()[0].split("/p2p/")[0]):
                pass


async def test_addresses_that_are_none_are_refused(join: Join) -> None:
    with pytest.raises(NodeMisconfigured):
        async with join("bob", listen="/dns4/localhost/tcp/0"):
            pass
    with pytest.raises(EncodingInvalid):
        async with join("bob", to="/dns4/localhost/tcp/1/p2p/x"):
            pass
    with pytest.raises(NodeMisconfigured, match="lacks"):
        async with join("bob", to="/ip4/127.0.0.1/tcp/1"):
            pass


async def test_an_unreachable_peer_is_gone(join: Join, make_key: MakeKey, limits: NetworkLimits) -> None:
    async with join("anna", limits=replace(limits, dial_timeout_s=1)) as anna:
        with pytest.raises(PeerGone):
            await anna.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{make_key('nobody').peer}")
        with pytest.raises(PeerGone, match="no address"):
            await anna.open_conversation(make_key("a stranger").peer, bytes(32))  # type: ignore[arg-type]
        with pytest.raises(PeerGone):  # the right address, another peer behind it
            await anna.connect(f"{anna.addresses()[0].split('/p2p/')[0]}/p2p/{make_key('nobody').peer}")
