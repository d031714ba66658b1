"""Before it pays: whatever in a receipt is not what the buyer knows is refused, and both values are named."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, PeerBrokeProtocol
from market.money import OCTO
from market.ports import Verifier
from market.receipt import SignedReceipt, sign_receipt
from market.values import decode, encode
from verifier.receipts import ReceiptVerifier, check_price

VERIFIER: Verifier = ReceiptVerifier()


def test_a_receipt_that_says_what_the_buyer_knows_passes(sale: Any) -> None:
    assert VERIFIER.check_receipt(sale.signed, sale.expectation()) == sale.receipt


def test_an_answer_of_no_tokens_is_billed_for_its_input_alone(sale: Any) -> None:
    commitment = sale.stream(0).close_chunk()
    receipt = sale.receipt_of(commitment, finish="cancelled")
    assert receipt.amount == sale.signed_quote.read().cost_in()
    VERIFIER.check_receipt(sign_receipt(receipt, sale.receipt_key), sale.expectation(commitment=commitment))


def test_an_answer_as_long_as_was_quoted_passes(sale: Any) -> None:
    commitment = sale.stream(128).close_chunk()
    receipt = sale.receipt_of(commitment, finish="length", ended_ms=sale.started_ms)
    assert receipt.amount == sale.signed_quote.read().max_cost()
    VERIFIER.check_receipt(sign_receipt(receipt, sale.receipt_key), sale.expectation(commitment=commitment))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens_out": 90}, "receipt says 90 tokens, the stream had 80"),
        ({"tokens_out": 79}, "receipt says 79 tokens, the stream had 80"),
        ({"tokens_out": 129}, "receipt says 129 tokens, the quote ends at 128"),
        ({"chunks": 4}, "receipt says 4 chunks, the stream had 3"),
        ({"chain_head": bytes(32)}, f"chain head {bytes(32).hex()}, the stream has "),
        ({"transcript_root": bytes(32)}, f"transcript root {bytes(32).hex()}, the stream has "),
        ({"tokens_in": 40}, "receipt says tokens_in 40, the quote says 4"),
        ({"network": "octo-main"}, "receipt says network 'octo-main', the quote says 'octo-test'"),
        ({"rail": "eip155:1"}, "receipt says rail 'eip155:1', the quote says 'ledger:octo-test'"),
        ({"provider": "12D3other"}, "receipt says provider '12D3other'"),
        ({"client": "12D3other"}, "receipt says client '12D3other'"),
        ({"binding": "bafyother"}, "receipt says binding 'bafyother', it is 'bafyrei"),
        ({"channel": bytes(32)}, "receipt says channel 0000"),
        ({"task": bytes(32)}, "receipt says task 0000"),
        ({"quote": bytes(32)}, "receipt says quote 0000"),
        ({"prompt": bytes(32)}, "receipt says prompt 0000"),
        ({"sampling": bytes(32)}, "receipt says sampling 0000"),
        ({"model": "bafyother"}, "receipt says model 'bafyother', the quote says 'bafymodel'"),
        ({"weights": "bafyother"}, "receipt says weights 'bafyother', the quote says 'bafyweights'"),
        ({"engine": "toaster"}, "receipt says engine 'toaster', the quote says 'llama.cpp/test'"),
        ({"amount": OCTO}, "receipt says 1 OCTO, 4 tokens in and 80 out cost 0.0000804 OCTO"),
        ({"amount": 80 * 10**12 + 4 * 10**11 + 1}, "receipt says 0.000080400000000001 OCTO"),
        ({"amount": 0}, "receipt says 0 OCTO"),
        ({"seq": 1}, "receipt says seq 1, the first one of a task has 0"),
        ({"final": False}, "not final, and why the answer ended: 'stop'"),
        ({"finish": ""}, "final, and why the answer ended: 'nothing'"),
        ({"ended_ms": 1}, "ended at 1 ms, before its start"),
    ],
)
def test_a_lie_is_refused_with_both_values(sale: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        VERIFIER.check_receipt(sale.claim(**change), sale.expectation())
    assert reason in str(caught.value)
    assert caught.value.peer == sale.peer.peer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens_in": 3}, "the quote says tokens_in 4, it is 3"),  # a slipped-in system prompt, or inflated counting
        ({"prompt": bytes(32)}, "the quote says prompt"),
        ({"sampling": bytes(32)}, "the quote says sampling"),
        ({"network": "octo-main"}, "the quote says network 'octo-test', it is 'octo-main'"),
        ({"rail": "eip155:1"}, "the quote says rail"),
        ({"client": "12D3me"}, "the quote says client"),
        ({"task": bytes(32)}, "the quote says task"),
        ({"channel": bytes(32)}, "receipt says channel"),
        ({"provider_binding_cid": "bafyother"}, "receipt says binding"),
    ],
)
def test_a_receipt_for_something_else_is_refused(sale: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerBrokeProtocol, match=reason):
        VERIFIER.check_receipt(sale.signed, sale.expectation(**change))


def test_a_price_for_more_tokens_than_were_quoted_is_refused_by_itself(sale: Any) -> None:
    quote = sale.signed_quote.read()
    over = replace(sale.receipt, tokens_out=129, amount=quote.cost_of(129))
    with pytest.raises(EncodingInvalid, match=r"the quote allows at most 0\.0001284 OCTO"):
        check_price(over, quote)
    check_price(replace(over, tokens_out=128, amount=quote.max_cost()), quote)


def test_a_receipt_by_a_key_that_is_not_the_providers_is_refused(sale: Any) -> None:
    forged = sign_receipt(sale.receipt, sale.wallet)
    with pytest.raises(PeerBrokeProtocol, match=r"not signed by the provider's receipt key.*0x"):
        VERIFIER.check_receipt(forged, sale.expectation())


def test_a_receipt_under_another_quote_of_the_same_provider_is_refused(sale: Any) -> None:
    dearer = sale.quote(price_out=2 * OCTO)
    receipt = replace(sale.receipt, quote=dearer.digest(), amount=dearer.read().cost_of(80))
    with pytest.raises(PeerBrokeProtocol, match="receipt says quote"):
        VERIFIER.check_receipt(sign_receipt(receipt, sale.receipt_key), sale.expectation())


@given(st.data())
def test_a_receipt_with_a_flipped_bit_is_refused(sale: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(SignedReceipt, sale.signed))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        damaged = decode(SignedReceipt, bytes(raw))
    except EncodingInvalid:
        return
    with pytest.raises(PeerBrokeProtocol):
        VERIFIER.check_receipt(damaged, sale.expectation())


def test_a_receipt_of_noise_is_the_peers_fault_too(sale: Any) -> None:
    for body in (b"", b"\xff", b"\x81" * 4096, b"\xa0"):
        with pytest.raises(PeerBrokeProtocol):
            VERIFIER.check_receipt(SignedReceipt(body=body, signature=bytes(65)), sale.expectation())


# ---- one receipt after another ---------------------------------------------------------------------


def two_ticks(sale: Any) -> tuple[Any, Any, Any, Any]:
    transcript = sale.stream(64)
    first_commitment = transcript.close_chunk()
    first = sale.receipt_of(first_commitment, final=False, finish="")
    for position in range(64, 80):
        transcript.add(sale.token(position), sale.token_bytes(sale.token(position)))
    second_commitment = transcript.close_chunk()
    second = sale.receipt_of(second_commitment, seq=1, ended_ms=sale.started_ms + 2000)
    return first, first_commitment, second, second_commitment


def test_a_receipt_extends_the_one_before(sale: Any) -> None:
    first, first_commitment, second, second_commitment = two_ticks(sale)
    first_seen = VERIFIER.check_receipt(
        sign_receipt(first, sale.receipt_key), sale.expectation(commitment=first_commitment)
    )
    expected = sale.expectation(commitment=second_commitment, previous=first_seen)
    assert VERIFIER.check_receipt(sign_receipt(second, sale.receipt_key), expected).seq == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"seq": 0}, "does not follow receipt 0"), ({"seq": 2}, "does not follow receipt 0"),
     ({"started_ms": 1}, "changed started_ms"), ({"ended_ms": 1_790_000_000_001}, "lowers ended_ms")],
)  # fmt: skip
def test_a_receipt_that_does_not_extend_the_one_before_is_refused(
    sale: Any, change: dict[str, Any], reason: str
) -> None:
    first, _, second, commitment = two_ticks(sale)
    lie = sign_receipt(replace(second, **change), sale.receipt_key)
    with pytest.raises(PeerBrokeProtocol, match=reason):
        VERIFIER.check_receipt(lie, sale.expectation(commitment=commitment, previous=first))


def test_no_receipt_follows_a_final_one(sale: Any) -> None:
    again = sale.claim(seq=1)
    with pytest.raises(PeerBrokeProtocol, match="follows a final one"):
        VERIFIER.check_receipt(again, sale.expectation(previous=sale.receipt))


def test_a_value_by_the_provider_cannot_write_to_a_terminal(sale: Any) -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        VERIFIER.check_receipt(sale.claim(engine="\x1b[2J\nERROR: all good"), sale.expectation())
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
