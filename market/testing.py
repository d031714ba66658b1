"""Doubles for every port, and the `check_…` kits that built-ins and plugins both run.

Shipped, so that someone who writes an engine, a rail or a network can test it as we test ours.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence

import nacl.signing

from market.channel import Channel
from market.errors import InsufficientFunds, PaymentRefused, PeerGone, RequestInvalid, StepNotAllowed
from market.identity import Binding, PeerId, SignedBinding, WalletSigner, peer_of_public_key, sign_binding
from market.loopback import conversation_pair
from market.message import Queued
from market.offer import CheckedOffer, SignedOffer, check_offer
from market.ports import (
    Balances,
    Books,
    Clock,
    Conversation,
    EngineInfo,
    EngineLoad,
    Generated,
    Job,
    Network,
    Rail,
)
from market.record import ReceiptRecord
from market.signing import Secp256k1Signer
from market.task import ChatMessage, TaskId
from market.tools import CallForm, Tool
from market.voucher import ChannelTerms, Opening, check_opening, sign_opening


class FixedClock:
    """Stands still until told otherwise."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, ms: int) -> None:
        self._now_ms += ms


class MemoryPeerKey:
    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)
        self.peer = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


class Party:
    """One member of the market with keys made from its name: the same name is the same party."""

    def __init__(self, name: str, *, network: str = "test") -> None:
        self.name = name
        self.key = MemoryPeerKey(_seed(name, "peer"))
        self.receipt_key = Secp256k1Signer(_seed(name, "receipt"))
        self.wallet = Secp256k1Signer(_seed(name, "wallet"))
        self.binding = Binding(
            network=network,
            peer=self.key.peer,
            receipt_key=self.receipt_key.address,
            wallet=self.wallet.address,
            not_before_ms=0,
            not_after_ms=2**50,
            nonce=1,
        )
        self.signed_binding: SignedBinding = sign_binding(
            self.binding, peer=self.key, receipt_key=self.receipt_key, wallet=self.wallet
        )

    @property
    def peer(self) -> PeerId:
        return self.key.peer

    def session_key(self, salt: bytes) -> WalletSigner:
        return Secp256k1Signer(hashlib.sha256(_seed(self.name, "session") + salt).digest())


def _seed(*words: str) -> bytes:
    return hashlib.sha256("/".join(words).encode()).digest()


class ByteTokenizer:
    """One token a byte; 256 ends. Renders a chat as `role: content` lines."""

    end_tokens = frozenset({256})
    call_form = CallForm.PLAIN

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        told = "".join(f"tool: {tool.name}\n" for tool in tools)
        return tuple((told + "".join(f"{m.role}: {m.content}\n" for m in messages)).encode())

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes((token,)) if token < 256 else b""

    def may_precede(self, token: int) -> bool:  # noqa: ARG002 - the port's shape
        return True


class ScriptedEngine:
    """Says `text`, one byte a token, `delay_s` apart; then ends. Fails with `failure` after `fail_after` tokens.

    `features` it claims, and then heeds as little as the others: whoever wants more wraps it.
    """

    def __init__(
        self,
        text: str = "Hello from the engine.",
        *,
        delay_s: float = 0.0,
        context: int = 2048,
        fail_after: int | None = None,
        failure: Exception | None = None,
        features: frozenset[str] = frozenset(),
    ) -> None:
        self.info = EngineInfo(name="scripted/1", context=context, slots=4, features=features)
        self.generated = 0
        self.running = 0
        self.last_generated_s = 0.0
        self._text = text.encode()
        self._delay_s = delay_s
        self._fail_after = fail_after
        self._failure = failure

    async def generate(self, job: Job) -> AsyncGenerator[Generated]:
        if len(job.prompt) + 1 > self.info.context:
            raise RequestInvalid("the prompt does not fit.")
        wanted = {"logprobs": job.logprobs is not None, "grammar": bool(job.grammar)}
        if any(asked and feature not in self.info.features for feature, asked in wanted.items()):
            raise RequestInvalid("this script has neither log probabilities nor grammars.")
        self.running += 1
        loop = asyncio.get_running_loop()
        try:
            for position, token in enumerate(self._text):
                if position == self._fail_after and self._failure is not None:
                    raise self._failure
                if position >= job.max_tokens:
                    yield Generated(tokens=(), finish="length")
                    return
                await asyncio.sleep(self._delay_s)
                self.generated += 1
                self.last_generated_s = loop.time()
                yield Generated(tokens=(token,))
            yield Generated(tokens=(), finish="stop")
        finally:
            self.running -= 1

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.running, waiting=0)


class MemoryBooks:
    """Books that forget with the process. `fail_with` makes the next saves fail."""

    def __init__(self) -> None:
        self.saved: dict[tuple[str, bytes], Channel] = {}
        self.records: list[ReceiptRecord] = []
        self.fail_with: Exception | None = None

    async def save(self, channel: Channel | None, *, receipts: Iterable[ReceiptRecord] = ()) -> None:
        await asyncio.sleep(0)
        if self.fail_with is not None:
            raise self.fail_with
        if channel is not None:
            key = (channel.role, channel.id)
            before = self.saved.get(key)
            if before is not None and channel.paid < before.paid:
                raise StepNotAllowed("a channel's book never goes down.")
            self.saved[key] = channel
        self.records.extend(receipts)

    async def channels(self) -> Sequence[Channel]:
        return list(self.saved.values())

    async def receipts(self, *, task: TaskId) -> Sequence[ReceiptRecord]:
        return [record for record in self.records if record.receipt.read().task == task]


class MemoryRail:
    """Grants every party the same; believes its own signatures."""

    name = "memory/1"

    def __init__(self, wallet: WalletSigner, *, granted: int) -> None:
        self._wallet = wallet
        self._granted = granted
        self._locked = 0

    async def open_channel(self, terms: ChannelTerms, deposit: int) -> Opening:
        if self._locked + deposit > self._granted:
            raise InsufficientFunds("the purse is empty.")
        self._locked += deposit
        return sign_opening(terms, deposit, self._wallet)

    async def check_channel(self, opening: Opening) -> int:
        try:
            check_opening(opening)
        except Exception as error:
            raise PaymentRefused(str(error)) from error
        return opening.deposit

    async def check_serving(self) -> None:
        return

    async def balances(self) -> Balances:
        return Balances(
            granted=self._granted, available=self._granted - self._locked, locked=self._locked, spent=0, earned=0
        )


class MemoryStanding:
    def __init__(self) -> None:
        self.facts: dict[str, dict[str, float]] = {}

    def of(self, peer: PeerId) -> Mapping[str, float]:
        return self.facts.get(peer, {})

    def note(self, peer: PeerId, **facts: float) -> None:
        known = self.facts.setdefault(peer, {})
        for name, fact in facts.items():
            known[name] = known.get(name, 0.0) + fact if name in ("silent", "failure", "success") else fact


class OneTokenizer:
    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer

    async def tokenizer(self, model: str) -> ByteTokenizer:  # noqa: ARG002 - the port's shape
        return self._tokenizer


Serve = Callable[[Conversation], Awaitable[None]]


class MemoryMesh:
    """A network in one process: everyone hears every offer at once."""

    def __init__(self, clock: Clock, *, network: str = "test") -> None:
        self._clock = clock
        self._network = network
        self._members: dict[PeerId, Serve] = {}
        self._offers: dict[PeerId, CheckedOffer] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self.cut: set[PeerId] = set()

    def join(self, peer: PeerId, serve: Serve) -> MemoryNetwork:
        self._members[peer] = serve
        return MemoryNetwork(self, peer)

    async def open(self, caller: PeerId, peer: PeerId, task: TaskId) -> Conversation:
        serve = self._members.get(peer)
        if serve is None or peer in self.cut:
            raise PeerGone("nobody there.", peer=peer)
        ours, theirs = conversation_pair(caller=caller, callee=peer, task=task, clock=self._clock)

        async def run() -> None:
            try:
                await serve(theirs)
            finally:
                await theirs.aclose()

        serving = asyncio.create_task(run())
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        return ours

    def announce(self, offer: SignedOffer) -> None:
        checked = check_offer(offer, network=self._network, now_ms=self._clock.now_ms())
        self._offers[PeerId(checked.offer.peer)] = checked

    def offers(self) -> Sequence[CheckedOffer]:
        return list(self._offers.values())


class MemoryNetwork:
    def __init__(self, mesh: MemoryMesh, peer: PeerId) -> None:
        self.peer = peer
        self._mesh = mesh

    async def open_conversation(self, peer: PeerId, task: TaskId) -> Conversation:
        return await self._mesh.open(self.peer, peer, task)

    async def announce(self, offer: SignedOffer) -> None:
        self._mesh.announce(offer)

    def offers(self) -> Sequence[CheckedOffer]:
        return self._mesh.offers()


# ---- kits ----------------------------------------------------------------------------------------


async def check_network(near: Network, far: Network, arrived: asyncio.Queue[Conversation]) -> None:
    """Two connected networks; `arrived` gets what `far` serves. Order, both ways, and what comes after."""
    task = TaskId(hashlib.sha256(b"check_network").digest())
    ours = await near.open_conversation(far.peer, task)
    for position in range(50):
        await ours.send(Queued(position=position))
    theirs = await asyncio.wait_for(arrived.get(), 5)
    assert (theirs.task, theirs.peer) == (task, near.peer)
    for position in range(50):
        message = await theirs.receive(5)
        assert message.body == Queued(position=position), "messages arrive in order"
    await theirs.send(Queued(position=7))
    assert (await ours.receive(5)).body == Queued(position=7)
    await theirs.aclose()
    await ours.aclose()
    again = await near.open_conversation(far.peer, TaskId(hashlib.sha256(b"check_network again").digest()))
    await again.send(Queued(position=1))
    other = await asyncio.wait_for(arrived.get(), 5)
    assert (await other.receive(5)).body == Queued(position=1), "one conversation's end is not another's"
    await again.aclose()


async def check_rail(payer: Rail, payee: Rail, terms: ChannelTerms, *, deposit: int) -> None:
    """An opening made by `payer` holds at `payee`, a forged one does not, and nobody locks more than they have."""
    before = await payer.balances()
    opening = await payer.open_channel(terms, deposit)
    assert await payee.check_channel(opening) == deposit
    forged = Opening(terms=terms, deposit=deposit + 1, signature=opening.signature)
    for rail, bad in ((payee, forged),):
        try:
            await rail.check_channel(bad)
        except PaymentRefused:
            continue
        raise AssertionError("a forged opening is refused")
    try:
        await payer.open_channel(terms, before.available + 1)
    except InsufficientFunds:
        return
    raise AssertionError("nobody locks more than they have")


async def check_books(books: Books, channel: Channel, lower: Channel, record: ReceiptRecord) -> None:
    """What was saved is there; a channel never goes down."""
    await books.save(channel, receipts=(record,))
    assert channel in await books.channels()
    assert record in await books.receipts(task=TaskId(record.receipt.read().task))
    try:
        await books.save(lower)
    except (StepNotAllowed, PaymentRefused):
        assert channel in await books.channels()
        return
    raise AssertionError("a channel's book never goes down")
