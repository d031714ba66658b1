"""The local ledger never gives away more than it was granted, and believes nobody without a signature."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from contracts.ledger import LedgerRail
from market.channel import Channel, ChannelStep, pay, step, take
from market.errors import InsufficientFunds, PaymentRefused
from market.money import OCTO
from market.ports import Balances
from market.record import ReceiptRecord
from market.signing import Secp256k1Signer
from market.testing import check_rail
from market.voucher import ChannelTerms, check_opening

ALICE, BOB, SESSION = (Secp256k1Signer(bytes([n]) * 32) for n in (1, 2, 3))


class MemoryBooks:
    def __init__(self) -> None:
        self.held: dict[tuple[str, bytes], Channel] = {}

    async def save(self, channel: Channel | None, *, receipts: Iterable[ReceiptRecord] = ()) -> None:
        if channel is not None:
            self.held[channel.role, channel.id] = channel

    async def channels(self) -> list[Channel]:
        await asyncio.sleep(0)  # as a disk would: others may run between the look and the answer
        return list(self.held.values())

    async def receipts(self, *, task: bytes) -> list[ReceiptRecord]:
        return []


def rail_of(wallet: Secp256k1Signer, books: MemoryBooks, granted: int = 100 * OCTO) -> LedgerRail:
    return LedgerRail(network="octo", wallet=wallet, books=books, granted=granted, deposit_cap=10 * OCTO)


def terms(salt: int = 1, **changes: object) -> ChannelTerms:
    plain = ChannelTerms(
        network="octo",
        rail="ledger/1",
        payer=ALICE.address,
        payee=BOB.address,
        session_key=SESSION.address,
        salt=salt.to_bytes(32, "big"),
    )
    return replace(plain, **changes)


def channel_of(opening, role: str = "payer") -> Channel:
    return Channel(role=role, peer="peer", terms=opening.terms, opening=opening, deposit=opening.deposit)


async def check_balances(
    payer: LedgerRail, payer_books: MemoryBooks, payee: LedgerRail, payee_books: MemoryBooks
) -> None:
    """Every step of a channel's life moves the balances, and they always add up."""
    before = await payer.balances()
    assert before.available + before.locked + before.spent == before.granted
    opening = await payer.open_channel(terms(salt=77), 2 * OCTO)
    assert await payee.check_channel(opening) == 2 * OCTO
    locked = await payer.balances()
    assert (locked.locked, locked.available) == (before.locked + 2 * OCTO, before.available - 2 * OCTO)
    paying, frame = pay(channel_of(opening), OCTO // 2, b"\1" * 32, SESSION)
    taking = take(channel_of(opening, "payee"), frame)
    await payer_books.save(paying)
    await payee_books.save(taking)
    paid, earned = await payer.balances(), await payee.balances()
    assert (paid.spent - before.spent, earned.earned) == (OCTO // 2, OCTO // 2)
    assert paid.available + paid.locked + paid.spent == paid.granted
    await payer_books.save(step(step(paying, ChannelStep.REQUEST_CLOSE), ChannelStep.CLOSE))
    closed = await payer.balances()
    assert (closed.locked, closed.available) == (before.locked, before.available - OCTO // 2)
    with pytest.raises(InsufficientFunds):
        await payer.open_channel(terms(salt=78), 1 << 200)
    for forged in (
        replace(opening, deposit=3 * OCTO),
        replace(opening, signature=opening.signature[:-1] + bytes([opening.signature[-1] ^ 7])),
        replace(opening, terms=replace(opening.terms, salt=b"\x09" * 32)),
    ):
        with pytest.raises(PaymentRefused):
            await payee.check_channel(forged)


async def test_balances_add_up_all_along_a_channels_life():
    alices, bobs = MemoryBooks(), MemoryBooks()
    await check_balances(rail_of(ALICE, alices), alices, rail_of(BOB, bobs), bobs)


async def test_the_ledger_is_a_rail():
    await check_rail(rail_of(ALICE, MemoryBooks()), rail_of(BOB, MemoryBooks()), terms(), deposit=OCTO)


async def test_an_opening_is_signed_by_the_wallet():
    opening = await rail_of(ALICE, MemoryBooks()).open_channel(terms(), OCTO)
    check_opening(opening)
    assert opening.terms == terms()


async def test_two_openings_at_once_cannot_overspend():
    rail = rail_of(ALICE, MemoryBooks(), granted=25 * OCTO)
    tries = [rail.open_channel(terms(salt=n), 10 * OCTO) for n in range(5)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(answer, InsufficientFunds) for answer in answers) == 3
    assert (await rail.balances()).available == 5 * OCTO


class SlowBooks(MemoryBooks):
    """The first look at the books takes until `go` is set; what it saw is old by then."""

    def __init__(self) -> None:
        super().__init__()
        self.go: asyncio.Event | None = None

    async def channels(self) -> list[Channel]:
        seen = await super().channels()
        go, self.go = self.go, None
        if go is not None:
            await go.wait()
        return seen


@pytest.mark.parametrize(
    "meanwhile", [lambda rail: rail.balances(), lambda rail: rail.open_channel(terms(salt=3), OCTO)]
)
async def test_a_channel_that_is_written_down_during_an_opening_is_not_forgotten(meanwhile):
    books = SlowBooks()
    rail = rail_of(ALICE, books, granted=10 * OCTO)
    first = await rail.open_channel(terms(salt=1), 6 * OCTO)
    go = books.go = asyncio.Event()
    second = asyncio.create_task(rail.open_channel(terms(salt=2), 6 * OCTO))
    while books.go is not None:
        await asyncio.sleep(0)
    await books.save(channel_of(first))
    other = asyncio.create_task(meanwhile(rail))
    for _ in range(10):
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(InsufficientFunds):
        await second
    await other


async def test_too_little_money_says_how_much_there_is_and_what_to_do():
    rail = rail_of(ALICE, MemoryBooks(), granted=OCTO)
    with pytest.raises(InsufficientFunds, match=r"2 OCTO are needed, 1 OCTO are available.*payment\.grant"):
        await rail.open_channel(terms(), 2 * OCTO)


async def test_an_opening_counts_once_when_the_books_have_it():
    books = MemoryBooks()
    rail = rail_of(ALICE, books)
    opening = await rail.open_channel(terms(), 4 * OCTO)
    await books.save(channel_of(opening))
    assert await rail.balances() == Balances(
        granted=100 * OCTO, available=96 * OCTO, locked=4 * OCTO, spent=0, earned=0
    )


async def test_the_same_opening_again_locks_nothing_more():
    books = MemoryBooks()
    rail = rail_of(ALICE, books)
    assert await rail.open_channel(terms(), OCTO) == await rail.open_channel(terms(), OCTO)
    assert (await rail.balances()).locked == OCTO
    with pytest.raises(PaymentRefused, match="new salt"):
        await rail.open_channel(terms(), 2 * OCTO)


async def test_terms_in_the_books_are_not_signed_again():
    books = MemoryBooks()
    await books.save(channel_of(await rail_of(ALICE, books).open_channel(terms(), OCTO)))
    with pytest.raises(PaymentRefused, match="new salt"):
        await rail_of(ALICE, books).open_channel(terms(), OCTO)


@pytest.mark.parametrize("deposit", [0, -1, 10 * OCTO + 1])
async def test_a_deposit_outside_the_cap_is_neither_opened_nor_taken(deposit):
    with pytest.raises(InsufficientFunds, match="cap"):
        await rail_of(ALICE, MemoryBooks()).open_channel(terms(), deposit)
    opening = await rail_of(ALICE, MemoryBooks()).open_channel(terms(), OCTO)
    with pytest.raises(PaymentRefused, match="cap"):
        await rail_of(BOB, MemoryBooks()).check_channel(replace(opening, deposit=deposit))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rail": "chain/1"}, "rail"),
        ({"network": "other"}, "network"),
        ({"payee": SESSION.address}, "not this node's wallet"),
        ({"payer": SESSION.address}, "payer's wallet"),
    ],
)
async def test_a_channel_that_is_not_ours_is_refused(changes, reason):
    opening = await rail_of(ALICE, MemoryBooks()).open_channel(terms(), OCTO)
    with pytest.raises(PaymentRefused, match=reason):
        await rail_of(BOB, MemoryBooks()).check_channel(replace(opening, terms=terms(**changes)))


async def test_nobody_elses_money_is_signed_away():
    with pytest.raises(PaymentRefused, match="not this node's wallet"):
        await rail_of(BOB, MemoryBooks()).open_channel(terms(), OCTO)


async def test_a_known_channel_cannot_come_back_richer_or_from_the_dead():
    books = MemoryBooks()
    alice, bob = rail_of(ALICE, MemoryBooks()), rail_of(BOB, books)
    opening = await alice.open_channel(terms(), OCTO)
    await books.save(channel_of(opening, "payee"))
    assert await bob.check_channel(opening) == OCTO
    richer = await rail_of(ALICE, MemoryBooks()).open_channel(terms(), 2 * OCTO)
    with pytest.raises(PaymentRefused, match="opened before"):
        await bob.check_channel(richer)
    await books.save(step(channel_of(opening, "payee"), ChannelStep.REQUEST_CLOSE))
    with pytest.raises(PaymentRefused, match="closing"):
        await bob.check_channel(opening)


async def test_channels_of_other_rails_and_networks_do_not_count():
    books = MemoryBooks()
    opening = await rail_of(ALICE, MemoryBooks()).open_channel(terms(), OCTO)
    for other in (terms(rail="chain/1"), terms(network="other")):
        await books.save(channel_of(replace(opening, terms=other)))
    assert (await rail_of(ALICE, books).balances()).locked == 0


async def test_a_grant_that_was_lowered_leaves_nothing_but_not_less():
    books = MemoryBooks()
    await books.save(channel_of(await rail_of(ALICE, books).open_channel(terms(), 5 * OCTO)))
    assert (await rail_of(ALICE, books, granted=OCTO).balances()).available == 0
