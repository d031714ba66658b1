"""Integers of 10^-18 OCTO: no rounding in anyone's disfavour but by less than one unit, no float anywhere."""

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, RequestInvalid
from market.money import AMOUNT_LIMIT, OCTO, TOKENS_PER_PRICE, Amount, cost, format_octo, parse_octo
from market.values import decode, encode, from_plain, to_plain, value

amounts = st.integers(0, AMOUNT_LIMIT)
counts = st.integers(0, 2**31 - 1)


@given(counts, amounts)
def test_a_cost_is_rounded_up_by_less_than_one_unit(tokens: int, price: int) -> None:
    exact = tokens * price
    assert 0 <= cost(tokens=tokens, price_per_million=price) * TOKENS_PER_PRICE - exact < TOKENS_PER_PRICE


@given(counts.filter(bool), amounts.filter(bool))
def test_no_token_is_free_at_a_price(tokens: int, price: int) -> None:
    assert cost(tokens=tokens, price_per_million=price) >= 1


@given(counts, counts, amounts)
def test_splitting_tokens_over_two_bills_never_costs_less(first: int, second: int, price: int) -> None:
    whole = cost(tokens=first + second, price_per_million=price)
    assert (
        whole <= cost(tokens=first, price_per_million=price) + cost(tokens=second, price_per_million=price) <= whole + 1
    )


def test_a_million_tokens_cost_the_price() -> None:
    assert cost(tokens=1_000_000, price_per_million=3 * OCTO) == 3 * OCTO
    assert cost(tokens=0, price_per_million=3 * OCTO) == 0
    assert cost(tokens=1, price_per_million=1) == 1


@given(amounts)
def test_an_amount_reads_back_from_its_text(amount: int) -> None:
    assert parse_octo(format_octo(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 OCTO"), (1, "0.000000000000000001 OCTO"), (OCTO * 5 // 4, "1.25 OCTO"), (OCTO, "1 OCTO"),
     (-OCTO // 2, "-0.5 OCTO"), (10 * OCTO, "10 OCTO")],
)  # fmt: skip
def test_amounts_are_shown_exactly_without_trailing_zeros(amount: int, text: str) -> None:
    assert format_octo(amount) == text


@pytest.mark.parametrize(
    "text",
    ["", "OCTO", "1.2.3", "-1", "1e99", "nan", "inf", "-inf", "0.0000000000000000001", "one", "1,5", "0x10",
     "1e999999999", "1 OCTO OCTO", "sNaN", "9" * 100],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid, match="not an amount"):
        parse_octo(text)


def test_the_largest_amount_reads_without_rounding() -> None:
    assert parse_octo(format_octo(AMOUNT_LIMIT)) == AMOUNT_LIMIT
    assert parse_octo("12345678901234567890.123456789012345678") == 12345678901234567890123456789012345678


def test_digits_below_the_smallest_unit_are_refused_not_rounded() -> None:
    with pytest.raises(RequestInvalid):
        parse_octo("12345678901234567890.1234567890123456789")


@value
class Purse:
    amount: Amount


def test_an_amount_travels_as_one_solidity_word() -> None:
    """DAG-CBOR integers end at 64 bits, amounts at 256."""
    for amount in (0, 1, 2**64, AMOUNT_LIMIT):
        plain = to_plain(Purse, Purse(amount=amount))
        assert plain == {"amount": amount.to_bytes(32, "big")}
        assert decode(Purse, encode(Purse, Purse(amount=amount))) == Purse(amount=amount)
    assert AMOUNT_LIMIT == 2**256 - 1


@pytest.mark.parametrize("raw", [bytes(31), bytes(33), b"", "1", -1, True, 1.0, None, 2**256, [1]])
def test_what_is_no_solidity_word_is_no_amount(raw: object) -> None:
    with pytest.raises(EncodingInvalid, match=r"amount.*32 big-endian bytes"):
        from_plain(Purse, {"amount": raw})


def test_an_amount_sent_as_a_number_is_not_canonical() -> None:
    with pytest.raises(EncodingInvalid, match="canonical"):
        decode(Purse, bytes(libipld.encode_dag_cbor({"amount": 5})))
