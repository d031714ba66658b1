"""Kills, reorganisations, few confirmations and a chain that is away: the rail loses nothing and pays once."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from chain_nodes import NOW, RAIL, node, opened, paid, pair, terms_between, until
from worlds import QUICK, devchain_world

from market.errors import PaymentRefused
from market.money import OCTO
from market.testing import MemoryBooks


async def test_a_kill_between_voucher_and_redemption_loses_nothing_and_pays_once(world):
    books, keepers, wallet = MemoryBooks(), {}, await world.wallet()
    async with node(world) as payer:
        async with node(world, wallet=wallet, books=books, keepers=keepers) as payee:
            before = await payee.octo()
            mine, theirs = await opened(payer, payee)
            mine, theirs = await paid(payer, payee, mine, theirs, OCTO)
            settling = asyncio.create_task(payee.parts.collector.settle(everything=True))
            await asyncio.sleep(0.02)
            settling.cancel()
        async with node(world, wallet=wallet, books=books, keepers=keepers) as payee:
            await payee.parts.collector.settle(everything=True)
            assert await payee.octo() == before + OCTO
            assert (await payee.channels.channel(mine.id)).redeemed == OCTO


async def test_a_reorganisation_takes_a_redemption_back_and_it_is_made_again(anvil):
    async with pair(anvil, policy=NOW) as (payer, payee):
        before = await payee.octo()
        mine, theirs = await opened(payer, payee)
        await anvil.mine(3)
        mine, theirs = await paid(payer, payee, mine, theirs, OCTO)

        async def redeemed() -> bool:
            return (await payee.channels.channel(mine.id)).redeemed == OCTO

        await until(redeemed)
        await anvil.rpc.call("anvil_reorg", 1, [])
        assert (await payee.channels.channel(mine.id)).redeemed == 0
        await until(redeemed)
        assert await payee.octo() == before + OCTO


async def test_a_deposit_without_enough_confirmations_does_not_count(anvil):
    careful = replace(QUICK, confirmations=3)
    async with pair(anvil, send=careful, rail=replace(RAIL, check_s=0.5)) as (payer, payee):
        opening = await payer.rail.open_channel(terms_between(payer, payee), OCTO)
        with pytest.raises(PaymentRefused, match="no such channel"):
            await payee.rail.check_channel(opening)
        await anvil.mine(2)
        assert await payee.rail.check_channel(opening) == OCTO


async def test_while_the_chain_is_away_vouchers_go_on_up_to_a_limit(tmp_path):
    async with AsyncExitStack() as stack:
        async with AsyncExitStack() as living:
            world = await living.enter_async_context(devchain_world(tmp_path))
            payer = await stack.enter_async_context(node(world))
            payee = await stack.enter_async_context(node(world))
            before = await payee.octo()
            mine, theirs = await opened(payer, payee)
            other = await payer.rail.open_channel(terms_between(payer, payee), OCTO)
            mine, theirs = await paid(payer, payee, mine, theirs, RAIL.away_limit)

        async def is_away() -> bool:
            return payee.rail.health.state == "away"

        await until(is_away)
        await payee.rail.check_serving()
        mine, theirs = await paid(payer, payee, mine, theirs, 1)
        with pytest.raises(PaymentRefused, match=r"chain is away and 1\.000000000000000001 OCTO wait"):
            await payee.rail.check_serving()
        with pytest.raises(PaymentRefused):
            await payee.rail.check_channel(other)
        assert (await payer.rail.balances()).locked == 9 * OCTO - 1, "from what was known"
        world = await stack.enter_async_context(devchain_world(tmp_path))

        async def is_back() -> bool:
            return payee.rail.health.state == "up"

        await until(is_back)
        await payee.rail.check_serving()
        await payee.parts.collector.settle(everything=True)
        assert await world.octo.balance(payee.wallet.address) == before + RAIL.away_limit + 1
