"""A buyer and seller as a process of its own: real books on disk, real libp2p, a real chain, a scripted engine.

The test talks to it over a pipe: one command at a time, by the name of a method of `Trader`. It can be told to end
itself by SIGKILL at a step of a payment, and started again in the same folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forks import Forked
from tripwire import (
    Step,
    Tripwire,
    WatchedBooks,
    WatchedConversation,
    WatchedKeeper,
    WatchedNetwork,
    open_watched_chain,
)

from contracts.deployments import read_deployment
from contracts.follower import FollowTerms
from contracts.keeping import FileKeeper
from contracts.rail import RailTerms
from contracts.rails import ChainParts, open_chain_rail
from contracts.sender import SendTerms
from contracts.settlement import SettlePolicy
from market.buyer import Buyer, BuyerTerms, Order
from market.channel import Channel
from market.errors import OctoError
from market.identity import Binding, check_binding, sign_binding
from market.money import OCTO
from market.offer import CheckedOffer, ModelOffer, Offer, Tier
from market.parts import DealParts, DealTerms, SellerTerms, Served
from market.prepaid import PrepaidCap
from market.purse import Purse
from market.routing import Cheapest
from market.seller import Seller
from market.signing import Secp256k1Signer
from market.task import ChatMessage, Mode, Privacy, Sampling
from market.testing import ByteTokenizer, MemoryStanding, OneTokenizer, ScriptedEngine
from market.testing_work import ByteMeter, OneMeter
from market.till import Till
from node.chain import Closing
from node.clock import SystemClock
from node.store import open_store
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.network import open_network
from verifier.receipts import ReceiptVerifier

NETWORK = "octo-walk"
MODEL = "bafymodel"
ANSWER = "Hello from the engine."
DEPOSIT = OCTO // 100
TICK = 8
PRICE_IN, PRICE_OUT = OCTO, 3 * OCTO
SOON = NetworkLimits(
    reconnect_min_s=0.05, reconnect_max_s=0.2, ping_interval_s=0.5, ping_timeout_s=4.0, restart_min_s=0.1
)
ONLY_WHEN_TOLD = SettlePolicy(worth=2**200, age_s=2**40, period_s=0.2)


@dataclass(frozen=True)
class Terms:
    """What a trader is started with; all of it survives its death."""

    name: str
    folder: Path
    chain: str
    deployment: Path
    listen: str = "/ip4/127.0.0.1/tcp/0"
    provider: str = ""
    join: tuple[str, ...] = ()
    away_limit: int = OCTO
    chain_lag_s: float = 0.0


class Keys:
    """From the name: the same name is the same trader."""

    def __init__(self, name: str) -> None:
        self.peer = PeerKey(_seed(name, "peer"))
        self.receipt = Secp256k1Signer(_seed(name, "receipt"))
        self.wallet = Secp256k1Signer(_seed(name, "wallet"))
        self.name = name
        binding = Binding(
            network=NETWORK, peer=self.peer.peer, receipt_key=self.receipt.address, wallet=self.wallet.address,
            not_before_ms=0, not_after_ms=2**50, nonce=1,
        )  # fmt: skip
        self.signed_binding = sign_binding(binding, peer=self.peer, receipt_key=self.receipt, wallet=self.wallet)
        self.binding = check_binding(self.signed_binding, network=NETWORK, now_ms=None)

    def session_key(self, salt: bytes) -> Secp256k1Signer:
        return Secp256k1Signer(hashlib.sha256(_seed(self.name, "session") + salt).digest())


def _seed(*words: str) -> bytes:
    return hashlib.sha256("/".join(("walk", *words)).encode()).digest()


def offer_of(keys: Keys, rail: str) -> CheckedOffer:
    """Known to every buyer beforehand: how offers travel is not what is tested here."""
    model = ModelOffer(
        model=MODEL, weights="bafyweights", name="toy", context=2048, price_in=PRICE_IN, price_out=PRICE_OUT,
        modes=(Mode.REALTIME,), engine="scripted/1", tokens_per_s=100,
    )  # fmt: skip
    offer = Offer(
        network=NETWORK, peer=keys.peer.peer, seq=1, issued_ms=0, expires_ms=2**50, tier=Tier.CONSUMER, slots=4,
        models=(model,), privacy=(Privacy.PUBLIC, Privacy.SHARED), rails=(rail,), addresses=(), content=(),
        isolation="none", binding=keys.signed_binding,
    )  # fmt: skip
    return CheckedOffer(offer=offer, binding=keys.binding)


class Trader:
    def __init__(self, *, parts: ChainParts, books: WatchedBooks, buyer: Buyer, standing: MemoryStanding,
                 addresses: tuple[str, ...], wire: Tripwire) -> None:  # fmt: skip
        self._parts = parts
        self._books = books
        self._buyer = buyer
        self._standing = standing
        self._addresses = addresses
        self._wire = wire

    # ---- what the test may ask for ----

    async def address(self) -> str:
        return self._addresses[0]

    async def arm(self, wanted: Step | None) -> None:
        self._wire.arm(wanted)

    async def disarm(self) -> list[Step]:
        return self._wire.disarm()

    async def buy(self, text: str) -> dict[str, Any]:
        """`{text, amount, channel}`, or `{error}`."""
        self._standing.facts.clear()
        order = Order(
            model=MODEL, messages=(ChatMessage(role="user", content=text),), sampling=Sampling(seed=bytes(32)),
            max_tokens=64,
        )  # fmt: skip
        try:
            async with self._buyer.buy(order) as purchase:
                pieces = [delta.text async for delta in purchase.deltas()]
        except OctoError as error:
            return {"error": f"{error} {getattr(error, 'reasons', '')}"}
        assert purchase.outcome is not None
        return {"text": "".join(pieces), "amount": purchase.outcome.amount, "channel": purchase.outcome.channel}

    async def books(self) -> dict[bytes, Channel]:
        return {channel.id: channel for channel in await self._books.channels()}

    async def health(self) -> str:
        return self._parts.rail.health.state

    async def settle(self) -> int:
        """What came in."""
        return sum(done.amount for done in await self._parts.collector.settle(everything=True))

    async def unsettled(self) -> int:
        return sum(due.amount for due in await self._parts.collector.dues())

    async def promised(self) -> int:
        """What vouchers in the books promise beyond what the chain paid, as far as is known; asks nobody."""
        return await self._parts.collector.unsettled()

    async def close_as_payee(self) -> None:
        """Redeem and end every channel that pays us."""
        for channel in await self._books.channels():
            state = self._parts.rail.state_of(channel.id)
            if channel.role == "payee" and state is not None and not state.closed:
                await self._parts.rail.close(channel)

    async def ask_back(self) -> None:
        """As payer: request to close every channel that is still open."""
        for channel in await self._books.channels():
            state = self._parts.rail.state_of(channel.id)
            if channel.role == "payer" and state is not None and not state.closes_at:
                await self._parts.rail.request_close(channel)


@asynccontextmanager
async def open_trader(terms: Terms) -> AsyncIterator[Trader]:
    keys, wire, clock, engine = Keys(terms.name), Tripwire(), SystemClock(), ScriptedEngine(ANSWER)
    deployment = read_deployment(terms.deployment)
    standing, closing = MemoryStanding(), Closing()
    async with AsyncExitStack() as stack:
        books = WatchedBooks(await stack.enter_async_context(open_store(terms.folder / "node.db")), wire)
        parts = await stack.enter_async_context(
            open_chain_rail(
                await stack.enter_async_context(open_watched_chain(terms.chain, wire, lag_s=terms.chain_lag_s)),
                deployment=deployment,
                network=NETWORK,
                wallet=keys.wallet,
                books=books,
                clock=clock,
                keepers=lambda name: (
                    FileKeeper(terms.folder / name)
                    if name == "cursor"  # kept with every block: no step of a payment
                    else WatchedKeeper(FileKeeper(terms.folder / name), name, wire)
                ),
                terms=RailTerms(deposit_cap=OCTO, away_limit=terms.away_limit, open_s=60, check_s=10),
                policy=ONLY_WHEN_TOLD,
                send_terms=SendTerms(poll_s=0.05, taken_after_s=0.3, bump_after_s=1.0, patience_s=30),
                follow_terms=FollowTerms(poll_s=0.05, orphan_s=0.0),
                on_closing=closing,
            )
        )
        shared = {"network": NETWORK, "wallet": keys.wallet.address, "rail": parts.rail, "books": books}
        purse = Purse(**shared, session_keys=keys.session_key, random=os.urandom, deposit=DEPOSIT)
        till = Till(**shared, credit_limit=OCTO)

        await purse.load()
        await till.load()
        await closing.attach(purse, till)
        served = Served(offer_of(keys, deployment.rail).offer.models[0], engine, ByteTokenizer())
        seller = Seller(
            network=NETWORK,
            peer=keys.peer.peer,
            binding=keys.signed_binding,
            receipt_key=keys.receipt,
            rail=deployment.rail,
            served=lambda: {MODEL: served},
            till=till,
            books=books,
            verifier=ReceiptVerifier(),
            clock=clock,
            terms=SellerTerms(tick_tokens=TICK, tick_s=60.0),
        )
        mesh = await stack.enter_async_context(
            open_network(
                key=keys.peer,
                network=NETWORK,
                listen=[terms.listen],
                bootstrap=terms.join,
                serve=lambda conversation: seller.serve(WatchedConversation(conversation, wire)),
                clock=clock,
                limits=SOON,
            )
        )
        for address in terms.join:
            await mesh.connect(address)
        offers = (offer_of(Keys(terms.provider), deployment.rail),) if terms.provider else ()
        buyer = Buyer(
            parts=DealParts(
                network=NETWORK,
                peer=keys.peer.peer,
                rail=deployment.rail,
                binding=keys.signed_binding,
                purse=purse,
                verifier=ReceiptVerifier(),
                standing=standing,
                clock=clock,
                random=os.urandom,
                prepaid=PrepaidCap(OCTO, clock),
                terms=DealTerms(),
            ),
            network=WatchedNetwork(mesh, wire),
            offers=lambda: offers,
            meters=OneMeter(ByteMeter()),
            tokenizers=OneTokenizer(ByteTokenizer()),
            policy=Cheapest(),
            terms=BuyerTerms(),
        )
        stack.push_async_callback(buyer.aclose)
        yield Trader(
            parts=parts, books=books, buyer=buyer, standing=standing, addresses=mesh.addresses(), wire=wire
        )  # fmt: skip


# ---- the process -----------------------------------------------------------------------------------------------------


def main(pipe: Connection, terms: Terms) -> None:
    asyncio.run(_obey(pipe, terms))


async def _obey(pipe: Connection, terms: Terms) -> None:
    async with open_trader(terms) as trader:
        pipe.send(("ready", None))
        while True:
            try:
                name, arguments = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            try:
                pipe.send(("answer", await getattr(trader, name)(*arguments)))
            except OctoError as error:
                pipe.send(("failed", str(error)))


async def start_trader(terms: Terms) -> Forked:
    process = Forked(main, terms, log=terms.folder / "trader.log")
    await process.ready()
    return process
