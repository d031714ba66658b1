"""What strangers may do to the DHT: lie, flood, hang; and what it may cost us. And libp2p's own DHT as a neighbour."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb import kademlia_pb2
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from market.identity import PeerId
from market.values import cid_text
from p2p.bridge import Bridge, run_trio
from p2p.host import open_host
from p2p.kademlia import key_of
from p2p.kadwire import KAD_PROTOCOL
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

pytestmark = pytest.mark.net

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewMallory = Callable[..., AbstractAsyncContextManager[Any]]
MakeKey = Callable[[str], PeerKey]
Until = Callable[..., Awaitable[None]]
pb: Any = kademlia_pb2
LOCAL = "/ip4/127.0.0.1/tcp/1"


def root_of(name: str) -> str:
    return cid_text(b"\x01\x70\x12\x20" + hashlib.sha256(name.encode()).digest())


def framed(message: Any) -> bytes:
    body = message.SerializeToString()
    size = len(body)
    return (bytes((size & 127 | 128, size >> 7)) if size > 127 else bytes((size,))) + body


def add_provider(cid: str, peer: PeerId, *addresses: str) -> bytes:
    message = pb.Message(type=pb.Message.ADD_PROVIDER, key=key_of(cid))
    message.providerPeers.add(
        id=ID.from_string(peer).to_bytes(), addrs=[Multiaddr(address).to_bytes() for address in addresses]
    )
    return framed(message)


def records(network: OctoNetwork) -> Any:
    return network._config.records


async def check_works(provider: OctoNetwork, seeker: OctoNetwork, name: str, within_s: float = 60) -> None:
    await provider.provide(root_of(name))
    async with asyncio.timeout(within_s):
        while provider.peer not in await seeker.find_providers(root_of(name), timeout_s=5):
            await asyncio.sleep(0.05)


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: 127.0.0.1:4001\r\nUser-Agent: a browser that has lost its way\r\n\r\n",
    "ones": b"\xff" * 64,
    "a length of 4 GB": b"\xff\xff\xff\xff\x0f",
    "a length without end": b"\x80" * 40,
    "no bytes": b"\x00",
    "no key": framed(pb.Message(type=3)),
    "no protobuf": b"\x05\xff\xff\xff\xff\xff",
    "a value to keep": framed(pb.Message(type=0, key=b"k", record=pb.Record(key=b"k", value=b"v" * 90))),
}
HALF_A_MESSAGE = b"\x7f" + b"\x08\x04"


async def test_garbage_ends_its_own_stream_and_the_dht_goes_on(join: Join, mallory: NewMallory) -> None:
    async with join("bob") as bob, join("anna", to=bob) as anna, join("carl", to=bob) as carl, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        run = bob._bridge
        for name, garbage in GARBAGE.items():
            assert await stranger.send(bob.peer, KAD_PROTOCOL, garbage), name
        half = asyncio.create_task(stranger.send(bob.peer, KAD_PROTOCOL, HALF_A_MESSAGE))
        await check_works(anna, carl, "after garbage")
        assert bob._bridge is run
        half.cancel()


async def test_a_stranger_speaks_for_itself_alone(join: Join, mallory: NewMallory) -> None:
    root = root_of("not anna's")
    async with join("bob") as bob, join("anna", to=bob) as anna, join("carl", to=bob) as carl, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        await stranger.send(bob.peer, KAD_PROTOCOL, add_provider(root, anna.peer, LOCAL))
        assert len(records(bob)) == 0
        assert list(await carl.find_providers(root, timeout_s=3)) == []


async def test_an_address_that_we_may_not_dial_is_not_kept(join: Join, mallory: NewMallory, until: Until) -> None:
    root = root_of("a printer")
    async with join("bob") as bob, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        printer = add_provider(root, stranger.peer, "/ip4/192.168.1.1/tcp/9100", LOCAL)
        sending = asyncio.create_task(stranger.send(bob.peer, KAD_PROTOCOL, printer))
        await until(lambda: len(records(bob)))
        sending.cancel()
        (kept,) = records(bob).of(key_of(root), now_s=0)
        assert [each.address for each in kept.endpoints] == [LOCAL]  # it is connected from loopback


async def test_a_flood_of_records_is_slowed_down_and_bounded(
    join: Join, mallory: NewMallory, limits: NetworkLimits
) -> None:
    few = replace(limits, dht_records_per_peer=50, dht_pace_s=1.05)
    async with join("bob", limits=few) as bob, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        began_s = time.monotonic()
        for batch in range(5):
            flood = [add_provider(root_of(f"{batch} {number}"), stranger.peer, LOCAL) for number in range(60)]
            await stranger.send(bob.peer, KAD_PROTOCOL, *flood, limit_s=8)
        windows = 1 + (time.monotonic() - began_s) // (10 * few.dht_pace_s)
        assert 0 < len(records(bob)) <= 20 * windows
    quick = replace(limits, dht_records_per_peer=50, dht_pace_s=0.0)
    async with join("bob", limits=quick) as bob, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        for batch in range(3):
            flood = [add_provider(root_of(f"{batch} {number}"), stranger.peer, LOCAL) for number in range(60)]
            await stranger.send(bob.peer, KAD_PROTOCOL, *flood, limit_s=8)
        assert len(records(bob)) == 50


async def test_silent_streams_of_one_peer_leave_the_dht_to_the_others(join: Join, mallory: NewMallory) -> None:
    async with join("bob") as bob, join("anna", to=bob) as anna, join("carl", to=bob) as carl, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        clock = asyncio.get_running_loop().time

        # libp2p's KadDHT serves twelve streams at once, with no limit on how long they say nothing.
        async def say_nothing() -> None:
            while True:
                began_s = clock()
                await stranger.send(bob.peer, KAD_PROTOCOL)
                if clock() - began_s < 5:  # there was no room; where there was, silence is ended after 10 s
                    await asyncio.sleep(5)

        silent = [asyncio.create_task(say_nothing()) for _ in range(60)]
        await asyncio.sleep(1)
        await check_works(anna, carl, "beside silence")
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_a_liar_cannot_crowd_out_the_peer_that_is_there(
    join: Join, mallory: NewMallory, make_key: MakeKey
) -> None:
    """Mallory answers every question with twenty providers and twenty neighbours at dead addresses."""

    async def lie(_: PeerId, stream: INetStream) -> None:
        with suppress(Exception):
            while data := await stream.read(65536):
                asked = pb.Message()
                asked.ParseFromString(data[1:] if data[0] < 128 else data[2:])
                answer = pb.Message(type=asked.type, key=asked.key)
                for number in range(20):
                    for field, name in ((answer.providerPeers, "p"), (answer.closerPeers, "c")):
                        fake = ID.from_string(make_key(f"{name}{number}").peer).to_bytes()
                        field.add(id=fake, addrs=[Multiaddr(f"/ip4/127.0.0.1/tcp/{number + 1}").to_bytes()])
                await stream.write(framed(answer))

    async with (
        join("bob") as bob,
        join("anna", to=bob) as anna,
        join("carl", to=bob) as carl,
        mallory({KAD_PROTOCOL: lie}) as liar,
    ):
        await carl.connect(liar.addresses()[0])
        await check_works(anna, carl, "among lies")
        assert {peer.peer for peer in carl.peers()} == {anna.peer, bob.peer, liar.peer}


async def test_a_neighbour_that_answers_nonsense_or_nothing_is_passed_over(join: Join, mallory: NewMallory) -> None:
    async def mumble(_: PeerId, stream: INetStream) -> None:
        with suppress(Exception):
            await stream.read(65536)
            await stream.write(b"\xff\xff\xff\xff\x0f")

    async def sleep(_: PeerId, stream: INetStream) -> None:
        await trio.sleep(30)

    async with (
        join("bob") as bob,
        join("anna", to=bob) as anna,
        join("carl", to=bob) as carl,
        mallory({KAD_PROTOCOL: mumble}) as mumbler,
        mallory({KAD_PROTOCOL: sleep}, "sleeper") as sleeper,
    ):
        for stranger in (mumbler, sleeper):
            await carl.connect(stranger.addresses()[0])
        await check_works(anna, carl, "beside nonsense")


async def test_libp2ps_own_dht_keeps_our_records_and_hands_them_on(join: Join, make_key: MakeKey) -> None:
    """The messages are Kademlia's: a stock KadDHT between two of our nodes will do, under our protocol's name."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stock(bridge: Bridge) -> None:
        async with open_host(make_key("stock"), ["/ip4/127.0.0.1/tcp/0"], NetworkLimits()) as host:
            dht = KadDHT(host.libp2p, DHTMode.SERVER)
            host.libp2p.set_stream_handler(TProtocol(KAD_PROTOCOL), dht.handle_stream)
            async with background_trio_service(dht):
                bridge.post_to_asyncio(ready.set_result, host.addresses()[0])
                await trio.sleep_forever()

    running = asyncio.create_task(run_trio(stock))
    try:
        address = await asyncio.wait_for(ready, 60)
        async with join("anna") as anna, join("carl") as carl:
            await anna.connect(address)
            await carl.connect(address)
            await check_works(anna, carl, "through a stock DHT")
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
