"""Parts that the mesh tests share: real keys, real signed offers, real networks on loopback, real processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from market.identity import Binding, SignedBinding, sign_binding
from market.offer import Offer, SignedOffer, Tier, sign_offer
from market.ports import Conversation
from market.signing import Secp256k1Signer
from market.task import Privacy
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
        key: PeerKey, *, seq: int = 1, now_ms: int | None = None, ttl_ms: int = 25_000, **fields: object
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
    """The shipped limits with intervals short enough for a test."""
    return NetworkLimits(
        ping_interval_s=0.3,
        ping_timeout_s=0.5,
        frame_timeout_s=1.0,
        reconnect_min_s=0.2,
        reconnect_max_s=0.5,
        restart_min_s=0.1,
    )


async def echo(conversation: Conversation) -> None:
    """Say everything back until the other side hangs up."""
    while True:
        await conversation.send((await conversation.receive(60)).body)


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
        ) as network:
            if isinstance(to, OctoNetwork):
                await network.connect(to.addresses()[0])
            yield network

    return open_one


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(lambda: …)`: returns once it is true, fails after 30 s."""

    async def wait(holds: Callable[[], object], timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def new_task() -> Callable[[], bytes]:
    return lambda: os.urandom(32)


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
        self.address = self.process.stdout.readline().strip()
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
