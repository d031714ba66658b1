"""Vouchers become money on two real chains: to the last unit, many at once, and none but the one that was signed."""

from dataclasses import replace

import pytest
from chain_nodes import LEAF, NOW, opened, paid, pair, session_of, until

from contracts.faults import Reverted
from market.channel import pay, take
from market.money import OCTO
from market.rails import chain_rail
from market.voucher import Voucher, VoucherFrame, sign_voucher

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


async def test_what_was_signed_is_paid_to_the_last_unit(world):
    async with pair(world) as (payer, payee):
        before = await payee.octo()
        mine, theirs = await opened(payer, payee)
        mine, theirs = await paid(payer, payee, mine, theirs, 1)
        (first,) = await payee.parts.collector.settle(everything=True)
        assert (first.amount, await payee.octo()) == (1, before + 1)
        mine, theirs = await paid(payer, payee, mine, theirs, mine.left)
        (second,) = await payee.parts.collector.settle(everything=True)
        assert second.amount == 10 * OCTO - 1
        assert await payee.octo() == before + 10 * OCTO
        assert await payee.parts.collector.settle(everything=True) == []


async def test_many_channels_are_redeemed_in_one_transaction(world):
    async with pair(world) as (payer, payee):
        before = await payee.octo()
        books = [await opened(payer, payee, OCTO) for _ in range(5)]
        for number, (mine, theirs) in enumerate(books, start=1):
            await paid(payer, payee, mine, theirs, number)
        (settled,) = await payee.parts.collector.settle(everything=True)
        assert (len(settled.channels), settled.amount) == (5, 15)
        assert await payee.octo() == before + 15


async def test_a_batch_passes_over_what_someone_redeemed_for_us(world):
    async with pair(world) as (payer, payee):
        before = await payee.octo()
        first, second = await opened(payer, payee, OCTO), await opened(payer, payee, OCTO)
        _, theirs = await paid(payer, payee, *first, 5)
        _, other = await paid(payer, payee, *second, 7)
        batch = [(theirs.terms, theirs.voucher), (other.terms, other.voucher)]
        await payer.parts.sender.send(payer.channels.redeem(theirs.terms, theirs.voucher))
        assert await payee.octo() == before + 5
        await payee.parts.sender.send(payee.channels.redeem_batch(payee.wallet.address, batch))
        assert await payee.octo() == before + 12
        assert await payee.parts.collector.settle(everything=True) == []


async def test_the_loop_redeems_by_policy_alone(world):
    async with pair(world, policy=NOW) as (payer, payee):
        before = await payee.octo()
        await paid(payer, payee, *await opened(payer, payee), 4)

        async def arrived() -> bool:
            return await payee.octo() == before + 4

        await until(arrived)


def changed(voucher: Voucher, **changes: object) -> Voucher:
    return replace(voucher, **changes)


def high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


async def test_the_contract_takes_no_voucher_but_the_one_that_was_signed(world):
    """Each of these is refused by our till already; here the contract itself says no."""
    async with pair(world) as (payer, payee):
        (mine, theirs), (other, _) = await opened(payer, payee), await opened(payer, payee)
        mine, theirs = await paid(payer, payee, mine, theirs, 5 * OCTO)
        key, good = session_of(payer.wallet, mine.terms.salt), theirs.voucher
        over = sign_voucher(mine.terms, 10 * OCTO + 1, LEAF, key)
        most = sign_voucher(mine.terms, 2**256 - 1, LEAF, key)
        nothing = sign_voucher(mine.terms, 0, LEAF, key)
        elsewhere = replace(mine.terms, rail=chain_rail(1, bytes.fromhex(payer.rail.name[-40:])))
        foreign_chain = sign_voucher(elsewhere, 5 * OCTO, LEAF, key)
        foreign_network = sign_voucher(replace(mine.terms, network="other"), 5 * OCTO, LEAF, key)
        for terms, voucher, error in (
            (mine.terms, changed(good, amount=good.amount + 1), "BadSignature"),
            (mine.terms, changed(good, receipts_root=bytes(32)), "BadSignature"),
            (other.terms, good, "BadSignature"),
            (mine.terms, foreign_chain, "BadSignature"),
            (mine.terms, foreign_network, "BadSignature"),
            (mine.terms, sign_voucher(mine.terms, OCTO, LEAF, payee.wallet), "BadSignature"),
            (mine.terms, over, "Overdrawn"),
            (mine.terms, most, "Overdrawn"),
            (mine.terms, nothing, "Stale"),
        ):
            with pytest.raises(Reverted) as refused:
                await payee.parts.sender.send(payee.channels.redeem(terms, voucher))
            assert refused.value.name == error
        await payee.parts.sender.send(payee.channels.redeem(mine.terms, good))
        with pytest.raises(Reverted) as replayed:
            await payee.parts.sender.send(payee.channels.redeem(mine.terms, good))
        assert replayed.value.name == "Stale"
        smaller = sign_voucher(mine.terms, 4 * OCTO, LEAF, key)
        with pytest.raises(Reverted):
            await payee.parts.sender.send(payee.channels.redeem(mine.terms, smaller))


async def test_the_second_form_of_a_signature_is_refused_before_and_on_the_chain(world):
    async with pair(world) as (payer, payee):
        mine, theirs = await opened(payer, payee)
        _, frame = pay(mine, OCTO, LEAF, session_of(payer.wallet, mine.terms.salt))
        second = changed(frame.voucher, signature=high_s(frame.voucher.signature))
        with pytest.raises(Exception, match="high s"):
            take(theirs, VoucherFrame(voucher=second, leaves=frame.leaves, added=frame.added))
        # Its compact form cannot even say it: the top bit of a high s is the parity's place.
        s = int.from_bytes(second.signature[32:64], "big")
        raw = (payer.wallet.address, mine.terms.session_key, mine.terms.salt, OCTO, second.receipts_root,
               second.signature[:32], s.to_bytes(32, "big"))  # fmt: skip
        call = payee.channels.contract.call("redeem", payee.wallet.address, raw)
        with pytest.raises(Reverted) as refused:
            await payee.parts.sender.send(call)
        assert refused.value.name == "BadSignature"


async def test_one_bad_voucher_keeps_none_of_the_others_from_being_paid(world):
    async with pair(world) as (payer, payee):
        before = await payee.octo()
        (mine, theirs), good = await opened(payer, payee), await opened(payer, payee)
        forged = changed(sign_voucher(mine.terms, OCTO, LEAF, payee.wallet), amount=2 * OCTO)
        await payee.books.save(replace(theirs, paid=2 * OCTO, voucher=forged))
        await paid(payer, payee, *good, OCTO)
        await payee.parts.collector.settle(everything=True)
        assert await payee.octo() == before + OCTO
        assert await payee.parts.collector.settle(everything=True) == []
