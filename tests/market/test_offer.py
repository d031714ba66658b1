"""Offers: signed by their peer, bound to a wallet, short-lived, and refused with the reason otherwise."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, SignatureInvalid
from market.offer import (
    CLOCK_SKEW_MS,
    OFFER_LIMIT_BYTES,
    OFFER_TTL_LIMIT_MS,
    Offer,
    SignedOffer,
    check_offer,
    sign_offer,
)
from market.task import Mode
from market.values import decode, encode


def check(words: Any, signed: SignedOffer, *, now_ms: int | None = None) -> Any:
    return check_offer(signed, network=words.network, now_ms=now_ms or words.now_ms)


def test_an_offer_that_holds_comes_with_its_binding(words: Any) -> None:
    checked = check(words, words.offer())
    assert checked.offer.peer == checked.binding.peer == words.seller.peer
    assert checked.offer.models[0].modes == (Mode.REALTIME, Mode.BATCH)


@given(st.data())
def test_an_offer_with_a_flipped_bit_is_refused(words: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(SignedOffer, words.offer()))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EncodingInvalid):
        check(words, decode(SignedOffer, bytes(raw), limit_bytes=OFFER_LIMIT_BYTES * 2))


def test_an_offer_signed_by_another_peer_is_refused(words: Any) -> None:
    offer = decode(Offer, words.offer().body)
    with pytest.raises(SignatureInvalid, match=words.seller.peer):
        check(words, sign_offer(offer, words.stranger.keys))


def test_an_offer_with_a_foreign_binding_is_refused(words: Any) -> None:
    """A thief must not advertise under the good name, and stake, of another wallet."""
    with pytest.raises(EncodingInvalid, match="another peer's binding"):
        check(words, words.offer(words.stranger, binding=words.binding()))


def test_an_offer_whose_binding_does_not_hold_is_refused_with_the_reason(words: Any) -> None:
    broken = replace(words.binding(), by_wallet=bytes(64) + b"\x1b")
    with pytest.raises(SignatureInvalid):
        check(words, words.offer(binding=broken))
    with pytest.raises(SignatureInvalid, match="not signed by its wallet"):
        check(words, words.offer(binding=replace(words.binding(), by_wallet=words.binding().by_receipt_key)))
    with pytest.raises(SignatureInvalid, match="time"):
        check(words, words.offer(binding=words.binding(not_after_ms=words.now_ms)))


def test_an_offer_for_another_network_is_refused(words: Any) -> None:
    with pytest.raises(EncodingInvalid, match="'octo-main', not 'octo-test'"):
        check(words, words.offer(network="octo-main"))


def test_an_offer_lives_until_it_expires(words: Any) -> None:
    signed = words.offer(issued_ms=words.now_ms, expires_ms=words.now_ms + 25_000)
    assert check(words, signed, now_ms=words.now_ms + 24_999)
    assert check(words, signed, now_ms=words.now_ms - CLOCK_SKEW_MS)
    for now_ms in (words.now_ms + 25_000, words.now_ms - CLOCK_SKEW_MS - 1):
        with pytest.raises(EncodingInvalid, match="expired or lies in the future"):
            check(words, signed, now_ms=now_ms)


def test_an_offer_that_wants_to_live_too_long_is_refused(words: Any) -> None:
    longest = words.now_ms + OFFER_TTL_LIMIT_MS
    assert check(words, words.offer(issued_ms=words.now_ms, expires_ms=longest))
    with pytest.raises(EncodingInvalid, match="longer than 600 s"):
        check(words, words.offer(issued_ms=words.now_ms, expires_ms=longest + 1))


def test_an_offer_over_the_size_limit_is_refused(words: Any) -> None:
    models = tuple(words.model_offer(model="m" * 128, weights="w" * 128, name=str(n).ljust(128)) for n in range(32))
    signed = words.offer(models=models, addresses=("a" * 256,) * 8, content=("c" * 256,) * 8)
    assert len(signed.body) > OFFER_LIMIT_BYTES
    with pytest.raises(EncodingInvalid, match="over the limit"):
        check(words, signed)


def test_an_offer_with_too_many_models_is_refused(words: Any) -> None:
    with pytest.raises(EncodingInvalid, match="models"):
        check(words, words.offer(models=(words.model_offer(model="m", weights="w", name="n"),) * 33))
