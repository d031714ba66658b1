"""The payee's channels: vouchers taken in order, and how much credit is out, in total and per client.

Credit beyond the last voucher is limited as a total over all clients, so that no crowd of strangers can
run up more than one number. Vouchers are on disk before they count.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field

from market.channel import TAIL_LIMIT, Channel, ChannelState, ended, take
from market.errors import PaymentRefused
from market.identity import Binding, PeerId
from market.money import format_octo
from market.ports import Books, Rail
from market.quote import Quote
from market.talk import whole
from market.voucher import Opening, VoucherFrame, check_voucher_signature

GAP_TIMEOUT_S = 3.0
DEBT_SHARE = 20
"""A wallet may owe two ticks and a twentieth of what it ever paid."""


@dataclass(slots=True)
class Account:
    """What one running task owes and has paid, and for which leaves (quote and receipt digests)."""

    channel: bytes
    payer: bytes
    owed: int = 0
    paid: int = 0
    leaves: set[bytes] = field(default_factory=set)
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def credit(self) -> int:
        return max(0, self.owed - self.paid)

    def has_paid(self, amount: int, leaf: bytes) -> bool:
        """Both count: after a resync a voucher may bring more than this task owes, before its own has come."""
        return self.paid >= amount and leaf in self.leaves


class Till:
    def __init__(self, *, network: str, wallet: bytes, rail: Rail, books: Books, credit_limit: int) -> None:
        self._network = network
        self._wallet = wallet
        self._rail = rail
        self._books = books
        self._credit_limit = credit_limit
        self._channels: dict[bytes, Channel] = {}
        self._changed: defaultdict[bytes, asyncio.Condition] = defaultdict(asyncio.Condition)
        self._open: dict[int, Account] = {}
        self._debts: defaultdict[bytes, int] = defaultdict(int)
        self._over: defaultdict[bytes, int] = defaultdict(int)
        self._newest: defaultdict[bytes, deque[bytes]] = defaultdict(lambda: deque(maxlen=TAIL_LIMIT))
        self._over_before: set[bytes] = set()

    async def load(self) -> None:
        for channel in await self._books.channels():
            if channel.role != "payee":
                continue
            if channel.state is ChannelState.CLOSED:
                self._over_before.add(channel.id)
            else:
                self._channels[channel.id] = channel

    def taken(self, channel_id: bytes | None) -> int:
        """How many leaves of the channel we hold; 0 of one that we do not know."""
        channel = self._channels.get(channel_id or b"")
        return channel.receipts.size if channel else 0

    def exposure(self) -> int:
        """Credit that is out: running tasks beyond their vouchers, and what clients left owing."""
        return sum(account.credit for account in self._open.values()) + sum(self._debts.values())

    def is_paying(self, payer: bytes) -> bool:
        """Whether this wallet has paid us before; strangers wait behind those who have."""
        return self._paid_by(payer) > 0

    def _paid_by(self, payer: bytes) -> int:
        return sum(channel.paid for channel in self._channels.values() if channel.terms.payer == payer)

    def check_credit(self, payer: bytes, tick: int) -> None:
        """Raises PaymentRefused when one more task would take the exposure over its limits."""
        # A client that crashes now and then leaves a tick behind each time: who pays a lot may.
        if self._debts[payer] > 2 * tick + self._paid_by(payer) // DEBT_SHARE:
            raise PaymentRefused(f"the wallet still owes {format_octo(self._debts[payer])} from earlier tasks.")
        if self.exposure() + 2 * tick > self._credit_limit:
            raise PaymentRefused("this provider's credit is used up by other tasks.", next_step="Try again soon.")

    async def check_serving(self) -> None:
        """Before a quote: raises PaymentRefused while what we are paid cannot become money."""
        await self._rail.check_serving()

    def check_open(self, channel_id: bytes | None) -> None:
        """Before a quote: raises PaymentRefused for a channel that has ended or is about to. Whoever has not heard of
        it yet would sign a voucher on it, for work that `admit` refuses."""
        channel = self._channels.get(channel_id or b"")
        if channel_id in self._over_before or (channel is not None and channel.state is not ChannelState.OPEN):
            raise PaymentRefused("the channel is closing.", next_step="Open a new one.")

    async def admit(self, channel_id: bytes, opening: Opening | None, *, client: Binding, quote: Quote) -> Account:
        """The account of an accepted task on a funded channel of the client's; raises PaymentRefused."""
        channel = self._channels.get(channel_id)
        if channel is None:
            channel = await self._admit_new(channel_id, opening, client)
        if channel.terms.payer != client.wallet or channel.peer != client.peer:
            raise PaymentRefused("the channel belongs to another client.")
        if channel.state is not ChannelState.OPEN:
            raise PaymentRefused("the channel is closing.")
        if channel.left < quote.max_cost():
            raise PaymentRefused(
                f"the channel has {format_octo(channel.left)} left, the quote may cost {format_octo(quote.max_cost())}."
            )
        account = Account(channel=channel_id, payer=client.wallet)
        self._open[id(account)] = account
        return account

    async def _admit_new(self, channel_id: bytes, opening: Opening | None, client: Binding) -> Channel:
        if opening is None or opening.terms.channel_id() != channel_id:
            raise PaymentRefused("the channel is not known here and was not opened with the task.")
        terms = opening.terms
        if terms.network != self._network or terms.payee != self._wallet or terms.rail != self._rail.name:
            raise PaymentRefused("the channel does not pay this provider on this network and rail.")
        deposit = await self._rail.check_channel(opening)
        channel = Channel(role="payee", peer=PeerId(client.peer), terms=terms, opening=opening, deposit=deposit)
        return self._channels.setdefault(channel_id, channel)

    async def take(self, account: Account, frame: VoucherFrame) -> int:
        """Take a voucher, in the order of its leaves, and credit the account; how much it added.

        Two tasks of one client pay from one channel: their vouchers may be read in either order, so one
        that comes early waits for the one before it.
        """
        changed = self._changed[account.channel]
        async with changed:
            first = frame.leaves - len(frame.added)
            try:
                async with asyncio.timeout(GAP_TIMEOUT_S):
                    await changed.wait_for(lambda: self._channels[account.channel].receipts.size >= first)
            except TimeoutError:
                raise PaymentRefused("receipts before this voucher are missing.") from None
            before = self._channels[account.channel]
            if self._is_overtaken(account, before, frame):
                added = self._share(account)
            else:
                after = take(before, frame)
                await whole(self._keep(after))
                self._newest[after.id].extend(frame.added)
                changed.notify_all()
                added = after.paid - before.paid
        account.paid += added
        account.leaves.update(frame.added)
        account.progress.set()
        return added

    def _is_overtaken(self, account: Account, channel: Channel, frame: VoucherFrame) -> bool:
        """Whether this is another task's later voucher's elder: that one carried these leaves again, after a doubt at
        the payer's, and was read first. One that this very task has sent before is a replay."""
        voucher, newest = frame.voucher, self._newest[channel.id]
        if frame.leaves > channel.receipts.size or voucher.channel != channel.id or voucher.amount > channel.paid:
            return False
        if not frame.added or frame.added[-1] in account.leaves or not all(leaf in newest for leaf in frame.added):
            return False
        check_voucher_signature(channel.terms, voucher)
        return True

    def _share(self, account: Account) -> int:
        """What other tasks on the channel were credited beyond what they owe, up to what this one owes."""
        wanted = account.credit
        for other in self._open.values():
            if other is not account and other.channel == account.channel:
                over = min(max(0, other.paid - other.owed), wanted)
                other.paid -= over
                wanted -= over
        over = min(self._over[account.channel], wanted)
        self._over[account.channel] -= over
        return account.credit - wanted + over

    def is_busy(self, channel_id: bytes) -> bool:
        """Whether a task on this channel has not ended."""
        return any(account.channel == channel_id for account in self._open.values())

    async def closing(self, channel_id: bytes, *, closed: bool) -> None:
        """The chain says that the payer wants out: no more tasks on it. Its last voucher stays in the books."""
        channel = self._channels.get(channel_id)
        if channel is None:
            return
        async with self._changed[channel_id]:
            await whole(self._keep(ended(self._channels[channel_id], closed=closed)))

    async def _keep(self, channel: Channel) -> None:
        await self._books.save(channel)
        self._channels[channel.id] = channel

    def close(self, account: Account) -> None:
        """End of a task: what is unpaid stays a debt of its wallet, what is over pays older debts; the rest of that may
        be for a task on the channel that still runs."""
        self._open.pop(id(account), None)
        debt = self._debts.pop(account.payer, 0) + account.owed - account.paid
        if debt > 0:
            self._debts[account.payer] = debt
        self._over[account.channel] += max(0, -debt)
        if not self.is_busy(account.channel):
            del self._over[account.channel]
