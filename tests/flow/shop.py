"""Buyers and sellers in one process, over the in-memory mesh, with the real rules and the real verifier."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace

from market.buyer import Buyer, BuyerTerms, Order, Purchase
from market.caching import Caching
from market.offer import ModelOffer, Offer, Tier, sign_offer
from market.parts import DealParts, DealTerms, SellerTerms, Served, ServedWork
from market.ports import Engine
from market.prepaid import PrepaidCap
from market.purse import Purse
from market.routing import Cheapest, Reliable
from market.seller import Seller
from market.task import ChatMessage, Mode, Privacy, Sampling
from market.testing import (
    ByteTokenizer,
    FixedClock,
    MemoryBooks,
    MemoryMesh,
    MemoryRail,
    MemoryStanding,
    OneTokenizer,
    Party,
    ScriptedEngine,
)
from market.testing_work import ByteMeter, OneMeter
from market.till import Till
from market.work import Work
from verifier.receipts import ReceiptVerifier

OCTO = 10**18
MODEL = "bafymodel"


class ShopSeller:
    def __init__(
        self,
        mesh,
        clock,
        name,
        *,
        engine: Engine,
        price_out=3 * OCTO,
        tokenizer=None,
        terms=None,
        credit=OCTO,
        on_send=None,
        meter=None,
        cache=None,
        **offered,
    ):
        """With a `meter`, `engine` does other work than text. `offered` changes the model's offer."""
        self.party = Party(name)
        self.engine = engine
        self.books = MemoryBooks()
        self.offer = ModelOffer(
            model=MODEL,
            weights="bafyweights",
            name="toy",
            context=engine.info.context,
            price_in=OCTO,
            price_out=price_out,
            modes=tuple(Mode),
            mode_percent=(100, 60, 40),
            engine=engine.info.name,
            tokens_per_s=100,
            works=tuple(engine.works) if meter else (Work.CHAT,),
            features=tuple(sorted(engine.info.features)),
        )
        self.offer = replace(self.offer, **offered)
        self.cache = cache
        if meter:
            self.serving = ServedWork(self.offer, engine, meter)
        else:
            self.serving = Served(self.offer, engine, tokenizer or ByteTokenizer())
        self.till = Till(
            network="test",
            wallet=self.party.wallet.address,
            rail=MemoryRail(self.party.wallet, granted=0),
            books=self.books,
            credit_limit=credit,
        )
        self.seller = Seller(
            network="test",
            peer=self.party.peer,
            binding=self.party.signed_binding,
            receipt_key=self.party.receipt_key,
            rail="memory/1",
            served=lambda: {MODEL: self.serving},
            till=self.till,
            books=self.books,
            verifier=ReceiptVerifier(),
            clock=clock,
            terms=terms or SellerTerms(tick_tokens=8, payment_timeout_s=1.0),
            cache=cache,
        )
        serve = self.seller.serve
        if on_send is not None:  # a hostile one

            async def serve(conversation):
                await self.seller.serve(BentConversation(conversation, on_send))

        self.network = mesh.join(self.party.peer, serve)
        mesh.announce(
            sign_offer(
                Offer(
                    network="test",
                    peer=self.party.peer,
                    seq=1,
                    issued_ms=clock.now_ms(),
                    expires_ms=clock.now_ms() + 60_000,
                    tier=Tier.CONSUMER,
                    slots=4,
                    models=(self.offer,),
                    privacy=(Privacy.PUBLIC, Privacy.SHARED),
                    rails=("memory/1",),
                    addresses=(),
                    content=(),
                    isolation="none",
                    binding=self.party.signed_binding,
                ),
                self.party.key,
            )
        )

    def earned(self) -> int:
        return sum(channel.paid for channel in self.books.saved.values())


class ShopBuyer:
    def __init__(
        self,
        mesh,
        clock,
        name="alice",
        *,
        granted=100 * OCTO,
        deposit=OCTO,
        terms=None,
        books=None,
        prepaid_cap=OCTO,
        tokenizer=None,
        vet=lambda checked: None,
        on_send=None,
        meter=None,
        caching=Caching.OWN,
        salt=None,
    ):
        self.party = Party(name)
        self.books = books or MemoryBooks()
        self.standing = MemoryStanding()
        self.rail = MemoryRail(self.party.wallet, granted=granted)
        self.purse = Purse(
            network="test",
            wallet=self.party.wallet.address,
            rail=self.rail,
            books=self.books,
            session_keys=self.party.session_key,
            random=os.urandom,
            deposit=deposit,
        )
        network = mesh.join(self.party.peer, _nobody)
        if on_send is not None:  # a hostile one
            network = BentNetwork(network, on_send)
        self.buyer = Buyer(
            parts=DealParts(
                network="test",
                peer=self.party.peer,
                rail="memory/1",
                binding=self.party.signed_binding,
                purse=self.purse,
                verifier=ReceiptVerifier(),
                standing=self.standing,
                clock=clock,
                random=os.urandom,
                prepaid=PrepaidCap(prepaid_cap, clock),
                terms=terms or DealTerms(token_timeout_s=3.0, settle_timeout_s=2.0),
            ),
            network=network,
            offers=network.offers,
            meters=OneMeter(meter or ByteMeter()),
            tokenizers=OneTokenizer(tokenizer or ByteTokenizer()),
            policy=Reliable(Cheapest()),
            terms=BuyerTerms(caching=caching),
            vet=vet,
            cache_salt=lambda: salt or hashlib.sha256(name.encode()).digest(),
        )

    def spent(self) -> int:
        return sum(channel.paid for channel in self.books.saved.values())

    async def ask(self, text="Hi", **order) -> tuple[str, Purchase]:
        """The whole answer, and the finished purchase."""
        async with self.buyer.buy(make_order(text, **order)) as purchase:
            pieces = [delta.text async for delta in purchase.deltas()]
        return "".join(pieces), purchase


def make_order(text="Hi", **order) -> Order:
    return Order(
        model=order.pop("model", MODEL),
        messages=(ChatMessage(role="user", content=text),),
        sampling=order.pop("sampling", Sampling(seed=bytes(32))),
        **order,
    )


class BentConversation:
    """Sends what `on_send(body)` makes of each body; nothing, if that is None."""

    def __init__(self, conversation, on_send):
        self.peer, self.task = conversation.peer, conversation.task
        self._conversation = conversation
        self._on_send = on_send

    async def send(self, body):
        bent = self._on_send(body)
        if asyncio.iscoroutine(bent):
            bent = await bent
        if bent is not None:
            await self._conversation.send(bent)

    async def receive(self, timeout_s):
        return await self._conversation.receive(timeout_s)

    async def aclose(self):
        await self._conversation.aclose()


class BentNetwork:
    def __init__(self, network, on_send):
        self.peer = network.peer
        self.offers = network.offers
        self._network = network
        self._on_send = on_send

    async def open_conversation(self, peer, task):
        return BentConversation(await self._network.open_conversation(peer, task), self._on_send)


async def settle(*sellers: ShopSeller) -> None:
    """Wait until the sellers' books stopped moving."""
    await asyncio.sleep(0.1)


async def _nobody(conversation) -> None:
    raise AssertionError("nobody calls a buyer")


class Shop:
    def __init__(self):
        self.clock = FixedClock()
        self.mesh = MemoryMesh(self.clock)

    def seller(self, name="bob", **options) -> ShopSeller:
        options.setdefault("engine", ScriptedEngine())
        return ShopSeller(self.mesh, self.clock, name, **options)

    def buyer(self, name="alice", **options) -> ShopBuyer:
        return ShopBuyer(self.mesh, self.clock, name, **options)
