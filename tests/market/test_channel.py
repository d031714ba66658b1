"""A channel's two books: never more than signed, never more than deposited, and both agree again after a loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.channel import TAIL_LIMIT, Channel, ChannelState, ChannelStep, pay, step, take
from market.errors import InsufficientFunds, OctoError, PaymentRefused, SignatureInvalid, StepNotAllowed
from market.merkle import root_of
from market.values import decode, encode
from market.voucher import VoucherFrame, sign_voucher


@pytest.mark.parametrize("action", list(ChannelStep))
@pytest.mark.parametrize("state", list(ChannelState))
def test_only_the_steps_of_the_table_are_allowed(words: Any, state: ChannelState, action: ChannelStep) -> None:
    allowed = {
        (ChannelState.OPEN, ChannelStep.PAY): ChannelState.OPEN,
        (ChannelState.OPEN, ChannelStep.REQUEST_CLOSE): ChannelState.CLOSING,
        (ChannelState.CLOSING, ChannelStep.CLOSE): ChannelState.CLOSED,
    }
    channel = replace(words.channels()[0], state=state)
    if (state, action) in allowed:
        assert step(channel, action).state is allowed[state, action]
    else:
        with pytest.raises(StepNotAllowed, match=f"{state} cannot {action}"):
            step(channel, action)


def test_a_payment_raises_both_books_alike(words: Any) -> None:
    payer, payee = words.channels()
    payer, frame = pay(payer, 100, words.digest("quote"), words.buyer.session)
    payee = take(payee, frame)
    payer, frame = pay(payer, 50, words.digest("receipt 0"), words.buyer.session)
    payee = take(payee, frame)
    assert payer.paid == payee.paid == frame.voucher.amount == 150
    assert payer.left == payee.left == payer.deposit - 150
    assert payer.receipts == payee.receipts
    assert frame.leaves == 2
    assert frame.added == (words.digest("receipt 0"),)
    assert frame.voucher.receipts_root == root_of([words.digest("quote"), words.digest("receipt 0")])


def test_a_payment_over_the_deposit_is_refused_and_says_what_is_left(words: Any) -> None:
    payer, _ = words.channels(deposit=100)
    payer, _ = pay(payer, 100, words.digest("all"), words.buyer.session)
    with pytest.raises(InsufficientFunds, match=r"holds 0\.0000000000000001 OCTO, .* more does not fit"):
        pay(payer, 1, words.digest("more"), words.buyer.session)


def test_a_payment_is_never_negative(words: Any) -> None:
    payer, _ = words.channels()
    payer, _ = pay(payer, 100, words.digest("a"), words.buyer.session)
    with pytest.raises(InsufficientFunds):
        pay(payer, -1, words.digest("b"), words.buyer.session)


@pytest.mark.parametrize("state", [ChannelState.CLOSING, ChannelState.CLOSED])
def test_nothing_is_paid_or_taken_on_a_channel_that_is_not_open(words: Any, state: ChannelState) -> None:
    payer, payee = words.channels()
    _, frame = pay(payer, 1, words.digest("a"), words.buyer.session)
    with pytest.raises(StepNotAllowed):
        pay(replace(payer, state=state), 1, words.digest("a"), words.buyer.session)
    with pytest.raises(StepNotAllowed):
        take(replace(payee, state=state), frame)


# ---- what the payee refuses, keeping the older -----------------------------------------------------


def signed(words: Any, frame: VoucherFrame, **changes: Any) -> VoucherFrame:
    """The frame with another amount or root, signed properly: a dishonest payer, not a damaged message."""
    voucher = sign_voucher(
        words.terms(),
        changes.get("amount", frame.voucher.amount),
        changes.get("receipts_root", frame.voucher.receipts_root),
        changes.get("signer", words.buyer.session),
    )
    return replace(frame, voucher=voucher)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda words, frame: signed(words, frame, amount=199), "stale"),
        (lambda words, frame: signed(words, frame, amount=1001), "over the deposit"),
        (lambda words, frame: signed(words, frame, receipts_root=bytes(32)), "root does not follow"),
        (lambda words, frame: replace(frame, leaves=frame.leaves - 1), "stale"),
        (lambda words, frame: replace(frame, leaves=0), "stale"),
        (lambda words, frame: replace(frame, leaves=frame.leaves + 1), "1 receipts before this voucher are missing"),
        (lambda words, frame: replace(frame, leaves=2**53 - 1), "missing"),
        (lambda words, frame: replace(frame, added=()), "missing"),
        (lambda words, frame: replace(frame, added=(bytes(32),)), "root does not follow"),
        (lambda words, frame: replace(frame, voucher=replace(frame.voucher, channel=bytes(32))), "another channel"),
    ],
)
def test_a_voucher_that_does_not_hold_is_refused_with_the_reason(
    words: Any, spoil: Callable[[Any, VoucherFrame], VoucherFrame], reason: str
) -> None:
    payer, payee = words.channels(deposit=1000)
    payer, frame = pay(payer, 200, words.digest("a"), words.buyer.session)
    payee = take(payee, frame)
    _, frame = pay(payer, 100, words.digest("b"), words.buyer.session)
    with pytest.raises(PaymentRefused, match=reason):
        take(payee, spoil(words, frame))
    assert take(payee, frame).paid == 300


def test_a_voucher_below_the_last_one_is_refused(words: Any) -> None:
    payer, payee = words.channels()
    cheaper, small = pay(payer, 10, words.digest("a"), words.buyer.session)
    _, large = pay(cheaper, 90, words.digest("b"), words.buyer.session)
    payee = take(payee, replace(large, added=(words.digest("a"), words.digest("b"))))
    with pytest.raises(PaymentRefused, match="stale"):
        take(payee, small)
    assert payee.paid == 100


def test_the_same_voucher_twice_is_refused_the_second_time(words: Any) -> None:
    payer, payee = words.channels()
    _, frame = pay(payer, 10, words.digest("a"), words.buyer.session)
    payee = take(payee, frame)
    with pytest.raises(PaymentRefused, match="stale"):
        take(payee, frame)


def test_a_voucher_by_another_key_is_refused(words: Any) -> None:
    payer, payee = words.channels()
    _, frame = pay(payer, 10, words.digest("a"), words.stranger.session)
    with pytest.raises(SignatureInvalid, match="session key"):
        take(payee, frame)


@given(st.data())
def test_a_voucher_frame_with_a_flipped_bit_never_raises_what_is_taken(words: Any, data: st.DataObject) -> None:
    payer, payee = words.channels()
    _, frame = pay(payer, 10, words.digest("a"), words.buyer.session)
    raw = bytearray(encode(VoucherFrame, frame))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(OctoError):
        take(payee, decode(VoucherFrame, bytes(raw)))


# ---- loss and agreement ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["arrives", "lost", "twice", "resync"])), max_size=14))
def test_no_order_of_losses_breaks_the_books(words: Any, events: list[tuple[int, str]]) -> None:
    deposit, signed_max = 1000, 0
    payer, payee = words.channels(deposit)
    for number, (amount, fate) in enumerate(events):
        taken = payee.receipts.size if fate == "resync" else None
        try:
            payer, frame = pay(payer, amount, words.digest(f"leaf {number}"), words.buyer.session, taken=taken)
        except InsufficientFunds:
            assert payer.paid + amount > deposit
            continue
        signed_max = frame.voucher.amount
        before = payee
        if fate != "lost":
            try:
                payee = take(payee, frame)
            except PaymentRefused as refused:
                assert "missing" in str(refused)  # an earlier frame was lost, and this one did not resend it
                assert fate != "resync"
        if fate == "twice":
            with pytest.raises(PaymentRefused):
                take(payee, frame)
        assert before.paid <= payee.paid <= signed_max == payer.paid <= deposit
        assert payee.receipts.size <= payer.receipts.size
        if fate == "resync":
            assert (payee.paid, payee.receipts) == (payer.paid, payer.receipts)


def test_a_payee_that_missed_frames_gets_them_again(words: Any) -> None:
    payer, payee = words.channels()
    for number in range(5):
        payer, _ = pay(payer, 10, words.digest(f"lost {number}"), words.buyer.session)
    payer, frame = pay(payer, 10, words.digest("now"), words.buyer.session, taken=0)
    assert len(frame.added) == 6
    assert take(payee, frame).paid == payer.paid == 60


def test_a_payee_that_missed_too_much_cannot_be_served_on_this_channel(words: Any) -> None:
    payer, _ = words.channels()
    for number in range(TAIL_LIMIT + 1):
        payer, _ = pay(payer, 0, words.digest(f"lost {number}"), words.buyer.session)
    assert len(payer.tail) == TAIL_LIMIT
    _, frame = pay(payer, 0, words.digest("now"), words.buyer.session, taken=1)
    assert len(frame.added) == TAIL_LIMIT + 1
    for taken in (0, -1, payer.receipts.size + 1):
        with pytest.raises(StepNotAllowed, match="lost more"):
            pay(payer, 0, words.digest("now"), words.buyer.session, taken=taken)


def test_a_payer_who_names_receipts_out_of_order_is_refused(words: Any) -> None:
    payer, payee = words.channels()
    payer, _ = pay(payer, 10, words.digest("a"), words.buyer.session)
    _, frame = pay(payer, 10, words.digest("b"), words.buyer.session, taken=0)
    with pytest.raises(PaymentRefused, match="root"):
        take(payee, replace(frame, added=frame.added[::-1]))


def test_a_channel_survives_being_written_down(words: Any) -> None:
    payer, payee = words.channels()
    payer, frame = pay(payer, 10, words.digest("a"), words.buyer.session)
    for channel in (payer, take(payee, frame)):
        assert decode(Channel, encode(Channel, channel)) == channel
