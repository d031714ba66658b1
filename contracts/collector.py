"""The payee's way to its money: which vouchers the chain has not paid yet, and redeeming them by policy.

The books hold the last voucher of each channel, the chain holds what was redeemed, and what is due is the difference.
So a kill, a lost transaction or a reorganisation costs a look, never a voucher. What is kept besides (how much was
redeemed when we last looked, since when something is due) only serves while the chain is away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import structlog

from contracts.channels import Channels, OnChain
from contracts.faults import Reverted
from contracts.keeping import Keeper
from contracts.sender import Sender
from contracts.settlement import Due, SettlePolicy, choose
from contracts.views import Views
from market.channel import Channel
from market.money import format_octo
from market.ports import Books, Clock
from market.values import value

log = structlog.get_logger()


ROUNDS_LIMIT = 1_000


@value
class Settled:
    """One transaction: the channels that it drew on, and what it brought in all (10^-18 OCTO)."""

    transaction: bytes
    channels: tuple[bytes, ...]
    amount: int
    gas: int


class Collector:
    def __init__(
        self, *, wallet: bytes, rail: str, channels: Channels, views: Views, sender: Sender, books: Books, clock: Clock,
        policy: SettlePolicy, keeper: Keeper,
    ) -> None:  # fmt: skip
        self.policy = policy
        self._wallet = wallet
        self._rail = rail
        self._channels = channels
        self._views = views
        self._sender = sender
        self._books = books
        self._clock = clock
        self._keeper = keeper
        self._since: dict[bytes, int] = {}
        self._redeemed: dict[bytes, int] = {}
        self._refused: set[bytes] = set()
        self._settling = asyncio.Lock()

    async def load(self) -> None:
        raw = await self._keeper.load()
        try:
            for channel, (redeemed, since_ms) in (json.loads(raw) if raw else {}).items():
                self._redeemed[bytes.fromhex(channel)] = int(redeemed)
                if since_ms:
                    self._since[bytes.fromhex(channel)] = int(since_ms)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("settlement_notes_unreadable", why=repr(error)[:200])  # the chain knows it all

    async def held(self) -> dict[bytes, Channel]:
        """Our channels as payee, with a voucher, by id."""
        return {
            channel.id: channel
            for channel in await self._books.channels()
            if channel.role == "payee" and channel.terms.rail == self._rail and channel.voucher is not None
        }

    async def dues(self) -> list[Due]:
        """What the chain owes us now. Raises ChainAway."""
        held = await self.held()
        ids = [channel_id for channel_id, channel in held.items() if not self._over(channel)]
        found = await self._views.look_newest(ids)
        now_ms, dues, before = self._clock.now_ms(), [], (dict(self._redeemed), dict(self._since))
        for channel_id, state in zip(ids, found, strict=True):
            self._redeemed[channel_id] = held[channel_id].paid if state.closed else state.redeemed
            due = self._due(held[channel_id], state, now_ms)
            if due is not None:
                dues.append(due)
        if (self._redeemed, self._since) != before:
            await self._save()
        return dues

    def _due(self, channel: Channel, state: OnChain, now_ms: int) -> Due | None:
        amount = channel.paid - state.redeemed
        if state.closed and amount > 0 and channel.id not in self._refused:
            self._refused.add(channel.id)
            log.error("voucher_too_late", channel=channel.id.hex(), lost=format_octo(amount))
        if state.closed or amount <= 0:
            self._since.pop(channel.id, None)
            return None
        # A deposit below the voucher: a reorganisation took its transaction, which may well come back.
        if not state.opened or channel.paid > state.deposit or channel.id in self._refused:
            return None
        since_ms = self._since.setdefault(channel.id, now_ms)
        return Due(channel=channel.id, amount=amount, closes_at=state.closes_at, since_ms=since_ms)

    async def _save(self) -> None:
        notes = {
            channel.hex(): [str(redeemed), self._since.get(channel, 0)] for channel, redeemed in self._redeemed.items()
        }
        await self._keeper.save(json.dumps(notes).encode())

    def _over(self, channel: Channel) -> bool:
        """Closed, and noted as such: it is never looked at again."""
        known = self._views.known(channel.id)
        return known is not None and known.closed and self._redeemed.get(channel.id, -1) >= channel.paid

    async def unsettled(self) -> int:
        """What vouchers promise beyond what the chain is known to have paid; asks nobody."""
        held = await self.held()
        return sum(max(0, held[channel_id].paid - self._redeemed.get(channel_id, 0)) for channel_id in held)

    async def settle(self, *, everything: bool = False) -> list[Settled]:
        """Redeem what the policy says is due, or all of it. Raises ChainError; what was not redeemed stays due."""
        settled: list[Settled] = []
        async with self._settling:
            for _ in range(ROUNDS_LIMIT):
                chosen = choose(await self.dues(), self.policy, now_ms=self._clock.now_ms(), everything=everything)
                if not chosen:
                    break
                done = await self._redeem(chosen)
                if done is not None:
                    settled.append(done)
        return settled

    async def _redeem(self, dues: Sequence[Due]) -> Settled | None:
        held = await self.held()
        vouchers = [(held[due.channel].terms, voucher) for due in dues if (voucher := held[due.channel].voucher)]
        one = len(vouchers) == 1
        call = self._channels.redeem(*vouchers[0]) if one else self._channels.redeem_batch(self._wallet, vouchers)
        try:
            receipt = await self._sender.send(call)
        except Reverted as reverted:
            self._set_aside(reverted, dues)
            return None
        paid = {
            event.arguments["channelId"]
            for event in self._channels.contract.events(receipt.logs)
            if event.name == "Redeemed"
        }
        ids = tuple(due.channel for due in dues if due.channel in paid)
        amount = sum(due.amount for due in dues if due.channel in paid)
        log.info("settled", channels=len(ids), amount=format_octo(amount), gas=receipt.gas_used,
                 transaction="0x" + receipt.transaction.hex())  # fmt: skip
        return Settled(transaction=receipt.transaction, channels=ids, amount=amount, gas=receipt.gas_used)

    def _set_aside(self, reverted: Reverted, dues: Sequence[Due]) -> None:
        """One voucher that the contract does not take must not keep the others from being paid.

        Stale is no fault: someone redeemed it for us. The rest cannot happen with vouchers that the till checked."""
        if reverted.name == "Stale":
            return
        named = {argument for argument in reverted.arguments if isinstance(argument, bytes)}
        blamed = [due.channel for due in dues if due.channel in named]
        if not blamed and len(dues) > 1:
            raise reverted
        for channel_id in blamed or [dues[0].channel]:
            self._refused.add(channel_id)
            log.error("voucher_refused", channel=channel_id.hex(), why=reverted.message)
