"""A payment channel's book, as both sides keep it: pure steps from one state to the next.

    payer:  opened -> pay -> pay -> …          payee:  admitted -> take -> take -> …
    both:   OPEN -- request_close --> CLOSING -- close --> CLOSED

One voucher writer per channel orders everything. The payee recomputes the receipts root and refuses any
voucher that is smaller, stale, over the deposit, or whose root it cannot reproduce, and keeps the older.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from market.errors import InsufficientFunds, PaymentRefused, StepNotAllowed
from market.identity import PeerId, WalletSigner
from market.merkle import Peaks
from market.money import Amount, format_octo
from market.values import Word, value
from market.voucher import (
    ChannelTerms,
    Opening,
    Voucher,
    VoucherFrame,
    check_voucher_signature,
    sign_voucher,
)

TAIL_LIMIT = 128


class ChannelState(Word):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class ChannelStep(Word):
    PAY = "pay"
    REQUEST_CLOSE = "request_close"
    CLOSE = "close"


_STEPS = {
    (ChannelState.OPEN, ChannelStep.PAY): ChannelState.OPEN,
    (ChannelState.OPEN, ChannelStep.REQUEST_CLOSE): ChannelState.CLOSING,
    (ChannelState.CLOSING, ChannelStep.CLOSE): ChannelState.CLOSED,
}


@value
class Channel:
    """`role` is ours. `receipts` is the tree over what this channel paid for: for each task the quote's
    digest (its input), then its receipts' digests. `tail` keeps the payer's last leaves, to be sent
    again to a payee that missed them."""

    role: Literal["payer", "payee"]
    peer: PeerId
    terms: ChannelTerms
    opening: Opening
    deposit: Amount
    state: ChannelState = ChannelState.OPEN
    paid: Amount = 0
    receipts: Peaks = Peaks()
    tail: tuple[bytes, ...] = ()
    voucher: Voucher | None = None

    @property
    def id(self) -> bytes:
        return self.terms.channel_id()

    @property
    def left(self) -> int:
        return self.deposit - self.paid


def step(channel: Channel, action: ChannelStep) -> Channel:
    """The channel after `action`; raises StepNotAllowed for what is not in the table."""
    after = _STEPS.get((channel.state, action))
    if after is None:
        raise StepNotAllowed(f"a channel that is {channel.state} cannot {action}.")
    return replace(channel, state=after)


def ended(channel: Channel, *, closed: bool) -> Channel:
    """The channel once the chain shows it closing, or closed; from whatever it was before."""
    if channel.state is ChannelState.OPEN:
        channel = step(channel, ChannelStep.REQUEST_CLOSE)
    return step(channel, ChannelStep.CLOSE) if closed and channel.state is ChannelState.CLOSING else channel


def pay(
    channel: Channel, amount: int, leaf: bytes, session_key: WalletSigner, *, taken: int | None = None
) -> tuple[Channel, VoucherFrame]:
    """Payer: raise what was paid by `amount` for `leaf` (a quote's or receipt's digest).

    `taken` is the number of leaves that the payee holds, when it may be less than we sent. Raises
    InsufficientFunds over the deposit, StepNotAllowed when the payee lacks more than the tail holds.
    """
    step(channel, ChannelStep.PAY)
    paid = channel.paid + amount
    if amount < 0 or paid > channel.deposit:
        raise InsufficientFunds(
            f"the channel holds {format_octo(channel.deposit)}, {format_octo(channel.paid)} of it spent; "
            f"{format_octo(amount)} more does not fit.",
            next_step="A new channel is opened for the next task.",
        )
    missed = 0 if taken is None else channel.receipts.size - taken
    if not 0 <= missed <= len(channel.tail):
        raise StepNotAllowed("the payee lost more of this channel than can be sent again.")
    added = (*channel.tail[len(channel.tail) - missed :], leaf)
    receipts = channel.receipts.append(leaf)
    voucher = sign_voucher(channel.terms, paid, receipts.root(), session_key)
    frame = VoucherFrame(voucher=voucher, leaves=receipts.size, added=added)
    tail = (*channel.tail, leaf)[-TAIL_LIMIT:]
    return replace(channel, paid=paid, receipts=receipts, tail=tail, voucher=voucher), frame


def take(channel: Channel, frame: VoucherFrame) -> Channel:
    """Payee: the channel after a voucher; raises PaymentRefused, keeping the older, for one that does not hold."""
    step(channel, ChannelStep.PAY)
    voucher = frame.voucher
    if voucher.channel != channel.id:
        raise PaymentRefused("the voucher is for another channel.")
    if voucher.amount > channel.deposit:
        raise PaymentRefused(
            f"the voucher of {format_octo(voucher.amount)} is over the deposit of {format_octo(channel.deposit)}."
        )
    if voucher.amount < channel.paid or frame.leaves <= channel.receipts.size:
        raise PaymentRefused(
            f"the voucher of {format_octo(voucher.amount)} is stale: the last one was for {format_octo(channel.paid)}."
        )
    missing = frame.leaves - channel.receipts.size
    if missing > len(frame.added):
        raise PaymentRefused(f"{missing - len(frame.added)} receipts before this voucher are missing.")
    receipts = channel.receipts.extend(frame.added[len(frame.added) - missing :])
    if voucher.receipts_root != receipts.root():
        raise PaymentRefused("the voucher's receipts root does not follow from the receipts it names.")
    check_voucher_signature(channel.terms, voucher)
    return replace(channel, paid=voucher.amount, receipts=receipts, voucher=voucher)
