"""The payer's channels: which one pays a task, and one voucher writer for each.

A voucher is written down before it is sent, and sent in the order in which it was signed: the lock of
a channel is held from signing to sending. Knows the rail only as "open" and the books only as "save".
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from market.channel import Channel, ChannelState, ended, pay
from market.errors import InsufficientFunds, PaymentRefused, PeerBrokeProtocol, StepNotAllowed
from market.identity import Binding, PeerId, WalletSigner
from market.money import format_octo
from market.ports import Books, Rail
from market.quote import Quote
from market.record import ReceiptRecord
from market.talk import whole
from market.voucher import ChannelTerms, Opening, VoucherFrame

SessionKeys = Callable[[bytes], WalletSigner]
"""The session key of a channel, from the channel's salt."""
Send = Callable[[VoucherFrame], Awaitable[None]]


class Purse:
    def __init__(
        self,
        *,
        network: str,
        wallet: bytes,
        rail: Rail,
        books: Books,
        session_keys: SessionKeys,
        random: Callable[[int], bytes],
        deposit: int,
    ) -> None:
        self._network = network
        self._wallet = wallet
        self._rail = rail
        self._books = books
        self._session_keys = session_keys
        self._random = random
        self._deposit = deposit
        self._channels: dict[bytes, Channel] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._reserved: dict[bytes, int] = {}
        self._unsure: set[bytes] = set()
        self._held: dict[bytes, int] = {}
        self._ending: dict[bytes, Channel] = {}
        self._live: Counter[bytes] = Counter()
        self._opening = asyncio.Lock()

    async def load(self) -> None:
        """Take up the channels of an earlier run. What the payee last saw of them is not known."""
        for channel in await self._books.channels():
            if channel.role != "payer":
                continue
            if channel.state is ChannelState.OPEN:
                self._adopt(channel)
                self._unsure.add(channel.id)
            elif channel.state is ChannelState.CLOSING:
                self._ending[channel.id] = channel

    def channel_for(self, payee: bytes, need: int) -> bytes | None:
        """An open channel to `payee` with at least `need` left unreserved; the fullest one first."""
        free = {
            channel.id: channel.left - self._reserved[channel.id]
            for channel in self._channels.values()
            if channel.terms.payee == payee and channel.terms.rail == self._rail.name
        }
        best = max(free, key=lambda channel_id: free[channel_id], default=None)
        return best if best is not None and free[best] >= need else None

    async def spend_on(
        self, quote: Quote, *, provider: Binding, named: bytes | None, taken: int
    ) -> tuple[Spending, Opening | None]:
        """Reserve the quote's whole price on the `named` channel, of which the payee holds `taken` leaves,
        or on a new one; with its Opening if the payee does not know it yet. Raises InsufficientFunds, or
        PeerBrokeProtocol for a `taken` that cannot be."""
        need = quote.max_cost()
        if named is not None:
            self._hear(named, taken, provider)
            if self._usable(named, need, taken):
                self._reserved[named] += need
                self._live[named] += 1
                opening = self._channels[named].opening if taken == 0 else None
                return Spending(self, named, quote), opening
        async with self._opening:
            # Another task may just have opened one; its opening goes along, and the payee sorts the order out.
            fresh = self.channel_for(provider.wallet, need)
            if fresh in (None, named) or not self._usable(fresh, need, 0):
                fresh = (await whole(self._open(provider, max(need, self._deposit)))).id
            self._reserved[fresh] += need
            self._live[fresh] += 1
        return Spending(self, fresh, quote), self._channels[fresh].opening

    def _hear(self, channel_id: bytes, taken: int, provider: Binding) -> None:
        """The payee says how much it holds. If that is not all, though nothing of ours is under way, a voucher was
        lost, even if it was sent in order: its reader can have died before it was on disk.
        Raises PeerBrokeProtocol if it claims to hold more than there is."""
        channel = self._channels.get(channel_id)
        if channel is None:
            return
        if taken > channel.receipts.size:  # not a reason for another deposit: it may be a lie
            raise PeerBrokeProtocol(
                f"it claims {taken} receipts on channel {channel_id.hex()}, our books have {channel.receipts.size}.",
                peer=provider.peer,
                next_step="If these books were restored from a back-up, close that channel.",
            )
        self._held[channel_id] = taken
        if not self._live[channel_id] and taken < channel.receipts.size:
            self._unsure.add(channel_id)

    def _usable(self, channel_id: bytes, need: int, taken: int) -> bool:
        channel = self._channels.get(channel_id)
        if channel is None or channel.left - self._reserved[channel_id] < need:
            return False
        missed = channel.receipts.size - taken
        return channel_id not in self._unsure or missed <= len(channel.tail)

    async def _open(self, provider: Binding, deposit: int) -> Channel:
        salt = self._random(32)
        terms = ChannelTerms(
            network=self._network,
            rail=self._rail.name,
            payer=self._wallet,
            payee=provider.wallet,
            session_key=self._session_keys(salt).address,
            salt=salt,
        )
        opening = await self._rail.open_channel(terms, deposit)
        channel = Channel(role="payer", peer=PeerId(provider.peer), terms=terms, opening=opening, deposit=deposit)
        await self._books.save(channel)
        self._adopt(channel)
        return channel

    def _adopt(self, channel: Channel) -> None:
        self._channels[channel.id] = channel
        self._locks.setdefault(channel.id, asyncio.Lock())
        self._reserved[channel.id] = 0

    async def pay(
        self,
        channel_id: bytes,
        amount: int,
        leaf: bytes,
        *,
        receipts: Iterable[ReceiptRecord],
        send: Send,
    ) -> None:
        async with self._locks[channel_id]:
            channel = self._channels.get(channel_id)
            if channel is None:
                raise PaymentRefused("the channel was closed meanwhile.", next_step="The next task opens a new one.")
            taken = None
            if channel_id in self._unsure:  # all that may be missing, as far as we have it
                taken = max(self._held.get(channel_id, 0), channel.receipts.size - len(channel.tail))
            key = self._session_keys(channel.terms.salt)
            channel, frame = pay(channel, amount, leaf, key, taken=taken)
            await whole(self._keep(channel, receipts))
            await send(frame)
            self._unsure.discard(channel_id)

    async def _keep(self, channel: Channel, receipts: Iterable[ReceiptRecord]) -> None:
        """On disk, then in memory; until its voucher is really sent we do not know whether the payee has it."""
        await self._books.save(channel, receipts=receipts)
        self._channels[channel.id] = channel
        self._unsure.add(channel.id)

    async def closing(self, channel_id: bytes, *, closed: bool) -> None:
        """The chain says that this channel of ours is closing, or closed: nothing more is paid from it."""
        async with self._locks.setdefault(channel_id, asyncio.Lock()):  # a voucher on its way to disk goes first
            channel = self._channels.pop(channel_id, None) or self._ending.get(channel_id)
            if channel is None:
                return
            self._ending[channel_id] = ended(channel, closed=closed)
            await whole(self._books.save(self._ending[channel_id]))
            if closed:
                del self._ending[channel_id]

    def release(self, channel_id: bytes, amount: int) -> None:
        self._reserved[channel_id] -= amount

    def leave(self, channel_id: bytes, *, broken: bool) -> None:
        """A task on the channel is over. If its connection broke, vouchers that were sent may not have arrived."""
        self._live[channel_id] -= 1
        if broken:
            self._unsure.add(channel_id)


class Spending:
    """One task's claim on a channel. Never pays more in total than the quote's maximum."""

    def __init__(self, purse: Purse, channel_id: bytes, quote: Quote) -> None:
        self._purse = purse
        self._quote = quote
        self._left = quote.max_cost()
        self.channel = channel_id
        self.paid = 0

    async def pay_up_to(self, total: int, leaf: bytes, *, receipts: Iterable[ReceiptRecord] = (), send: Send) -> None:
        """Raise what this task has paid to `total`, for `leaf`; on disk before it is sent."""
        if total > self._quote.max_cost():
            raise InsufficientFunds(
                f"{format_octo(total)} is more than the quote's {format_octo(self._quote.max_cost())}."
            )
        if total < self.paid:
            raise StepNotAllowed("what a task has paid never falls.")
        amount = total - self.paid
        await self._purse.pay(self.channel, amount, leaf, receipts=receipts, send=send)
        self.paid = total
        self._left -= amount
        self._purse.release(self.channel, amount)

    def close(self, *, broken: bool) -> None:
        """Give back what was reserved and not spent; `broken` when the connection did not end in order."""
        self._purse.release(self.channel, self._left)
        self._left = 0
        self._purse.leave(self.channel, broken=broken)
