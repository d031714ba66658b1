"""Channels end on two real chains, and the deposit finds its way: asked for, slept through, too late, forgotten."""

from contextlib import AsyncExitStack
from dataclasses import replace

from chain_nodes import NEVER, node, opened, paid, pair, terms_between, until
from worlds import CHALLENGE_S

from market.money import OCTO
from market.testing import FixedClock, MemoryBooks


async def test_a_request_to_close_is_answered_with_the_last_voucher_and_the_rest_goes_back(world):
    async with pair(world, policy=replace(NEVER, period_s=3600)) as (payer, payee):
        payers, payees = await payer.octo(), await payee.octo()
        mine, theirs = await opened(payer, payee)
        mine, theirs = await paid(payer, payee, mine, theirs, 4 * OCTO)
        await payer.rail.request_close(mine)

        async def redeemed() -> bool:
            return await payee.octo() == payees + 4 * OCTO

        await until(redeemed)
        assert payee.closing == [mine.id]
        await world.pass_time(CHALLENGE_S + 1)

        async def came_back() -> bool:
            return await payer.octo() == payers - 4 * OCTO

        await until(came_back)
        now = await payer.rail.balances()
        assert (now.locked, now.spent, now.available) == (0, 4 * OCTO, payers - 4 * OCTO)


async def test_a_payee_that_slept_through_the_request_still_redeems_in_time(world):
    books, keepers = MemoryBooks(), {}
    wallet = await world.wallet()
    async with node(world) as payer:
        async with node(world, wallet=wallet, books=books, keepers=keepers) as payee:
            before = await payee.octo()
            mine, theirs = await opened(payer, payee)
            mine, theirs = await paid(payer, payee, mine, theirs, 4 * OCTO)
        await payer.rail.request_close(mine)
        async with node(world, wallet=wallet, books=books, keepers=keepers) as payee:

            async def redeemed() -> bool:
                return await payee.octo() == before + 4 * OCTO

            await until(redeemed)
            assert mine.id in payee.closing


async def test_whoever_slept_has_heard_of_what_ended_before_its_rail_is_open(world):
    """Or a payer would sign a voucher on a channel that is closing, and a payee serve for one that is closed."""
    slept = {"payer": MemoryBooks(), "payee": MemoryBooks()}
    wallets = {side: await world.wallet() for side in slept}
    async with AsyncExitStack() as stack:
        payer, payee = [
            await stack.enter_async_context(node(world, wallet=wallets[side], books=slept[side])) for side in slept
        ]
        (closing, _), (closed, _), (lasting, _) = [await opened(payer, payee) for _ in range(3)]
    async with node(world, wallet=wallets["payer"]) as payer, node(world, wallet=wallets["payee"]) as payee:
        await payer.rail.request_close(closing)
        await payee.rail.close(closed)
    for side, books in slept.items():
        async with node(world, wallet=wallets[side], books=books) as woken:
            assert sorted(woken.closing) == sorted((closing.id, closed.id)), f"the {side}, of all but {lasting.id}"


async def test_a_voucher_that_comes_too_late_is_given_up_and_holds_nothing_up(world):
    async with node(world) as payer:
        books, wallet = MemoryBooks(), await world.wallet()
        async with node(world, wallet=wallet, books=books) as payee:
            late = await paid(payer, payee, *await opened(payer, payee), OCTO)
            await payer.rail.request_close(late[0])
        await world.pass_time(CHALLENGE_S + 1)

        async def is_closed() -> bool:
            return (await payer.channels.channel(late[0].id)).closed

        if not (await payer.channels.channel(late[0].id)).redeemed:
            await until(is_closed)
        async with node(world, wallet=wallet, books=books) as payee:
            before = await payee.octo()
            await paid(payer, payee, *await opened(payer, payee), 7)
            await payee.parts.collector.settle(everything=True)
            assert await payee.octo() == before + 7
            assert await payee.parts.collector.unsettled() == 0


async def test_a_payee_can_end_a_channel_at_once(world):
    async with pair(world) as (payer, payee):
        payers, payees = await payer.octo(), await payee.octo()
        mine, theirs = await opened(payer, payee)
        mine, theirs = await paid(payer, payee, mine, theirs, OCTO)
        await payee.rail.close(theirs)
        assert (await payer.octo(), await payee.octo()) == (payers - OCTO, payees + OCTO)


async def test_a_deposit_that_never_came_into_the_books_comes_back(world):
    """As after a kill between the transaction and the purse's books: the channel's salt is in the notes alone."""
    keepers, wallet = {}, await world.wallet()
    async with node(world) as payee:
        async with node(world, wallet=wallet, keepers=keepers) as payer:
            before = await payer.octo()
            orphan = await payer.rail.open_channel(terms_between(payer, payee), 5 * OCTO)
        later = FixedClock()
        later.advance(120_000)
        async with node(world, wallet=wallet, keepers=keepers, clock=later) as payer:

            async def asked_back() -> bool:
                return orphan.terms.channel_id() in payer.closing

            await until(asked_back)
            await world.pass_time(CHALLENGE_S + 1)

            async def came_back() -> bool:
                return await payer.octo() == before

            await until(came_back)


async def test_a_channel_in_the_books_is_not_asked_back(world):
    keepers, wallet, books = {}, await world.wallet(), MemoryBooks()
    async with node(world) as payee:
        async with node(world, wallet=wallet, keepers=keepers, books=books) as payer:
            mine, _ = await opened(payer, payee)
        later = FixedClock()
        later.advance(120_000)
        async with node(world, wallet=wallet, keepers=keepers, books=books, clock=later) as payer:
            await payer.parts.follower.tend()
            await payer.parts.follower.tend()
            assert payer.closing == []
            assert (await payer.channels.channel(mine.id)).closes_at == 0
