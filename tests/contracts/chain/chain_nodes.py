"""Payers and payees with wallet, books and chain rail of their own, and the channels between them."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from worlds import NETWORK, QUICK, World

from contracts.channels import Channels
from contracts.follower import FollowTerms
from contracts.keeping import MemoryKeeper
from contracts.rail import RailTerms
from contracts.rails import ChainParts, open_chain_rail
from contracts.settlement import SettlePolicy
from market.channel import Channel, pay, take
from market.identity import WalletSigner
from market.money import OCTO
from market.signing import Secp256k1Signer
from market.testing import FixedClock, MemoryBooks
from market.voucher import ChannelTerms, Opening

RAIL = RailTerms(deposit_cap=100 * OCTO, away_limit=OCTO, open_s=60, check_s=2)
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


async def until(condition, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)
