"""The three signed words about money: a price, a delivery and a payment."""

from dataclasses import replace
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, RequestInvalid, SignatureInvalid
from market.money import AMOUNT_LIMIT, OCTO
from market.quote import Quote, SignedQuote, check_quote
from market.receipt import SignedReceipt, check_extends, check_receipt_signature, sign_receipt
from market.task import ChatMessage, Privacy, Sampling, prompt_digest, user_seed
from market.values import cid_digest, decode, encode
from market.voucher import Opening, Voucher, check_opening, check_voucher_signature, sign_opening, sign_voucher


def flipped(kind: type, item: object, data: st.DataObject) -> Any:
    """`item` read back from its bytes with one bit turned; raises EncodingInvalid if they no longer parse."""
    raw = bytearray(encode(kind, item))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    return decode(kind, bytes(raw))


# ---- quote -----------------------------------------------------------------------------------------


def test_a_quote_signed_by_the_receipt_key_holds(words: Any) -> None:
    assert check_quote(words.signed_quote(), receipt_key=words.seller.receipt_key.address) == words.quote()


@given(st.data())
def test_a_quote_with_a_flipped_bit_is_refused(words: Any, data: st.DataObject) -> None:
    with pytest.raises(EncodingInvalid):
        check_quote(flipped(SignedQuote, words.signed_quote(), data), receipt_key=words.seller.receipt_key.address)


def test_a_quote_by_another_key_is_refused(words: Any) -> None:
    with pytest.raises(SignatureInvalid, match="provider's receipt key"):
        check_quote(words.signed_quote(), receipt_key=words.seller.wallet.address)


def test_a_quote_that_is_not_canonical_is_refused_whatever_its_signature(words: Any) -> None:
    body = encode(Quote, words.quote()) + b"\0"
    signed = SignedQuote(body=body, signature=words.signed_quote().signature)
    with pytest.raises(EncodingInvalid):
        check_quote(signed, receipt_key=words.seller.receipt_key.address)


def test_a_quote_whose_price_needs_more_than_256_bits_is_refused(words: Any) -> None:
    """Price times tokens may outgrow a Solidity word; that must be an answer, not a crash."""
    quote = words.quote(price_out=AMOUNT_LIMIT, max_tokens=2**31 - 1)
    with pytest.raises(EncodingInvalid, match="256 bits"):
        check_quote(SignedQuote(body=encode(Quote, quote), signature=bytes(65)), receipt_key=bytes(20))


@given(st.integers(0, 128))
def test_a_cost_is_input_plus_output_and_never_over_the_maximum(words: Any, tokens_out: int) -> None:
    quote = words.quote()
    assert quote.cost_in() == 57 * OCTO // 10 // 10**6
    assert quote.cost_in() <= quote.cost_of(tokens_out) <= quote.max_cost() == quote.cost_of(128)
    assert quote.cost_of(tokens_out) - quote.cost_in() == tokens_out * OCTO // 10**6


# ---- receipt ---------------------------------------------------------------------------------------


def test_a_receipt_signed_by_the_receipt_key_holds_and_its_cid_carries_its_digest(words: Any) -> None:
    signed = sign_receipt(words.receipt(), words.seller.receipt_key)
    assert check_receipt_signature(signed, receipt_key=words.seller.receipt_key.address) == words.receipt()
    assert cid_digest(signed.cid()) == signed.digest()


@given(st.data())
def test_a_receipt_with_a_flipped_bit_is_refused(words: Any, data: st.DataObject) -> None:
    signed = sign_receipt(words.receipt(), words.seller.receipt_key)
    with pytest.raises(EncodingInvalid):
        check_receipt_signature(flipped(SignedReceipt, signed, data), receipt_key=words.seller.receipt_key.address)


def test_a_receipt_by_another_key_is_refused(words: Any) -> None:
    signed = sign_receipt(words.receipt(), words.stranger.receipt_key)
    with pytest.raises(SignatureInvalid, match="provider's receipt key"):
        check_receipt_signature(signed, receipt_key=words.seller.receipt_key.address)


def test_a_receipt_that_adds_tokens_extends_the_one_before(words: Any) -> None:
    first = words.receipt(seq=0)
    check_extends(
        first, replace(first, seq=1, tokens_out=128, chunks=4, amount=first.amount + 1, ended_ms=first.ended_ms + 1)
    )
    check_extends(first, replace(first, seq=1, final=True, finish="stop"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq": 0}, "receipt 0 does not follow receipt 0"),
        ({"seq": 2}, "receipt 2 does not follow receipt 0"),
        ({"tokens_out": 63}, "lowers tokens_out"),
        ({"chunks": 1}, "lowers chunks"),
        ({"amount": 1}, "lowers amount"),
        ({"ended_ms": 1}, "lowers ended_ms"),
        ({"tokens_in": 58}, "changed tokens_in"),
        ({"network": "other"}, "changed network"),
        ({"rail": "other"}, "changed rail"),
        ({"provider": "other"}, "changed provider"),
        ({"client": "other"}, "changed client"),
        ({"channel": bytes(32)}, "changed channel"),
        ({"task": bytes(32)}, "changed task"),
        ({"model": "other"}, "changed model"),
        ({"weights": "other"}, "changed weights"),
        ({"quote": bytes(32)}, "changed quote"),
        ({"prompt": bytes(32)}, "changed prompt"),
        ({"sampling": bytes(32)}, "changed sampling"),
        ({"started_ms": 1}, "changed started_ms"),
    ],
)
def test_a_receipt_that_takes_something_back_is_refused(words: Any, change: dict[str, Any], reason: str) -> None:
    first = words.receipt()
    with pytest.raises(EncodingInvalid, match=reason):
        check_extends(first, replace(first, **({"seq": 1} | change)))


def test_nothing_follows_a_final_receipt(words: Any) -> None:
    last = words.receipt(final=True, finish="stop")
    with pytest.raises(EncodingInvalid, match="follows a final one"):
        check_extends(last, replace(last, seq=1))


# ---- voucher and opening ---------------------------------------------------------------------------


def test_a_voucher_by_the_session_key_holds(words: Any) -> None:
    terms = words.terms()
    check_voucher_signature(terms, sign_voucher(terms, 7, words.digest("root"), words.buyer.session))


@given(st.data())
def test_a_voucher_with_a_flipped_bit_is_refused(words: Any, data: st.DataObject) -> None:
    terms = words.terms()
    voucher = sign_voucher(terms, 7, words.digest("root"), words.buyer.session)
    with pytest.raises(EncodingInvalid):
        check_voucher_signature(terms, flipped(Voucher, voucher, data))


def test_a_voucher_by_the_wallet_instead_of_the_session_key_is_refused(words: Any) -> None:
    terms = words.terms()
    with pytest.raises(SignatureInvalid, match="session key"):
        check_voucher_signature(terms, sign_voucher(terms, 7, words.digest("root"), words.buyer.wallet))


def test_an_opening_by_the_payers_wallet_holds(words: Any) -> None:
    check_opening(words.opening())


@given(st.data())
def test_an_opening_with_a_flipped_bit_is_refused(words: Any, data: st.DataObject) -> None:
    with pytest.raises(EncodingInvalid):
        check_opening(flipped(Opening, words.opening(), data))


def test_an_opening_by_anyone_but_the_payer_is_refused(words: Any) -> None:
    with pytest.raises(SignatureInvalid, match="payer's wallet"):
        check_opening(sign_opening(words.terms(), OCTO, words.buyer.session))


def test_every_term_of_a_channel_is_in_its_id(words: Any) -> None:
    ids = {words.terms().channel_id()}
    for change in ({"rail": "r"}, {"payer": bytes(20)}, {"payee": bytes(20)},
                   {"session_key": bytes(20)}, {"salt": bytes(32)}):  # fmt: skip
        ids.add(words.terms(**change).channel_id())
    assert len(ids) == 6


# ---- the task's own digests ------------------------------------------------------------------------


def test_a_prompts_digest_binds_its_tokens_their_order_and_the_salt(words: Any) -> None:
    salt = words.digest("salt")
    digests = {
        prompt_digest(salt, ids) for ids in ((), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0), (258,), (65536 + 2,))
    } | {prompt_digest(words.digest("pepper"), (1, 2))}
    assert len(digests) == 9


def test_every_setting_of_the_sampler_is_in_its_digest() -> None:
    base = Sampling(seed=bytes(32))
    others = [
        replace(base, **change)
        for change in ({"seed": b"\1" * 32}, {"choice": 1}, {"temperature_micro": 0}, {"top_k": 1}, {"top_p_micro": 1},
                       {"frequency_penalty_micro": 1}, {"presence_penalty_micro": 1})
    ]  # fmt: skip
    assert len({sampling.digest() for sampling in (base, *others)}) == 8


def test_a_request_seed_becomes_32_bytes_and_must_be_a_64_bit_integer() -> None:
    assert len({user_seed(seed) for seed in (0, 1, -1, 2**63 - 1, -(2**63))}) == 5
    assert all(len(user_seed(seed)) == 32 for seed in (0, -1))
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(RequestInvalid, match="64-bit"):
            user_seed(seed)


def test_privacy_levels_rise_from_public_to_private() -> None:
    assert sorted(Privacy, key=lambda level: level.rank) == [
        Privacy.PUBLIC, Privacy.SHARED, Privacy.CONFIDENTIAL, Privacy.PRIVATE
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"temperature_micro": -1}, {"temperature_micro": 2_000_001}, {"top_k": 257}, {"top_k": -1}, {"top_p_micro": 0},
     {"top_p_micro": 1_000_001}, {"seed": bytes(31)}, {"choice": 128}, {"frequency_penalty_micro": 2_000_001},
     {"temperature_micro": 0.7}],
)  # fmt: skip
def test_absurd_sampling_does_not_parse(change: dict[str, Any]) -> None:
    plain = {"seed": bytes(32), "choice": 0, "temperature_micro": 0, "top_k": 0, "top_p_micro": 1,
             "frequency_penalty_micro": 0, "presence_penalty_micro": 0, "logit_bias": []}  # fmt: skip
    with pytest.raises(EncodingInvalid):
        decode(Sampling, bytes(libipld.encode_dag_cbor(plain | change)))


def test_a_chat_message_without_a_role_does_not_parse() -> None:
    with pytest.raises(EncodingInvalid, match="role"):
        decode(ChatMessage, encode(ChatMessage, ChatMessage(role="", content="")))
