"""The chain rail on two real chains: deposits in escrow, and the openings that are refused."""

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from chain_nodes import RAIL, book, node, opened, paid, pair, terms_between

from contracts.faults import GasPurseEmpty
from market.errors import InsufficientFunds, PaymentRefused
from market.money import OCTO
from market.rails import chain_rail
from market.signing import Secp256k1Signer
from market.testing import check_rail
from market.voucher import sign_opening


async def test_the_chain_is_a_rail(world):
    async with pair(world) as (payer, payee):
        await check_rail(payer.rail, payee.rail, terms_between(payer, payee), deposit=3 * OCTO)


async def test_the_money_is_really_in_the_escrow_and_balances_add_up(world):
    async with pair(world) as (payer, payee):
        before = await payer.rail.balances()
        mine, theirs = await opened(payer, payee)
        assert await payer.octo() == before.available - 10 * OCTO
        await paid(payer, payee, mine, theirs, 3 * OCTO)
        now = await payer.rail.balances()
        assert (now.available, now.locked, now.spent) == (before.available - 10 * OCTO, 7 * OCTO, 3 * OCTO)
        assert now.granted == before.granted
        assert (await payee.rail.balances()).earned == 3 * OCTO


async def test_ten_channels_at_once_are_opened_and_none_twice(world):
    async with AsyncExitStack() as stack:
        payer = await stack.enter_async_context(node(world))
        payees = [await stack.enter_async_context(node(world, wallet=Secp256k1Signer(secrets.token_bytes(32))))
                  for _ in range(3)]  # fmt: skip
        before = await payer.octo()
        wanted = [terms_between(payer, payees[n % 3]) for n in range(10)]
        openings = await asyncio.gather(*(payer.rail.open_channel(terms, OCTO) for terms in wanted))
        assert await payer.octo() == before - 10 * OCTO
        assert [opening.terms for opening in openings] == wanted
        again = await payer.rail.open_channel(wanted[0], OCTO)
        assert again == openings[0]
        assert await payer.octo() == before - 10 * OCTO
        with pytest.raises(PaymentRefused, match="new salt"):
            await payer.rail.open_channel(wanted[0], 2 * OCTO)


async def test_two_channels_at_once_never_count_on_the_same_money(world):
    async with pair(world) as (payer, payee):
        have = await payer.octo()
        spare = RAIL.deposit_cap
        tries = [payer.rail.open_channel(terms_between(payer, payee), spare) for _ in range(have // spare + 3)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(answer, InsufficientFunds) for answer in answers) == 3
        assert await payer.octo() == have % spare


@pytest.mark.parametrize("deposit", [0, -1, 2**96, 2**256 - 1, 2**256])
async def test_a_deposit_of_nothing_or_of_all_the_world_is_refused(world, deposit):
    async with pair(world) as (payer, payee):
        with pytest.raises(InsufficientFunds, match="cap"):
            await payer.rail.open_channel(terms_between(payer, payee), deposit)
        assert await world.chain.nonce(payer.wallet.address) == 0


async def test_no_money_and_no_gas_are_told_apart(world):
    async with AsyncExitStack() as stack:
        payee = await stack.enter_async_context(node(world))
        poor = await stack.enter_async_context(node(world, wallet=await world.wallet(gas=False)))
        with pytest.raises(InsufficientFunds, match=r"the wallet has 0 OCTO.*faucet"):
            await poor.rail.open_channel(terms_between(poor, payee), OCTO)
        async with AsyncExitStack() as rich:
            giver = await rich.enter_async_context(node(world))
            await giver.parts.sender.send(world.octo.transfer(poor.wallet.address, 5 * OCTO))
        with pytest.raises(GasPurseEmpty, match="cannot pay for gas"):
            await poor.rail.open_channel(terms_between(poor, payee), OCTO)
        assert (await poor.rail.balances()).available == 5 * OCTO, "nothing is set aside for what was not opened"


async def test_terms_that_are_not_ours_are_not_opened(world):
    async with pair(world) as (payer, payee):
        for changes, why in (
            ({"rail": "ledger/1"}, "rail"),
            ({"network": "other"}, "network"),
            ({"payer": payee.wallet.address}, "not this node's wallet"),
            ({"rail": chain_rail(1, bytes.fromhex(payer.rail.name[-40:]))}, "rail"),
        ):
            with pytest.raises(PaymentRefused, match=why):
                await payer.rail.open_channel(terms_between(payer, payee, **changes), OCTO)


async def test_a_channel_that_is_not_on_the_chain_is_refused(world):
    async with pair(world) as (payer, payee):
        invented = sign_opening(terms_between(payer, payee), OCTO, payer.wallet)
        with pytest.raises(PaymentRefused, match="no such channel"):
            await payee.rail.check_channel(invented)


async def test_more_than_the_chain_shows_is_refused_though_the_payer_signed_it(world):
    async with pair(world) as (payer, payee):
        opening = await payer.rail.open_channel(terms_between(payer, payee), OCTO)
        more = sign_opening(opening.terms, OCTO + 1, payer.wallet)
        with pytest.raises(PaymentRefused, match=r"shows 1 OCTO in this channel, not 1\.000000000000000001"):
            await payee.rail.check_channel(more)


async def test_a_channel_that_is_closing_or_drawn_on_is_refused(world):
    async with pair(world) as (payer, payee):
        mine, theirs = await opened(payer, payee)
        await paid(payer, payee, mine, theirs, OCTO)
        await payee.parts.collector.settle(everything=True)
        with pytest.raises(PaymentRefused, match="drawn on before"):
            await payee.rail.check_channel(mine.opening)
        other, _ = await opened(payer, payee)
        await payer.rail.request_close(other)
        with pytest.raises(PaymentRefused, match="closing"):
            await payee.rail.check_channel(other.opening)


async def test_a_deposit_over_our_cap_is_refused(world):
    async with pair(world, rail=replace(RAIL, deposit_cap=OCTO)) as (payer, payee):
        opening = await payer.rail.open_channel(terms_between(payer, payee), 2 * OCTO)
        with pytest.raises(PaymentRefused, match="over our cap of 1 OCTO"):
            await payee.rail.check_channel(opening)


async def test_an_approval_that_is_gone_is_given_again(world):
    async with pair(world) as (payer, payee):
        await opened(payer, payee)
        escrow = payer.channels.contract.address
        await payer.parts.sender.send(world.octo.approve(escrow, 0))
        await opened(payer, payee)
        assert await world.octo.allowance(payer.wallet.address, escrow) == 2**256 - 1


async def test_a_channel_costs_no_more_gas_than_it_should(world):
    """Measured in a real transaction: 70,000 to open, 56,000 to redeem."""
    async with pair(world) as (payer, payee):
        await opened(payer, payee)
        mine = terms_between(payer, payee)
        receipt = await payer.parts.sender.send(payer.channels.open(mine, OCTO))
        assert receipt.gas_used <= 70_000
        opening = sign_opening(mine, OCTO, payer.wallet)
        await payee.rail.check_channel(opening)
        theirs = book(opening, "payee")
        await paid(payer, payee, book(opening, "payer"), theirs, 5)
        (settled,) = await payee.parts.collector.settle(everything=True)
        assert settled.gas <= 75_000, "the first one pays for the payee's balance too"
