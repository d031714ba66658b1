"""Parts that the mesh tests share: real keys, real signed offers, real networks on loopback, real processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from market.errors import ContentUnavailable
from market.identity import Binding, PeerId, SignedBinding, sign_binding
from market.offer import Offer, SignedOffer, Tier, sign_offer
from market.ports import ContentShelf, Conversation
from market.signing import Secp256k1Signer
from market.task import Privacy
from market.values import cid_text
from p2p.bridge import Bridge, run_trio
from p2p.endpoints import parse_endpoint
from p2p.host import Host, StreamHandler, open_host
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork, open_network

NETWORK = "octo-test"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


def _binding(key: PeerKey, network: str) -> SignedBinding:
    receipt_key = Secp256k1Signer(hashlib.sha256(b"receipt" + key.peer.encode()).digest())
    wallet = Secp256k1Signer(hashlib.sha256(b"wallet" + key.peer.encode()).digest())
    binding = Binding(
        network=network,
        peer=key.peer,
        receipt_key=receipt_key.address,
        wallet=wallet.address,
        not_before_ms=0,
        not_after_ms=2**52,
        nonce=0,
    )
    return sign_binding(binding, peer=key, receipt_key=receipt_key, wallet=wallet)


@pytest.fixture
def make_key() -> Callable[[str], PeerKey]:
    return lambda name: PeerKey(hashlib.sha256(name.encode()).digest())


@pytest.fixture
def make_offer() -> Callable[..., SignedOffer]:
    """`make_offer(key, seq=…, now_ms=…, ttl_ms=…, **fields)`: a signed offer that holds, unless told otherwise."""

    def make(
        key: PeerKey, *, seq: int = 1, now_ms: int | None = None, ttl_ms: int = 500_000, **fields: object
    ) -> SignedOffer:
        issued_ms = SystemClock().now_ms() if now_ms is None else now_ms
        offer = Offer(
            network=NETWORK,
            peer=key.peer,
            seq=seq,
            issued_ms=issued_ms,
            expires_ms=issued_ms + ttl_ms,
            tier=Tier.CONSUMER,
            slots=1,
            models=(),
            privacy=(Privacy.SHARED,),
            rails=("local",),
            addresses=(),
            content=(),
            isolation="none",
            binding=_binding(key, NETWORK),
        )
        return sign_offer(replace(offer, **fields), key)

    return make


@pytest.fixture
def broken_binding(make_key: Callable[[str], PeerKey]) -> Callable[[PeerKey], SignedBinding]:
    """A binding that claims a wallet which never signed it."""

    def make(key: PeerKey) -> SignedBinding:
        honest = _binding(key, NETWORK)
        return replace(honest, by_wallet=_binding(make_key("somebody else"), NETWORK).by_wallet)

    return make


@pytest.fixture
def limits() -> NetworkLimits:
    """The shipped limits with intervals short enough for a test. Silence is borne for as long as shipped, or longer: on
    a busy machine all are silent; a test about silence says its own limit."""
    return NetworkLimits(
        ping_timeout_s=10.0,
        dial_timeout_s=20.0,
        open_timeout_s=20.0,
        reconnect_min_s=0.2,
        reconnect_max_s=0.5,
        restart_min_s=0.1,
        dht_pace_s=0.02,
    )


async def echo(conversation: Conversation) -> None:
    """Say everything back until the other side hangs up."""
    while True:
        await conversation.send((await conversation.receive(60)).body)


def raw_cid(data: bytes) -> str:
    return cid_text(b"\x01\x55\x12\x20" + hashlib.sha256(data).digest())


class MemoryShelf:
    """A `market.ports.ContentShelf`: blocks and files by CID, some of them for one peer alone.

    `reading` counts ranges that are being read, `read_bytes` what was taken from them.
    """

    piece_bytes = 1024 * 1024

    def __init__(self, *, private_for: str = "") -> None:
        self.blocks: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.private_for = private_for
        self.pinned: list[tuple[PeerId, str]] = []
        self.reading = 0
        self.read_bytes = 0
        self.hold: asyncio.Event | None = None

    def put(self, data: bytes, *, private: bool = False) -> str:
        """Keep a file under a root block of its own; returns the root."""
        block = b"root of " + hashlib.sha256(data).digest()
        root = raw_cid(block)
        self.blocks[root], self.files[root] = block, data
        if private:
            self.private.add(root)
        return root

    async def block(self, peer: PeerId, cid: str) -> bytes:
        self._check(peer, cid, self.blocks)
        return self.blocks[cid]

    async def read_range(self, peer: PeerId, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        self._check(peer, root, self.files)
        self.reading += 1
        try:
            data = self.files[root][start : start + length]
            for at in range(0, len(data), self.piece_bytes):
                if self.hold:
                    await self.hold.wait()
                piece = data[at : at + self.piece_bytes]
                self.read_bytes += len(piece)
                yield piece
        finally:
            self.reading -= 1

    async def ticket(self, peer: PeerId) -> str:
        return f"a ticket for {peer}"

    async def catalog(self, creator: bytes, name: str) -> bytes:
        if name != "octo":
            raise ContentUnavailable("no such catalog.")
        return b"catalog of " + creator

    async def pin(self, peer: PeerId, manifest: str) -> None:
        if manifest not in self.blocks:
            raise ContentUnavailable("this node pins for its owner only.")
        self.pinned.append((peer, manifest))

    def _check(self, peer: PeerId, cid: str, held: dict[str, bytes]) -> None:
        if cid in self.private and peer != self.private_for:
            raise ContentUnavailable(f"{cid} is in /secret/folder, and not for {peer}.")
        if cid not in held:
            raise ContentUnavailable(f"{cid} is unknown.")


@pytest.fixture
def new_shelf() -> Callable[..., MemoryShelf]:
    return MemoryShelf


Joiner = Callable[..., AbstractAsyncContextManager[OctoNetwork]]


@pytest.fixture
def join(make_key: Callable[[str], PeerKey], limits: NetworkLimits) -> Joiner:
    """`async with join("anna", to=other_network) as network`: a real network on loopback, echoing by default."""

    @asynccontextmanager
    async def open_one(
        name: str,
        *,
        to: OctoNetwork | str | None = None,
        serve: Callable[[Conversation], Awaitable[None]] = echo,
        listen: str = LOOPBACK,
        address_book: Path | None = None,
        limits: NetworkLimits = limits,
        shelf: ContentShelf | None = None,
        dht: bool = True,
    ) -> AsyncIterator[OctoNetwork]:
        address = to.addresses()[0] if isinstance(to, OctoNetwork) else to
        async with open_network(
            key=make_key(name),
            network=NETWORK,
            listen=[listen],
            bootstrap=[address] if address else [],
            serve=serve,
            clock=SystemClock(),
            address_book=address_book,
            limits=limits,
            shelf=shelf,
            dht=dht,
        ) as network:
            if isinstance(to, OctoNetwork):
                await network.connect(to.addresses()[0])
            yield network

    return open_one


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(lambda: …)`: returns once it is true, fails after 60 s: whether it happens, not how soon."""

    async def wait(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def new_task() -> Callable[[], bytes]:
    return lambda: os.urandom(32)


class Mallory:
    """A libp2p host that sends whatever it likes, and answers with whatever handlers it was given."""

    def __init__(self, bridge: Bridge, host: Host, key: PeerKey) -> None:
        self._bridge = bridge
        self._host = host
        self.peer = key.peer
        self.heard = b""

    def addresses(self) -> tuple[str, ...]:
        return self._host.addresses()

    async def dial(self, address: str) -> None:
        await self._bridge.in_trio(self._host.dial, parse_endpoint(address))

    async def send(self, peer: str, protocol: str, *pieces: bytes, pause_s: float = 0, limit_s: float = 60) -> bool:
        """Write to a new stream; True once the other side has ended it, False if it has not in `limit_s`. `heard` is
        what came back."""
        return await self._bridge.in_trio(self._send, peer, protocol, pieces, pause_s, limit_s)

    async def _send(self, peer: str, protocol: str, pieces: tuple[bytes, ...], pause_s: float, limit_s: float) -> bool:
        stream = await self._host.libp2p.new_stream(ID.from_string(peer), [TProtocol(protocol)])
        self.heard = b""
        with suppress(Exception), trio.move_on_after(limit_s):
            for piece in pieces:
                await stream.write(piece)
                await trio.sleep(pause_s)
        with trio.move_on_after(limit_s):
            try:
                while heard := await stream.read(65536):
                    self.heard += heard
            except Exception:  # noqa: BLE001 - any error is the end of the stream
                return True
            return True
        return False


@pytest.fixture
def mallory(make_key: Callable[[str], PeerKey]) -> Callable[..., AbstractAsyncContextManager[Mallory]]:
    """`async with mallory({protocol: handler}) as stranger`: a hostile host on loopback."""

    @asynccontextmanager
    async def open_one(handlers: Mapping[str, StreamHandler] = {}, name: str = "mallory") -> AsyncIterator[Mallory]:
        key = make_key(name)
        ready: asyncio.Future[Mallory] = asyncio.get_running_loop().create_future()

        async def main(bridge: Bridge) -> None:
            async with open_host(key, [LOOPBACK], NetworkLimits()) as host:
                for protocol, handler in handlers.items():
                    host.handle(protocol, handler)
                bridge.post_to_asyncio(ready.set_result, Mallory(bridge, host, key))
                await trio.sleep_forever()

        running = asyncio.create_task(run_trio(main))
        try:
            yield await asyncio.wait_for(ready, 60)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    return open_one


class PeerProcess:
    """An echoing peer in a process of its own, to be killed or frozen."""

    def __init__(self, name: str, listen: str) -> None:
        script = Path(__file__).with_name("peer_process.py")
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, str(script), name, listen],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert self.process.stdout is not None
        self.address, self.root = self.process.stdout.readline().split()
        self.peer = self.address.rsplit("/", 1)[-1]
        self.listen = self.address.split("/p2p/")[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def start_peer() -> Iterator[Callable[..., PeerProcess]]:
    started: list[PeerProcess] = []

    def start(name: str, listen: str = LOOPBACK) -> PeerProcess:
        started.append(PeerProcess(name, listen))
        return started[-1]

    yield start
    for peer in started:
        peer.end()
