"""The check that stands between a receipt and the buyer's money.

`ReceiptVerifier` compares a signed receipt with everything the buyer knows for itself: keys, channel, quote,
prompt, counts and its own transcript. Pure: no clock, no network; what cannot be known offline is not asked.
"""

from __future__ import annotations

from market.errors import EncodingInvalid, PeerBrokeProtocol
from market.identity import Binding
from market.money import format_octo
from market.ports import Expectation
from market.quote import Quote
from market.receipt import Receipt, SignedReceipt, check_extends, check_receipt_signature
from market.signing import address_text
from verifier.transcript import StreamTranscript

QUOTED_ALIKE = ("network", "rail", "provider", "client", "task", "model", "weights", "engine", "prompt", "sampling",
                "tokens_in", "cached")  # fmt: skip
"""What a receipt must repeat from its quote, word for word."""


class ReceiptVerifier:
    """Implements `market.ports.Verifier`. Holds nothing: one instance serves every task."""

    def open_transcript(
        self, *, task: bytes, quote: bytes, prompt: bytes, sampling: bytes, pieces: bool = False
    ) -> StreamTranscript:
        return StreamTranscript(task=task, quote=quote, prompt=prompt, sampling=sampling, pieces=pieces)

    def check_receipt(self, signed: SignedReceipt, expected: Expectation) -> Receipt:
        """The receipt inside `signed`, once all that the buyer can know holds.

        Raises PeerBrokeProtocol naming the first thing that does not, with both values.
        """
        try:
            receipt = _signed_by(signed, expected.provider)
            quote = expected.quote.read()
            _check_quote(quote, expected)
            _check_parties(receipt, expected)
            check_quoted(receipt, quote)
            _check_delivered(receipt, expected)
            check_price(receipt, quote)
            check_ending(receipt)
            if expected.previous is not None:
                check_extends(expected.previous, receipt)
            elif receipt.seq != 0:
                raise EncodingInvalid(f"the receipt says seq {receipt.seq}, the first one of a task has 0.")
        except EncodingInvalid as error:
            raise PeerBrokeProtocol(error.message, peer=expected.provider.peer) from None
        return receipt


def check_quoted(receipt: Receipt, quote: Quote, *, unit: str = "tokens") -> None:
    """Raises EncodingInvalid, naming both values, unless the receipt repeats what was quoted. `unit`: as
    `market.record.unit_of`."""
    for name in QUOTED_ALIKE:
        _same(f"receipt says {name}", getattr(receipt, name), "the quote says", getattr(quote, name))
    if receipt.tokens_out > quote.max_tokens:
        raise EncodingInvalid(f"receipt says {receipt.tokens_out} {unit}, the quote ends at {quote.max_tokens}.")


def check_price(receipt: Receipt, quote: Quote, *, unit: str = "tokens") -> None:
    """Raises EncodingInvalid unless the amount is, to the smallest unit, what the quote makes of the counts."""
    due = quote.cost_of(receipt.tokens_out)
    if receipt.amount != due:
        raise EncodingInvalid(
            f"receipt says {format_octo(receipt.amount)}, {quote.tokens_in} {unit} in and {receipt.tokens_out} out "
            f"cost {format_octo(due)} by the quote."
        )
    if receipt.amount > quote.max_cost():
        raise EncodingInvalid(
            f"receipt says {format_octo(receipt.amount)}, the quote allows at most {format_octo(quote.max_cost())}."
        )


def check_ending(receipt: Receipt) -> None:
    """Raises EncodingInvalid if the receipt contradicts itself about where the answer is from, or about its end."""
    if (receipt.kind == "cached") != (receipt.cached != ""):
        raise EncodingInvalid(f"receipt says it is {receipt.kind}, and cites {receipt.cached or 'nothing'!r}.")
    if receipt.final != (receipt.finish != ""):
        word = "final" if receipt.final else "not final"
        raise EncodingInvalid(f"receipt says it is {word}, and why the answer ended: {receipt.finish or 'nothing'!r}.")
    if receipt.ended_ms < receipt.started_ms:
        raise EncodingInvalid(f"receipt says it ended at {receipt.ended_ms} ms, before its start {receipt.started_ms}.")


def _signed_by(signed: SignedReceipt, provider: Binding) -> Receipt:
    try:
        return check_receipt_signature(signed, receipt_key=provider.receipt_key)
    except EncodingInvalid as error:
        key = address_text(provider.receipt_key)
        raise EncodingInvalid(f"{error.message} The key bound to {provider.peer} is {key}.") from None


def _check_quote(quote: Quote, expected: Expectation) -> None:
    """The quote was checked when it was accepted; what the bill is computed from is compared once more."""
    for name, known in (
        ("network", expected.network),
        ("rail", expected.rail),
        ("provider", expected.provider.peer),
        ("client", expected.client),
        ("task", expected.task),
        ("prompt", expected.prompt),
        ("sampling", expected.sampling),
        ("tokens_in", expected.tokens_in),
    ):
        _same(f"the quote says {name}", getattr(quote, name), "it is", known)


def _check_parties(receipt: Receipt, expected: Expectation) -> None:
    for name, known in (
        ("binding", expected.provider_binding_cid),
        ("channel", expected.channel),
        ("quote", expected.quote.digest()),
    ):
        _same(f"receipt says {name}", getattr(receipt, name), "it is", known)


def _check_delivered(receipt: Receipt, expected: Expectation) -> None:
    seen = expected.commitment
    if receipt.tokens_out != seen.tokens:
        raise EncodingInvalid(f"receipt says {receipt.tokens_out} tokens, the stream had {seen.tokens}.")
    if receipt.chunks != seen.chunks:
        raise EncodingInvalid(f"receipt says {receipt.chunks} chunks, the stream had {seen.chunks}.")
    _same("receipt says chain head", receipt.chain_head, "the stream has", seen.head)
    _same("receipt says transcript root", receipt.transcript_root, "the stream has", seen.root)


def _same(what: str, said: object, whose: str, known: object) -> None:
    if said != known:
        raise EncodingInvalid(f"{what} {shown(said)}, {whose} {shown(known)}.")


def shown(item: object) -> str:
    """A value for people. Texts by others are quoted: they could carry a terminal's escape sequences."""
    return item.hex() if isinstance(item, bytes) else ascii(item)
