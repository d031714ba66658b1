"""What strangers may send us, and what it may not do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Protocol

import pytest
import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from market.errors import PeerBrokeProtocol, PeerGone
from market.identity import PeerId
from market.message import Queued
from market.offer import SignedOffer
from market.ports import Conversation
from market.task import TaskId
from market.values import encode
from p2p.discovery import OFFERS_PROTOCOL, OFFERS_TOPIC
from p2p.endpoints import parse_endpoint
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork
from p2p.streams import AGENT_PROTOCOL
from p2p.wire import FRAME_LIMIT_BYTES

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
MakeKey = Callable[[str], PeerKey]
NewTask = Callable[[], TaskId]
Until = Callable[..., Awaitable[None]]
MESHSUB = "/meshsub/1.2.0"


class Stranger(Protocol):
    """A libp2p host that sends whatever it likes: `Mallory` in conftest."""

    peer: PeerId

    async def dial(self, address: str) -> None: ...
    async def send(self, peer: str, protocol: str, *pieces: bytes, pause_s: float = 0, limit_s: float = 60) -> bool: ...


NewMallory = Callable[..., AbstractAsyncContextManager[Stranger]]


async def answer_agent(_: object, stream: INetStream) -> None:
    with suppress(Exception):
        await stream.read(1)
        await stream.write(b"\xff" * 100)
        await trio.sleep(5)


async def check_serves(join: Join, bob: OctoNetwork, task: TaskId) -> None:
    async with join("a friend", to=bob) as friend:
        conversation = await friend.open_conversation(bob.peer, task)
        await conversation.send(Queued(position=7))
        assert (await conversation.receive(60)).body == Queued(position=7)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,
        (FRAME_LIMIT_BYTES + 1).to_bytes(4, "big") + b"x" * 100,
        (5).to_bytes(4, "big") + b"\x81" * 5,
        (100_000).to_bytes(4, "big") + b"\x81" * 100_000,
    ],
    ids=["http", "ones", "oversized", "no message", "nested without end"],
)
async def test_garbage_ends_its_own_stream_and_nothing_else(
    join: Join, mallory: NewMallory, new_task: NewTask, garbage: bytes
) -> None:
    async with join("bob") as bob, join("anna", to=bob) as anna, mallory({AGENT_PROTOCOL: answer_agent}) as stranger:
        conversation = await anna.open_conversation(bob.peer, new_task())
        await stranger.dial(bob.addresses()[0])
        for protocol in (AGENT_PROTOCOL, OFFERS_PROTOCOL, MESHSUB):
            if protocol != MESHSUB:
                assert await stranger.send(bob.peer, protocol, garbage)
            else:
                sending = asyncio.create_task(stranger.send(bob.peer, protocol, garbage))
                await asyncio.sleep(0.1)
                sending.cancel()
        await conversation.send(Queued(position=1))
        assert (await conversation.receive(60)).body == Queued(position=1)
        await check_serves(join, bob, new_task())


async def test_a_frame_that_never_ends_is_cut_off(
    join: Join, mallory: NewMallory, limits: NetworkLimits, new_task: NewTask
) -> None:
    strict = replace(limits, frame_timeout_s=1.0)
    async with join("bob", limits=strict) as bob, mallory({AGENT_PROTOCOL: answer_agent}) as stranger:
        await stranger.dial(bob.addresses()[0])
        drip = [(500).to_bytes(4, "big"), *([b"\xa6"] * 400)]
        async with asyncio.timeout(60):  # the limit is 1 s for the frame, not for each byte; the drip lasts 80
            assert await stranger.send(bob.peer, AGENT_PROTOCOL, *drip, pause_s=0.2, limit_s=100)
        await check_serves(join, bob, new_task())


async def test_a_second_stream_of_a_peer_replaces_the_first(join: Join, mallory: NewMallory) -> None:
    async with join("bob") as bob, mallory({AGENT_PROTOCOL: answer_agent}) as stranger:
        await stranger.dial(bob.addresses()[0])
        first = asyncio.create_task(stranger.send(bob.peer, AGENT_PROTOCOL))
        await asyncio.sleep(0.2)
        assert not first.done()
        second = asyncio.create_task(stranger.send(bob.peer, AGENT_PROTOCOL))
        assert await asyncio.wait_for(first, 60)
        assert not second.done()
        second.cancel()


async def test_a_peer_that_answers_garbage_broke_the_protocol(
    join: Join, mallory: NewMallory, new_task: NewTask, until: Until
) -> None:
    async with join("bob") as bob, mallory({AGENT_PROTOCOL: answer_agent}) as stranger:
        await stranger.dial(bob.addresses()[0])
        await until(bob.peers)  # the dialer is done first
        conversation = await bob.open_conversation(stranger.peer, new_task())
        await conversation.send(Queued(position=1))
        with pytest.raises(PeerBrokeProtocol):
            await conversation.receive(60)
        with pytest.raises((PeerBrokeProtocol, PeerGone)):
            await conversation.send(Queued(position=1))


async def test_gossip_that_libp2p_chokes_on_does_not_end_the_host(
    join: Join, mallory: NewMallory, new_task: NewTask, until: Until
) -> None:
    def rpc(**fields: object) -> bytes:
        message = rpc_pb2.Message(**{"topicIDs": [OFFERS_TOPIC], "data": os.urandom(20), **fields})
        body = rpc_pb2.RPC(publish=[message]).SerializeToString()
        assert len(body) < 2**14
        return bytes((len(body) & 127 | 128, len(body) >> 7)) + body

    async with join("bob") as bob, mallory({AGENT_PROTOCOL: answer_agent}) as stranger:
        await stranger.dial(bob.addresses()[0])
        assert bob._bridge is not None
        first_run = bob._bridge
        pieces = [
            rpc(),
            rpc(from_id=b"\xff", seqno=b"1", signature=b"1", key=b"\xff"),
            rpc(from_id=bytes.fromhex("0024080112") + b"x", seqno=b"", signature=b"", key=b""),
            rpc(from_id=b"", signature=b"\x00" * 64, key=b"\x08\x01\x12\x20" + bytes(32)),
        ]
        sending = asyncio.create_task(stranger.send(bob.peer, MESHSUB, *pieces, pause_s=0.05))
        await asyncio.sleep(0.5)
        sending.cancel()
        assert bob._bridge is first_run
        await check_serves(join, bob, new_task())


async def test_a_plaintext_dialer_is_refused(join: Join, until: Until, new_task: NewTask) -> None:
    async def dial_in_plaintext(address: str) -> str:
        pair = create_new_key_pair()
        plain = new_host(key_pair=pair, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(pair)})
        endpoint = parse_endpoint(address)
        async with plain.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            info = PeerInfo(ID.from_string(str(endpoint.peer)), [Multiaddr(endpoint.address)])
            try:
                with trio.fail_after(8):
                    await plain.connect(info)
            except Exception as error:  # noqa: BLE001 - libp2p raises many kinds
                return type(error).__name__
        return "connected"

    async with join("bob") as bob:
        outcome = await asyncio.to_thread(trio.run, dial_in_plaintext, bob.addresses()[0])
        assert outcome != "connected"
        assert bob.peers() == ()
        await check_serves(join, bob, new_task())


async def test_garbage_on_the_port_itself_is_shrugged_off(join: Join, new_task: NewTask) -> None:
    async with join("bob") as bob:
        endpoint = parse_endpoint(bob.addresses()[0])
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(4096),
            b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 99,
        ):
            _, writer = await asyncio.open_connection(endpoint.ip, endpoint.port)
            writer.write(garbage)
            await writer.drain()
            writer.close()
        await check_serves(join, bob, new_task())


async def test_a_message_out_of_order_ends_the_conversation_not_the_link(join: Join, new_task: NewTask) -> None:
    async def skip_one(conversation: Conversation) -> None:
        await conversation.receive(60)
        conversation._sent += 1  # type: ignore[attr-defined]
        await conversation.send(Queued(position=0))
        await conversation.receive(60)

    async with join("bob", serve=skip_one) as bob, join("anna", to=bob) as anna:
        conversation = await anna.open_conversation(bob.peer, new_task())
        other = await anna.open_conversation(bob.peer, new_task())
        await conversation.send(Queued(position=0))
        with pytest.raises(PeerBrokeProtocol, match="where 0 was due"):
            await conversation.receive(60)
        await other.send(Queued(position=0))


async def test_gossip_carries_no_offer_that_does_not_check(
    join: Join, make_key: MakeKey, make_offer: Callable[..., SignedOffer], broken_binding: Callable[[PeerKey], object],
    until: Until,
) -> None:  # fmt: skip
    async with join("bob") as bob, join("anna", to=bob) as anna:
        bad = make_offer(make_key("anna"), binding=broken_binding(make_key("anna")))
        assert encode(SignedOffer, bad)
        # Anna's own node would not vouch for it either: it goes out as a stranger would send it.
        await anna.announce(bad)
        await until(bob.refused_offers)
        (refused, *_) = bob.refused_offers()
        assert refused.peer == refused.via == anna.peer
        assert "not signed by its wallet" in refused.reason
        assert bob.offers() == ()
