"""Clients and providers that cheat with vouchers, receipts and channels: the other side keeps what it has, says why,
and goes on with those who are honest. What the contracts say to the same is in tests/contracts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from no_waiting import NO_WAITING
from shop import OCTO, make_order, settle

from market.channel import ChannelState, take
from market.errors import NoProvider, OctoError, PaymentRefused, PeerBrokeProtocol, PeerFailed
from market.message import Accept, Payment, Propose, TaskResponse, TickReceipt
from market.parts import SellerTerms
from market.quote import sign_quote
from market.rails import chain_rail
from market.receipt import sign_receipt
from market.signing import Secp256k1Signer
from market.testing import ScriptedEngine
from market.voucher import Voucher, VoucherFrame, sign_voucher

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
INPUT = 9 * OCTO // 10**6
STRANGER = Secp256k1Signer(b"\x07" * 32)


@pytest.fixture
def anyio_backend():
    return NO_WAITING


class Forger:
    """Replaces the `kind` of voucher-bearing message number `at` by what `forge` makes of its frame."""

    def __init__(self, forge, kind, at: int = 1) -> None:
        self.forge, self.kind, self.at = forge, kind, at
        self.seen = 0
        self.frames: list[VoucherFrame] = []
        self.client = None

    def __call__(self, body):
        if not isinstance(body, (Accept, Payment)):
            return body
        self.frames.append(body.voucher)
        if isinstance(body, self.kind):
            self.seen += 1
            if self.seen == self.at:
                return replace(body, voucher=self.forge(self, body.voucher))
        return body

    @property
    def channel(self):
        return next(iter(self.client.books.saved.values()))

    def signed(self, frame: VoucherFrame, *, terms=None, amount=None, root=None, key=None) -> VoucherFrame:
        """The frame with a voucher of the client's own making: whatever a thief of no key can sign."""
        channel, voucher = self.channel, frame.voucher
        key = key or self.client.party.session_key(channel.terms.salt)
        amount = voucher.amount if amount is None else amount
        made = sign_voucher(terms or channel.terms, amount, root or voucher.receipts_root, key)
        return replace(frame, voucher=replace(made, channel=voucher.channel))


def replayed(forger, frame):
    return forger.frames[-2] if len(forger.frames) > 1 else replace(frame, leaves=0, added=())


def high_s(forger, frame):
    signature = frame.voucher.signature
    s = ORDER - int.from_bytes(signature[32:64], "big")
    second = signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))
    return replace(frame, voucher=replace(frame.voucher, signature=second))


def elsewhere(forger, frame):
    """A good voucher, of a channel that is not this one."""
    terms = replace(forger.channel.terms, salt=bytes(32))
    made = sign_voucher(terms, frame.voucher.amount, frame.voucher.receipts_root, STRANGER)
    return replace(frame, voucher=Voucher(**{name: getattr(made, name) for name in Voucher.__slots__}))


def on_another_chain(forger, frame):
    return forger.signed(frame, terms=replace(forger.channel.terms, rail=chain_rail(5, b"\x05" * 20)))


def on_another_network(forger, frame):
    return forger.signed(frame, terms=replace(forger.channel.terms, network="other"))


def by_another_key(forger, frame):
    return forger.signed(frame, key=STRANGER)


def by_the_wallet(forger, frame):
    return forger.signed(frame, key=forger.client.party.wallet)


def over_the_deposit(forger, frame):
    return forger.signed(frame, amount=forger.channel.deposit + 1)


def all_the_world(forger, frame):
    return forger.signed(frame, amount=2**256 - 1)


def nothing_at_all(forger, frame):
    return forger.signed(frame, amount=0)


def with_another_root(forger, frame):
    return forger.signed(frame, root=bytes(32))


def of_other_receipts(forger, frame):
    return replace(frame, added=tuple(bytes(32) for _ in frame.added))


def of_receipts_to_come(forger, frame):
    return replace(frame, leaves=frame.leaves + 5)


FORGERIES = [
    (replayed, "stale"),
    (high_s, "high s"),
    (elsewhere, "another channel"),
    (on_another_chain, "not signed by the channel's session key"),
    (on_another_network, "not signed by the channel's session key"),
    (by_another_key, "not signed by the channel's session key"),
    (by_the_wallet, "not signed by the channel's session key"),
    (over_the_deposit, "over the deposit"),
    (all_the_world, "over the deposit"),
    (nothing_at_all, "stale"),
    (with_another_root, "root does not follow"),
    (of_other_receipts, "root does not follow"),
    (of_receipts_to_come, "missing"),
]


@pytest.mark.parametrize(("forge", "why"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
async def test_a_forged_voucher_in_the_middle_of_an_answer_ends_it_and_the_older_one_counts(
    shop, monkeypatch, forge, why
):
    monkeypatch.setattr("market.till.GAP_TIMEOUT_S", 0.2)
    engine = ScriptedEngine("x" * 400, delay_s=0.001)
    forger = Forger(forge, Payment, at=2)
    bob, mallory = shop.seller(engine=engine), shop.buyer("mallory", on_send=forger)
    forger.client = mallory
    with pytest.raises(PeerFailed, match=why):
        await mallory.ask()
    await settle(bob)
    channel = bob.books.saved["payee", forger.channel.id]
    assert channel.voucher == forger.frames[1].voucher, "the last good one"
    assert bob.earned() == INPUT + 8 * 3 * OCTO // 10**6
    assert engine.running == 0
    assert engine.generated < 200
    text, _ = await shop.buyer("alice").ask(max_tokens=8)
    assert text == "x" * 8


AT_ACCEPT = {nothing_at_all: "does not pay", elsewhere: "not known here"}


@pytest.mark.parametrize(("forge", "why"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
async def test_a_forged_voucher_with_accept_buys_not_one_token(shop, monkeypatch, forge, why):
    monkeypatch.setattr("market.till.GAP_TIMEOUT_S", 0.2)
    forger = Forger(forge, Accept)
    bob, mallory = shop.seller(), shop.buyer("mallory", on_send=forger)
    forger.client = mallory
    seen = []
    with pytest.raises(OctoError) as raised:
        async with mallory.buyer.buy(make_order()) as purchase:
            seen = [delta async for delta in purchase.deltas()]
    assert AT_ACCEPT.get(forge, why) in str(raised.value) + str(getattr(raised.value, "reasons", ""))
    assert seen == []
    assert bob.earned() == 0
    assert bob.till.exposure() <= INPUT  # the prompt was read while its voucher was looked at: that is owed
    text, _ = await shop.buyer("alice").ask()
    assert text == "Hello from the engine."


async def test_vouchers_of_several_tasks_that_overtake_each_other_are_taken_in_order(shop):
    """They share a channel, and every third is read late."""
    bob = shop.seller(engine=ScriptedEngine("y" * 80, delay_s=0.001))
    alice = shop.buyer()
    real_take, order = bob.till.take, []

    async def dawdling(account, frame):
        if frame.leaves % 3 == 0:
            await asyncio.sleep(0.03)
        order.append(frame.leaves)
        return await real_take(account, frame)

    bob.till.take = dawdling
    answers = await asyncio.gather(*(alice.ask(f"question {n}") for n in range(4)))
    await settle(bob)
    assert order != sorted(order)
    assert {text for text, _ in answers} == {"y" * 80}
    assert alice.spent() == bob.earned() == sum(purchase.outcome.amount for _, purchase in answers)


async def test_no_voucher_is_taken_a_second_time(shop):
    sent = []

    def keep(body):
        sent.append(body)
        return body

    bob, alice = shop.seller(), shop.buyer(on_send=keep)
    _, purchase = await alice.ask()
    await settle(bob)
    channel = bob.books.saved["payee", purchase.outcome.channel]
    vouchers = [body.voucher for body in sent if isinstance(body, (Accept, Payment))]
    assert len(vouchers) == 4
    for frame in vouchers:
        with pytest.raises(PaymentRefused, match="stale"):
            take(channel, frame)


async def test_a_client_that_stops_paying_in_the_middle_gets_two_ticks_more_and_owes_them(shop):
    paid = 0

    def stingy(body):
        nonlocal paid
        paid += isinstance(body, Payment)
        return None if isinstance(body, Payment) and paid > 3 else body

    engine = ScriptedEngine("z" * 400, delay_s=0.001)
    bob = shop.seller(engine=engine, terms=SellerTerms(tick_tokens=8, payment_timeout_s=0.3))
    mallory = shop.buyer("mallory", on_send=stingy)
    with pytest.raises(PeerFailed, match="no voucher came"):
        await mallory.ask()
    tick = 8 * 3 * OCTO // 10**6
    assert bob.earned() == INPUT + 3 * tick
    assert 0 < bob.till.exposure() <= 2 * tick
    assert engine.generated <= 400 - 8
    with pytest.raises(OctoError):  # what was signed and kept back is not believed either
        for _ in range(4):
            await mallory.ask()
    assert bob.till.exposure() <= 4 * tick


# ---- providers ---------------------------------------------------------------------------------------------------


def dearer(bob, *, by: int):
    """Bills more than the quote says, and signs for it."""

    def bill(body):
        if isinstance(body, (TickReceipt, TaskResponse)):
            receipt = body.receipt.read()
            inflated = replace(receipt, amount=receipt.amount + by)
            return replace(body, receipt=sign_receipt(inflated, bob[0].party.receipt_key))
        return body

    return bill


@pytest.mark.parametrize("by", [1, OCTO, 2**255])
async def test_a_bill_above_the_quote_is_not_paid_and_the_provider_is_told(shop, by):
    bob: list = []
    bob.append(shop.seller(on_send=dearer(bob, by=by)))
    alice = shop.buyer()
    with pytest.raises(PeerBrokeProtocol, match=r"receipt says .* OCTO"):
        await alice.ask()
    await settle(bob[0])
    assert alice.spent() == bob[0].earned() == INPUT
    assert alice.books.records == []


async def test_a_quote_above_the_offer_is_not_accepted_and_nothing_is_paid(shop):
    bob: list = []

    def greedy(body):
        if isinstance(body, Propose):
            quote = replace(body.quote.read(), price_out=10 * OCTO, final=True)
            return replace(body, quote=sign_quote(quote, bob[0].party.receipt_key))
        return body

    bob.append(shop.seller(on_send=greedy))
    alice = shop.buyer()
    with pytest.raises(NoProvider) as raised:
        await alice.ask()
    assert "more than it offered" in raised.value.reasons[bob[0].party.peer]
    assert alice.books.saved == {}, "not even a channel was opened"


async def test_a_receipt_is_not_paid_a_second_time(shop):
    """The provider sends each receipt again, as if it had not been paid."""
    bob: list = []
    last: list = []

    def again(body):
        if isinstance(body, TickReceipt):
            last.append(body)
            return last[0]
        return body

    bob.append(shop.seller(on_send=again))
    alice = shop.buyer()
    with pytest.raises(PeerBrokeProtocol):
        await alice.ask()
    await settle(bob[0])
    assert bob[0].earned() <= alice.spent() <= INPUT + 8 * 3 * OCTO // 10**6


# ---- ends --------------------------------------------------------------------------------------------------------


async def test_a_payer_who_asks_for_the_channel_back_while_owing_is_served_no_more_on_it(shop):
    engine = ScriptedEngine("w" * 400, delay_s=0.002)
    bob, mallory = shop.seller(engine=engine), shop.buyer("mallory")
    with pytest.raises(PeerFailed):
        async with mallory.buyer.buy(make_order()) as purchase:
            async for _ in purchase.deltas():
                if bob.earned() > INPUT:
                    channel = next(c.id for c in bob.books.saved.values())
                    await bob.till.closing(channel, closed=False)
    await settle(bob)
    kept = bob.books.saved["payee", channel]
    assert kept.state is ChannelState.CLOSING
    assert kept.voucher is not None
    assert kept.paid >= INPUT + 8 * 3 * OCTO // 10**6, "the last voucher is there to be redeemed"
    assert engine.generated < 400
    assert engine.running == 0
    with pytest.raises(NoProvider) as raised:
        await mallory.ask()
    assert any("closing" in why or "owes" in why for why in raised.value.reasons.values())


async def test_an_honest_client_whose_channel_closed_opens_another(shop):
    bob, alice = shop.seller(), shop.buyer()
    _, first = await alice.ask()
    await settle(bob)
    await alice.purse.closing(first.outcome.channel, closed=False)
    await bob.till.closing(first.outcome.channel, closed=False)
    _, second = await alice.ask()
    await settle(bob)
    assert second.outcome.channel != first.outcome.channel
    await alice.purse.closing(first.outcome.channel, closed=True)
    assert alice.books.saved["payer", first.outcome.channel].state is ChannelState.CLOSED
    assert alice.spent() == bob.earned() == first.outcome.amount + second.outcome.amount
