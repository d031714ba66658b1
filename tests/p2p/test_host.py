"""The host obeys us and nobody else."""

from __future__ import annotations

import pytest
import trio
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from market.errors import PeerGone
from p2p.endpoints import Endpoint, parse_endpoint
from p2p.host import open_host
from p2p.keys import PeerKey
from p2p.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.net
ANNA, BOB = PeerKey(b"a" * 32), PeerKey(b"b" * 32)
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


def test_libp2p_never_dials_by_itself() -> None:
    async def main() -> None:
        async with open_host(ANNA, LOOPBACK, DEFAULT_LIMITS) as anna, open_host(BOB, LOOPBACK, DEFAULT_LIMITS) as bob:
            # What identify would have put there, on a stranger's word:
            there = [Multiaddr(address) for address in bob.listening()]
            anna.libp2p.get_peerstore().add_addrs(ID.from_string(BOB.peer), there, 600)
            await anna.libp2p.get_network().auto_connector.maybe_connect()
            with pytest.raises(SwarmException):
                await anna.libp2p.connect(PeerInfo(ID.from_string(BOB.peer), there))
            with pytest.raises(PeerGone):
                await anna.open_stream(BOB.peer, "/ipfs/ping/1.0.0")
            assert anna.connected() == ()

    trio.run(main)


def test_a_failed_dial_does_not_poison_the_peer() -> None:
    async def main() -> None:
        async with open_host(ANNA, LOOPBACK, DEFAULT_LIMITS) as anna, open_host(BOB, LOOPBACK, DEFAULT_LIMITS) as bob:
            with pytest.raises(PeerGone):
                await anna.dial(Endpoint(ip="127.0.0.1", port=1, peer=BOB.peer))
            await anna.dial(parse_endpoint(bob.addresses()[0]))
            assert anna.is_connected(BOB.peer)

    trio.run(main)


def test_arrivals_and_departures_are_told_once_per_peer() -> None:
    heard: list[str] = []

    async def main() -> None:
        async with open_host(ANNA, LOOPBACK, DEFAULT_LIMITS) as anna, open_host(BOB, LOOPBACK, DEFAULT_LIMITS) as bob:
            anna.on_connected = lambda _: heard.append("came")
            anna.on_disconnected = lambda _: heard.append("went")
            for _ in range(2):
                await anna.dial(parse_endpoint(bob.addresses()[0]))
                await trio.sleep(0.1)
                await anna.abort(BOB.peer)
                await trio.sleep(0.4)

    trio.run(main)
    assert heard == ["came", "went", "came", "went"]


def test_what_a_handler_raises_ends_its_stream_alone() -> None:
    async def main() -> None:
        async with open_host(ANNA, LOOPBACK, DEFAULT_LIMITS) as anna, open_host(BOB, LOOPBACK, DEFAULT_LIMITS) as bob:

            async def boom(peer: object, stream: object) -> None:
                raise ValueError("boom")

            bob.handle("/boom", boom)
            await anna.dial(parse_endpoint(bob.addresses()[0]))
            for _ in range(3):
                with pytest.raises((PeerGone, StreamError)):  # the reset may overtake the negotiation
                    await (await anna.open_stream(BOB.peer, "/boom")).read(1)
            assert anna.is_connected(BOB.peer)

    trio.run(main)


def test_a_listener_on_every_interface_names_addresses_that_can_be_dialled() -> None:
    async def main() -> None:
        async with open_host(ANNA, ["/ip4/0.0.0.0/tcp/0"], DEFAULT_LIMITS) as anna:
            addresses = [parse_endpoint(address) for address in anna.addresses()]
            assert "127.0.0.1" in {address.ip for address in addresses}
            assert all(address.peer == ANNA.peer and address.port for address in addresses)

    trio.run(main)
