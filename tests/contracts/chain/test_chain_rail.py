"""The chain rail on two real chains: deposits, vouchers that are worth money, and everyone who tries to cheat."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from worlds import CHALLENGE_S, NETWORK, QUICK, World, devchain_world

from contracts.channels import Channels
from contracts.faults import GasPurseEmpty, Reverted
from contracts.follower import FollowTerms
from contracts.keeping import MemoryKeeper
from contracts.rail import RailTerms
from contracts.rails import ChainParts, open_chain_rail
from contracts.settlement import SettlePolicy
from market.channel import Channel, pay, take
from market.errors import InsufficientFunds, PaymentRefused
from market.identity import WalletSigner
from market.money import OCTO
from market.rails import chain_rail
from market.signing import Secp256k1Signer
from market.testing import FixedClock, MemoryBooks, check_rail
from market.voucher import ChannelTerms, Opening, Voucher, VoucherFrame, sign_opening, sign_voucher

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
RAIL = RailTerms(deposit_cap=100 * OCTO, away_limit=OCTO, open_s=20, check_s=2)
NOW = SettlePolicy(worth=0, dust=0, period_s=0.1)
NEVER = SettlePolicy(worth=2**200, age_s=2**40, period_s=0.1)
QUICKLY = FollowTerms(poll_s=0.05)
LEAF = b"\x07" * 32


@dataclass
class Node:
    """One side: its wallet, books and rail; `keepers` outlive the rail, as files would."""

    world: World
    wallet: Secp256k1Signer
    books: MemoryBooks
    parts: ChainParts
    closing: list[bytes]
    clock: FixedClock

    @property
    def rail(self):
        return self.parts.rail

    @property
    def channels(self) -> Channels:
        return Channels(self.world.chain, self.world.deployment)

    async def octo(self) -> int:
        return await self.world.octo.balance(self.wallet.address)


@asynccontextmanager
async def node(
    world: World,
    *,
    wallet=None,
    books=None,
    keepers=None,
    policy=NEVER,
    follow=QUICKLY,
    rail=RAIL,
    send=QUICK,
    clock=None,
) -> AsyncIterator[Node]:
    wallet = wallet or await world.wallet()
    books, keepers, closing = books or MemoryBooks(), {} if keepers is None else keepers, []
    clock = clock or FixedClock()

    async def on_closing(channel_id: bytes, _: object) -> None:
        closing.append(channel_id)

    async with open_chain_rail(
        world.url, deployment=world.deployment, network=NETWORK, wallet=wallet, books=books, clock=clock,
        keepers=lambda name: keepers.setdefault(name, MemoryKeeper()), terms=rail, policy=policy, send_terms=send,
        follow_terms=follow, on_closing=on_closing,
    ) as parts:  # fmt: skip
        yield Node(world, wallet, books, parts, closing, clock)


@asynccontextmanager
async def pair(world: World, **options: object) -> AsyncIterator[tuple[Node, Node]]:
    async with AsyncExitStack() as stack:
        payer = await stack.enter_async_context(node(world))
        yield payer, await stack.enter_async_context(node(world, **options))


def session_of(wallet: WalletSigner, salt: bytes) -> Secp256k1Signer:
    return Secp256k1Signer(hashlib.sha256(wallet.address + salt).digest())


def terms_between(payer: Node, payee: Node, /, **changes: object) -> ChannelTerms:
    salt = secrets.token_bytes(32)
    plain = ChannelTerms(
        network=NETWORK, rail=payer.rail.name, payer=payer.wallet.address, payee=payee.wallet.address,
        session_key=session_of(payer.wallet, salt).address, salt=salt,
    )  # fmt: skip
    return replace(plain, **changes)


def book(opening: Opening, role: str) -> Channel:
    return Channel(role=role, peer="peer", terms=opening.terms, opening=opening, deposit=opening.deposit)


async def opened(payer: Node, payee: Node, deposit: int = 10 * OCTO) -> tuple[Channel, Channel]:
    """A channel as both sides have it, checked and in the books."""
    opening = await payer.rail.open_channel(terms_between(payer, payee), deposit)
    assert await payee.rail.check_channel(opening) == deposit
    mine, theirs = book(opening, "payer"), book(opening, "payee")
    await payer.books.save(mine)
    await payee.books.save(theirs)
    return mine, theirs


async def paid(payer: Node, payee: Node, mine: Channel, theirs: Channel, amount: int) -> tuple[Channel, Channel]:
    mine, frame = pay(mine, amount, LEAF, session_of(payer.wallet, mine.terms.salt))
    theirs = take(theirs, frame)
    await payer.books.save(mine)
    await payee.books.save(theirs)
    return mine, theirs


async def until(condition, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


# ---- what every rail does ------------------------------------------------------------------------


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


# ---- vouchers become money -----------------------------------------------------------------------


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


# ---- ends ----------------------------------------------------------------------------------------


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


# ---- bad luck ------------------------------------------------------------------------------------


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
