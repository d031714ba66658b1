"""A node that follows a script, behind the real application on a real socket, and the clients that knock."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import coincurve
import nacl.signing
import pytest
from eth_hash.auto import keccak
from openai import AsyncOpenAI

from inference.work.speech_meters import SpeakMeter
from inference.work.voice import ESPEAK
from market.buyer import Order, Purchase, WorkOrder
from market.errors import ModelUnknown
from market.identity import Binding, PeerId, check_binding, peer_of_public_key, sign_binding
from market.offer import CheckedOffer, ModelOffer, Offer, Tier
from market.ports import Balances
from market.quote import Quote, sign_quote
from market.receipt import Receipt, sign_receipt
from market.reception import Outcome
from market.record import ReceiptRecord
from market.taking import Delta, Part, Shown
from market.task import Mode, Privacy
from market.testing import ByteTokenizer
from market.values import cid_of, encode
from market.work import Work
from node.api.server import open_api
from node.batches.desk import BatchDesk, open_batches
from node.batches.records import BatchLimits
from node.batches.tasks import TaskLimits
from node.node import ModelOnOffer

KEY = "octo-" + "k" * 43
TOKEN = "t" * 43
MODEL_CID = cid_of(b"manifest")
MODEL = ModelOnOffer(
    model=MODEL_CID,
    name="small",
    weights=cid_of(b"weights"),
    context=2048,
    price_in=10**17,
    price_out=3 * 10**17,
    providers=("12D3KooWprovider",),
)


class Key:
    """Both kinds of signer in one."""

    def __init__(self, name: str) -> None:
        seed = hashlib.sha256(name.encode()).digest()
        self._ed25519 = nacl.signing.SigningKey(seed)
        self._secp256k1 = coincurve.PrivateKey(seed)
        self.peer = peer_of_public_key(bytes(self._ed25519.verify_key))
        self.address = keccak(self._secp256k1.public_key.format(compressed=False)[1:])[-20:]

    def sign(self, data: bytes) -> bytes:
        return self._ed25519.sign(data).signature

    def sign_digest(self, digest: bytes) -> bytes:
        signature = self._secp256k1.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])


PEER, RECEIPT_KEY, WALLET = Key("peer"), Key("receipt key"), Key("wallet")
BINDING = Binding(
    network="test",
    peer=PEER.peer,
    receipt_key=RECEIPT_KEY.address,
    wallet=WALLET.address,
    not_before_ms=0,
    not_after_ms=2**52,
    nonce=0,
)
SIGNED_BINDING = sign_binding(BINDING, peer=PEER, receipt_key=RECEIPT_KEY, wallet=WALLET)


def record() -> ReceiptRecord:
    """A signed receipt over no tokens, with its quote and binding."""
    assert check_binding(SIGNED_BINDING, network="test", now_ms=1) == BINDING
    d = {name: hashlib.sha256(name.encode()).digest() for name in ("task", "prompt", "sampling", "channel")}
    quote = sign_quote(
        Quote(
            network="test", task=d["task"], provider=PEER.peer, client="12D3KooWclient", model=MODEL_CID,
            weights=MODEL.weights, engine="test", rail="ledger", prompt=d["prompt"], sampling=d["sampling"],
            tokens_in=7, max_tokens=9, price_in=10**17, price_out=3 * 10**17, tick_tokens=64, expires_ms=10, final=True,
        ),
        RECEIPT_KEY,
    )  # fmt: skip
    receipt = sign_receipt(
        Receipt(
            network="test", rail="ledger", provider=PEER.peer, client="12D3KooWclient", binding=SIGNED_BINDING.cid(),
            channel=d["channel"], task=d["task"], seq=0, final=True, finish="stop", model=MODEL_CID,
            weights=MODEL.weights, engine="test", quote=quote.digest(), prompt=d["prompt"], sampling=d["sampling"],
            tokens_in=7, tokens_out=0, chunks=0, chain_head=bytes(32), transcript_root=hashlib.sha256(b"").digest(),
            amount=7 * 10**11, started_ms=1, ended_ms=2,
        ),
        RECEIPT_KEY,
    )  # fmt: skip
    return ReceiptRecord(
        role="client",
        receipt=receipt,
        quote=quote,
        binding=encode(type(SIGNED_BINDING), SIGNED_BINDING),
        tokens=(),
        chunk_sizes=(),
        text_sizes=(),
        text_digests=(),
        salt=bytes(32),
    )


def outcome(order: Order | WorkOrder, **changes: Any) -> Outcome:
    choice = order.sampling.choice if isinstance(order, Order) else 0
    facts: dict[str, Any] = {
        "task": bytes(32),
        "provider": PEER.peer,
        "model": order.model,
        "finish": "stop",
        "receipt": cid_of(b"receipt %d" % choice),
        "channel": bytes(32),
        "tokens_in": 7,
        "tokens_out": 3,
        "amount": 16 * 10**11,
        "price_in": 10**17,
        "price_out": 3 * 10**17,
        "first_token_ms": 5,
        "total_ms": 9,
        "because": "the cheapest of 2",
        "not_chosen": {"12D3KooWother": "was not the best by that measure"},
    }
    return Outcome(**{**facts, **changes})


class ScriptedPurchase(Purchase):
    """Raises any exception that was put: the bugs of a buyer too."""

    async def _shown(self) -> AsyncIterator[Shown]:
        async for item in super()._shown():
            if isinstance(item, Exception):
                raise item
            yield item


class ScriptedBuyer:
    """Says its `steps`: a text or a delta, bytes for a piece of work, a number for a pause in seconds, an error for
    the end; then the outcome. `steps_of` says what an order gets, if not all get the same."""

    def __init__(self) -> None:
        self.steps: Sequence[str | bytes | float | Delta | Exception] = ("Hel", "lo", "!")
        self.steps_of: Callable[[Any], Sequence[Any]] = lambda order: self.steps
        self.outcome_of: Callable[[Any], Outcome | None] = outcome
        self.orders: list[Any] = []
        self.hung_up = asyncio.Event()
        self.running = 0

    @asynccontextmanager
    async def buy(self, order: Order | WorkOrder) -> AsyncIterator[Purchase]:
        purchase = ScriptedPurchase(order)
        self.orders.append(order)
        story = asyncio.create_task(self._tell(purchase))
        self.running += 1
        try:
            yield purchase
        finally:
            self.running -= 1
            if not story.done():
                purchase.cancel()
                self.hung_up.set()
            story.cancel()

    async def _tell(self, purchase: Purchase) -> None:
        for step in self.steps_of(purchase.order):
            if isinstance(step, str):
                purchase.put(Delta(text=step, tokens=1))
            elif isinstance(step, bytes):
                purchase.put(Part(data=step, units=1))
            elif isinstance(step, Delta):
                purchase.put(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, asyncio.Semaphore):
                await step.acquire()
            elif isinstance(step, Exception):
                purchase.put(step)  # type: ignore[arg-type]  # more kinds than a real buyer's
                return
            else:
                await asyncio.sleep(step)
        purchase.outcome = self.outcome_of(purchase.order)
        purchase.put(None)


class ScriptedNode:
    """node.node.Node with everything at hand."""

    def __init__(self) -> None:
        self.peer = PeerId(PEER.peer)
        self.binding = BINDING
        self.signed_binding = SIGNED_BINDING
        self.buyer = ScriptedBuyer()
        self.catalog = self
        self.receipts = self
        self.rail = None
        self.rail_name = "ledger"
        self.chain = None
        self.batches: BatchDesk | None = None
        self.answers = SimpleNamespace(vectors=None)
        self.record = record()
        self.ready = True
        self.sound_rate = 22_050
        self.voice = ESPEAK
        self.checked: list[str] = []
        self.on_offer_now = [MODEL]

    def counts(self) -> dict[str, int]:
        return {"prefix_hits": 3}

    def on_offer(self) -> Sequence[ModelOnOffer]:
        return self.on_offer_now

    def resolve(self, name: str) -> str:
        if name in ("small", "default", MODEL_CID):
            return MODEL_CID
        raise ModelUnknown(f"no model {name[:80]!r} here; on offer: small.", next_step="Choose one of them.")

    async def tokenizer(self, model: str) -> ByteTokenizer:
        assert model == MODEL_CID
        return ByteTokenizer()

    async def meter(self, model: str, work: Work) -> Any:
        assert (model, work) == (MODEL_CID, Work.SPEAK)
        return SpeakMeter(replace(self.voice, rate=self.sound_rate))

    async def receipt_by_cid(self, cid: str) -> ReceiptRecord | None:
        return self.record if cid == self.record.receipt.cid() else None

    async def latest_receipts(self, limit: int) -> Sequence[ReceiptRecord]:
        return [self.record][:limit]

    def offers(self) -> Sequence[CheckedOffer]:
        offer = Offer(
            network="test",
            peer=PEER.peer,
            seq=1,
            issued_ms=1,
            expires_ms=2,
            tier=Tier.CONSUMER,
            slots=4,
            models=(
                ModelOffer(
                    model=MODEL_CID,
                    weights=MODEL.weights,
                    name="small",
                    context=2048,
                    price_in=10**17,
                    price_out=3 * 10**17,
                    modes=(Mode.REALTIME,),
                    engine="test",
                    tokens_per_s=100,
                ),
            ),
            privacy=(Privacy.PUBLIC, Privacy.SHARED),
            rails=("ledger",),
            addresses=("/ip4/127.0.0.1/tcp/4001",),
            content=(),
            isolation="none",
            binding=SIGNED_BINDING,
        )
        return [CheckedOffer(offer=offer, binding=BINDING)]

    def refused_offers(self) -> Sequence[dict[str, Any]]:
        return [{"peer": "12D3KooWliar", "reason": "the offer carries another peer's binding.", "at_ms": 3}]

    def peers(self) -> Sequence[dict[str, Any]]:
        return [{"peer": PEER.peer, "address": "/ip4/127.0.0.1/tcp/4001", "rtt_ms": 1, "direction": "out"}]

    async def balances(self) -> Balances:
        return Balances(granted=100 * 10**18, available=95 * 10**18, locked=5 * 10**18, spent=0, earned=0)

    async def channels(self) -> Sequence[dict[str, Any]]:
        return [{"id": "00", "role": "payer", "deposit": 5 * 10**18, "state": "open"}]

    def addresses(self) -> Sequence[str]:
        return [f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER.peer}"]

    def status(self) -> dict[str, Any]:
        return {"peer": self.peer, "ready": self.ready, "odd": {b"x".hex(): b"\x01"}, "tags": frozenset({"b", "a"})}

    def check_api_key(self, presented: str) -> bool:
        self.checked.append(presented)
        return presented == KEY

    def check_cli_token(self, presented: str) -> bool:
        return presented == TOKEN


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
async def desk(node: ScriptedNode, tmp_path: Path) -> AsyncIterator[BatchDesk]:
    """Where batches are handed in; their lines wait for nothing."""
    limits = BatchLimits(pauses_s=(0.01,))
    task_limits = TaskLimits(pauses_s=(0.01,))
    async with open_batches(tmp_path / "batches", limits=limits, task_limits=task_limits) as desk:
        node.batches = desk
        yield desk


@pytest.fixture
async def api(node: ScriptedNode, desk: BatchDesk) -> AsyncIterator[str]:
    """The base URL of the real application with the scripted node behind it."""
    async with open_api(node, ports=(0,)) as url:  # type: ignore[arg-type]
        yield url


@pytest.fixture
async def client(api: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's own client, with a key that works."""
    async with AsyncOpenAI(base_url=f"{api}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def http(api: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that keeps to no rules, with a key that works."""
    async with aiohttp.ClientSession(api, headers={"Authorization": f"Bearer {KEY}"}) as session:
        yield session


@pytest.fixture
def known() -> SimpleNamespace:
    """What the script knows by heart."""
    return SimpleNamespace(
        key=KEY,
        token=TOKEN,
        peer=PEER.peer,
        model=MODEL_CID,
        offered=MODEL,
        second=replace(MODEL, model=cid_of(b"second manifest")),
        receipt=cid_of(b"receipt 0"),
        receipts=[cid_of(b"receipt %d" % i) for i in range(8)],
        outcome=outcome,
        question={"model": "small", "messages": [{"role": "user", "content": "Hi"}]},
    )
