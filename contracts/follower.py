"""Follows the chain for a rail: hears events, has vouchers redeemed in time, gets deposits back that are over.

It decides by what the chain says now, never by what it said: an event only tells where to look. Everything here may
be done twice: the contract refuses the second time, or there is nothing left to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from contracts.chain import Chain, Log
from contracts.channels import Channels, OnChain
from contracts.collector import Collector
from contracts.cursor import Cursor
from contracts.faults import Reverted
from contracts.openings import Openings
from contracts.sender import Sender
from contracts.views import Views
from market.channel import Channel, ChannelState
from market.errors import OctoError
from market.money import format_octo
from market.ports import Books, Clock
from market.values import value
from market.voucher import ChannelTerms

log = structlog.get_logger()

OnClosing = Callable[[bytes, OnChain], Awaitable[None]]
"""Called with a channel of ours, payer's or payee's, that is closing or closed on chain; again when that changes."""


@value
class FollowTerms:
    """`orphan_s`: how old a channel must be, that was opened and never came into the books, to be asked back.
    `given_up_s`: how long an opening is looked for that no block has taken."""

    poll_s: float = 2.0
    orphan_s: float = 60.0
    given_up_s: float = 7 * 24 * 3600.0


class Follower:
    def __init__(
        self, *, chain: Chain, channels: Channels, views: Views, collector: Collector, openings: Openings,
        sender: Sender, cursor: Cursor, books: Books, clock: Clock, terms: FollowTerms, on_closing: OnClosing | None,
    ) -> None:  # fmt: skip
        self._chain = chain
        self._channels = channels
        self._views = views
        self._collector = collector
        self._openings = openings
        self._sender = sender
        self._cursor = cursor
        self._books = books
        self._clock = clock
        self._terms = terms
        self._on_closing = on_closing
        self._told: dict[bytes, int] = {}

    async def catch_up(self) -> None:
        """Tell of what ended while nobody here followed the chain: before anything is paid from a channel of an earlier
        run, or served for one. Sends nothing; a chain that does not answer is no reason not to start."""
        lasting = {channel.id for channel in await self._ours() if channel.state is not ChannelState.CLOSED}
        try:
            await self._see(lasting)
        except OctoError as error:
            log.warning("channels_not_looked_at", why=error.message, next_step=error.next_step)

    async def run(self) -> None:
        """Until cancelled; survives whatever the chain does."""
        loop = asyncio.get_running_loop()
        next_round, complaint, wait_s = loop.time(), "", self._terms.poll_s
        while True:
            try:
                await self._cursor.step(self._heard)
                if loop.time() >= next_round:
                    await self.tend()
                    next_round = loop.time() + self._collector.policy.period_s
                complaint, wait_s = "", self._terms.poll_s
            except OctoError as error:
                if error.message != complaint:
                    log.warning("chain_follower_waits", why=error.message, next_step=error.next_step)
                complaint, wait_s = error.message, min(2 * wait_s, 15 * self._terms.poll_s)
            await asyncio.sleep(wait_s)

    async def tend(self) -> None:
        """One round: look at all our channels, redeem what is due, end what is over. Raises ChainError."""
        mine = await self._payers_terms()
        await self._look_at({channel.id for channel in await self._ours()} | mine.keys())
        await self._collector.settle()
        await self._forget_openings()
        await self._ask_back_orphans()
        await self._close_what_is_due(await self._payers_terms())

    async def _heard(self, new: Sequence[Log], removed: Sequence[Log]) -> None:
        ours = {channel.id for channel in await self._ours()} | self._openings.planned().keys()
        touched = self._channels.touched([*new, *removed]) & ours
        if touched:
            await self._look_at(touched)

    async def _look_at(self, channel_ids: Iterable[bytes]) -> None:
        if any(state.closing for state in await self._see(channel_ids)):
            await self._collector.settle()  # a voucher of a closing channel waits for nothing

    async def _see(self, channel_ids: Iterable[bytes]) -> list[OnChain]:
        """How they are now; whoever wants to know hears of those that are ending."""
        ids = sorted(channel_ids)
        states = await self._views.look_newest(ids)
        for channel_id, state in zip(ids, states, strict=True):
            if state.closes_at != self._told.get(channel_id, 0):
                await self._tell(channel_id, state)
        return states

    async def _tell(self, channel_id: bytes, state: OnChain) -> None:
        log.info("channel_closing", channel=channel_id.hex(), closes_at=state.closes_at, closed=state.closed)
        try:
            if self._on_closing is not None:
                await self._on_closing(channel_id, state)
            self._told[channel_id] = state.closes_at
        except OctoError as error:  # told again next time; what is due is redeemed all the same
            log.warning("closing_not_noted", channel=channel_id.hex(), why=error.message)

    async def _forget_openings(self) -> None:
        """What the books hold needs no note; nor does what has ended, or never came."""
        in_books = {channel.id for channel in await self._ours() if channel.role == "payer"}
        for channel_id, opening in self._openings.planned().items():
            state = self._views.known(channel_id)
            lost = state is not None and not state.opened and self._age_s(opening.since_ms) > self._terms.given_up_s
            if channel_id in in_books or lost or (state is not None and state.closed):
                await self._openings.forget(channel_id)

    async def _ask_back_orphans(self) -> None:
        for channel_id, opening in self._openings.planned().items():
            state = self._views.known(channel_id)
            if state is None or not state.opened or state.closes_at or self._openings.in_hand(channel_id):
                continue
            if self._age_s(opening.since_ms) > self._terms.orphan_s:
                log.info("orphan_asked_back", channel=channel_id.hex(), deposit=format_octo(state.deposit))
                await self._sender.send(self._channels.request_close(opening.terms))
                await self._views.look_newest([channel_id])

    async def _close_what_is_due(self, mine: dict[bytes, ChannelTerms]) -> None:
        """The rest of our own channels comes back once their challenge period is over."""
        head = await self._chain.head()
        for channel_id, terms in mine.items():
            state = self._views.known(channel_id)
            if state is None or not state.closing or head.timestamp < state.closes_at:
                continue
            try:
                await self._sender.send(self._channels.close(terms))
            except Reverted as reverted:  # someone was faster: anyone may
                log.info("close_refused", channel=channel_id.hex(), why=reverted.message)
            await self._look_at([channel_id])

    async def _payers_terms(self) -> dict[bytes, ChannelTerms]:
        booked = {channel.id: channel.terms for channel in await self._ours() if channel.role == "payer"}
        return {channel_id: opening.terms for channel_id, opening in self._openings.planned().items()} | booked

    async def _ours(self) -> list[Channel]:
        return [channel for channel in await self._books.channels() if channel.terms.rail == self._channels.rail]

    def _age_s(self, since_ms: int) -> float:
        return (self._clock.now_ms() - since_ms) / 1000
