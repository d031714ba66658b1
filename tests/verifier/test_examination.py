"""Offline: what a receipt file proves, what it does not, and that nobody can bend it unseen."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from market.identity import Binding, SignedBinding
from market.money import OCTO
from market.receipt import SignedReceipt, sign_receipt
from market.values import decode, encode
from verifier import receipt_file
from verifier.engine_class import weights_unknown
from verifier.examination import Examination, examine
from verifier.receipt_file import ReceiptFile


def file_of(sale: Any, **changes: Any) -> ReceiptFile:
    """A file whose checksum fits: bent by somebody who knows how, not by accident."""
    return replace(receipt_file.from_record(sale.record()), **changes).sealed()


def verdicts(examination: Examination) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in examination.findings}


def broken(examination: Examination) -> dict[str, str]:
    return {finding.what: finding.detail for finding in examination.findings if finding.verdict == "broken"}


def everything(sale: Any, file: ReceiptFile) -> Examination:
    """Judged by a reader who has all that a reader can have."""
    return examine(
        file,
        network=sale.network,
        provider=sale.peer.peer,
        client=sale.client.peer,
        answer=sale.answer,
        prompt_ids=sale.prompt_ids,
        token_bytes=sale.token_bytes,
    )


def test_a_reader_with_nothing_learns_what_holds_and_what_is_not_known(sale: Any) -> None:
    examination = examine(file_of(sale))
    assert examination.ok
    assert verdicts(examination) == {
        "file": "holds", "receipt": "holds", "signature": "holds", "keys": "holds", "binding": "holds",
        "time": "holds", "provider": "holds", "network": "unknown", "your provider": "unknown",
        "your client": "unknown", "quote": "holds", "quote cited": "holds", "terms": "holds", "price": "holds",
        "transcript": "holds", "chain": "holds", "end": "holds", "text": "unknown", "answer": "unknown",
        "prompt": "unknown", "weights": "unknown", "payment": "unknown", "only one": "unknown",
    }  # fmt: skip


def test_a_reader_with_everything_is_left_with_what_needs_a_replay_or_a_ledger(sale: Any) -> None:
    examination = everything(sale, file_of(sale))
    assert examination.ok
    unknown = [what for what, verdict in verdicts(examination).items() if verdict == "unknown"]
    assert unknown == ["weights", "payment", "only one"]


def test_the_findings_name_the_values_that_were_checked(sale: Any) -> None:
    details = {finding.what: finding.detail for finding in everything(sale, file_of(sale)).findings}
    assert sale.signed.cid() in details["receipt"]
    assert details["price"] == (
        "4 tokens in at 0.1 OCTO and 80 out at 1 OCTO per million are 0.0000804 OCTO; at most 0.0001284 OCTO was agreed"
    )
    assert f"80 tokens in 3 chunks give root {sale.commitment.root.hex()}" in details["transcript"]
    assert sale.commitment.head.hex() in details["chain"]
    assert "hash to its 3 chunks" in details["answer"]
    assert "needs a replay" in details["weights"]


def test_of_an_answer_in_pieces_units_are_counted_and_no_text_or_prompt_is_called_broken(sale: Any) -> None:
    work = type(sale)(5, pieces=True)
    examination = everything(work, file_of(work))
    assert examination.ok
    details = {finding.what: finding.detail for finding in examination.findings}
    assert details["price"].startswith("4 units in at 0.1 OCTO and 10 out at 1 OCTO per million")
    assert "at most 128 units" in details["terms"]
    assert f"10 units in 5 pieces give root {work.commitment.root.hex()}" in details["transcript"]
    assert not [detail for detail in details.values() if " tokens" in detail and "prompt" not in detail]
    assert {verdicts(examination)[what] for what in ("answer", "prompt", "weights")} == {"unknown"}
    dear = examine(file_of(work, receipt=work.claim(amount=1)))
    assert "4 units in and 10 out cost" in broken(dear)["price"]
    more = examine(file_of(work, receipt=work.claim(tokens_out=129)))
    assert "129 units, the quote ends at 128" in broken(more)["terms"]
    assert "receipt says 129 units in 5 pieces, the file lists 10 in 5" in broken(more)["transcript"]


# ---- damage and forgery ----------------------------------------------------------------------------


def test_every_single_flipped_bit_of_a_file_is_seen_and_by_more_than_the_checksum(short_sale: Any) -> None:
    good = file_of(short_sale)
    data = receipt_file.encode(good)
    unseen, parsed = [], 0
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            file = receipt_file.parse(bytes(flipped))
        except EncodingInvalid:
            continue
        parsed += 1
        if file.check == file.checksum():
            unseen.append(bit)
        elif bit // 8 % 8 == bit % 8:  # of each byte one bit is judged in full: a signature costs 0.1 ms to check
            seen = set(broken(everything(short_sale, file)))
            if "file" not in seen or (seen == {"file"} and file.check == good.check):
                unseen.append(bit)
    assert unseen == []
    assert parsed > len(data) * 4  # most bits lie in hashes, bodies and signatures, where the form says nothing


PARTS = ["receipt", "quote", "binding", "tokens", "chunk_sizes", "text_sizes", "text_digests", "salt"]


@pytest.mark.parametrize("part", PARTS)
@given(data=st.data())
def test_a_flipped_bit_is_broken_even_under_a_new_checksum(sale: Any, part: str, data: st.DataObject) -> None:
    """A checksum is no signature: whoever bends the file makes a new one. Then the part itself must tell."""
    plain = data.draw(st.integers(0, 10**6))
    file = file_of(sale)
    try:
        bent = replace(file, **{part: bend(getattr(file, part), plain)}).sealed()
        bent = receipt_file.parse(receipt_file.encode(bent))
    except EncodingInvalid:
        return
    assert not everything(sale, bent).ok
    if part not in ("text_sizes", "salt"):
        assert not examine(bent).ok


def bend(part: Any, seed: int) -> Any:
    """One bit, of one number or byte string, somewhere inside."""
    if isinstance(part, int):
        return part ^ 1 << seed % max(part.bit_length(), 1)
    if isinstance(part, bytes):
        at = seed % (len(part) * 8)
        return bytes(byte ^ (1 << at % 8 if index == at // 8 else 0) for index, byte in enumerate(part))
    if isinstance(part, tuple):
        at = seed % len(part)
        return (*part[:at], bend(part[at], seed // len(part)), *part[at + 1 :])
    name = part.__slots__[seed % len(part.__slots__)]
    return replace(part, **{name: bend(getattr(part, name), seed // len(part.__slots__))})


def test_damage_is_told_from_a_lie(sale: Any) -> None:
    damaged = replace(file_of(sale), check=bytes(32))
    assert broken(examine(damaged)) == {
        "file": "the file was damaged or edited: its checksum does not match what it holds."
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"amount": OCTO}, "price"),
        ({"tokens_in": 5}, "terms"),
        ({"weights": "bafyother"}, "terms"),
        ({"engine": "toaster"}, "terms"),
        ({"rail": "eip155:1"}, "terms"),
        ({"client": "12D3other"}, "terms"),
        ({"provider": "12D3other"}, "provider"),
        ({"network": "octo-main"}, "keys"),
        ({"binding": "bafyother"}, "binding"),
        ({"quote": bytes(32)}, "quote cited"),
        ({"tokens_out": 81}, "transcript"),
        ({"chunks": 2}, "transcript"),
        ({"transcript_root": bytes(32)}, "transcript"),
        ({"chain_head": bytes(32)}, "chain"),
        ({"task": bytes(32)}, "chain"),
        ({"prompt": bytes(32)}, "chain"),
        ({"finish": ""}, "receipt"),
        ({"started_ms": 1}, "time"),
    ],
)
def test_a_lie_that_the_provider_signed_is_broken(sale: Any, change: dict[str, Any], what: str) -> None:
    examination = examine(file_of(sale, receipt=sale.claim(**change)))
    assert not examination.ok
    assert what in broken(examination)


def test_a_receipt_by_another_provider_is_broken(sale: Any) -> None:
    forged = sign_receipt(sale.receipt, sale.wallet)
    assert "signature" in broken(examine(file_of(sale, receipt=forged)))


def test_a_foreign_binding_is_broken(sale: Any) -> None:
    thief = type(sale)(name="thief")
    examination = examine(file_of(sale, binding=thief.signed_binding))
    assert {"signature", "binding", "provider", "quote"} <= set(broken(examination))


def test_a_binding_that_one_owner_did_not_sign_is_broken(sale: Any) -> None:
    half = replace(sale.signed_binding, by_wallet=sale.signed_binding.by_receipt_key)
    receipt = sale.claim(binding=half.cid())
    assert broken(examine(file_of(sale, binding=half, receipt=receipt))) == {
        "keys": "the binding is not signed by its wallet."
    }


def test_a_dearer_quote_than_the_one_agreed_is_broken(sale: Any) -> None:
    dearer = sale.quote(price_out=2 * OCTO)
    assert {"quote cited", "price"} <= set(broken(examine(file_of(sale, quote=dearer))))


def test_a_quote_with_an_impossible_price_is_broken_not_a_crash(sale: Any) -> None:
    quote = sale.signed_quote.read()
    monster = replace(quote, price_out=2**256 - 1, max_tokens=2**31 - 1)
    signed = replace(sale.signed_quote, body=encode(type(quote), monster))
    assert "256 bits" in broken(examine(file_of(sale, quote=signed)))["quote"]


@pytest.mark.parametrize("part", ["receipt", "quote", "binding"])
def test_a_part_that_cannot_be_read_is_broken_and_the_rest_not_judged(sale: Any, part: str) -> None:
    item = replace(getattr(file_of(sale), part), body=b"\x81" * 900)
    examination = examine(file_of(sale, **{part: item}))
    assert {"receipt": "receipt", "quote": "quote", "binding": "keys"}[part] in broken(examination)
    assert verdicts(examination)["rest"] == "unknown"


@pytest.mark.parametrize(
    ("argument", "what", "detail"),
    [
        ({"network": "octo-main"}, "network", "the receipt says 'octo-test', it is 'octo-main'"),
        ({"provider": "12D3other"}, "your provider", "it is '12D3other'"),
        ({"client": "12D3other"}, "your client", "it is '12D3other'"),
        ({"prompt_ids": (1, 2)}, "prompt", "receipt says 4 tokens in, the prompt has 2"),
        ({"prompt_ids": (1, 4093, 198, 3)}, "prompt", "the receipt says"),
        ({"answer": ""}, "answer", "the answer has 0 bytes"),
        ({"answer": "Something else altogether, and long enough " * 20}, "answer", "chunk 0 of the answer"),
        ({"token_bytes": lambda token: b"x"}, "text", "chunk 0 stand for another text"),
    ],
)
def test_a_receipt_for_something_else_than_the_reader_means_is_broken(
    sale: Any, argument: dict[str, Any], what: str, detail: str
) -> None:
    examination = examine(file_of(sale), **argument)
    assert not examination.ok
    assert detail in broken(examination)[what]


def test_an_answer_cut_at_its_stop_string_holds(sale: Any) -> None:
    answer = sale.answer.removesuffix(".\n")
    assert verdicts(examine(file_of(sale), answer=answer))["answer"] == "broken"
    assert verdicts(examine(file_of(sale), answer=answer, stop=[".\n"]))["answer"] == "holds"


def test_lists_of_unequal_length_are_broken_not_a_crash(sale: Any) -> None:
    file = file_of(sale)
    for change in ({"text_sizes": file.text_sizes[:-1]}, {"text_digests": ()}, {"chunk_sizes": ()}, {"tokens": ()},
                   {"text_sizes": (), "text_digests": (), "chunk_sizes": (), "tokens": ()}):  # fmt: skip
        assert not everything(sale, file_of(sale, **change)).ok


def test_a_receipt_that_is_not_final_says_that_more_may_have_followed(sale: Any) -> None:
    receipt = sale.claim(final=False, finish="")
    examination = examine(file_of(sale, receipt=receipt))
    assert examination.ok
    assert verdicts(examination)["end"] == "unknown"


def test_what_others_wrote_cannot_write_to_a_terminal(sale: Any) -> None:
    nasty = "\x1b]0;owned\x07\nok"
    quote = sale.quote(engine=nasty)
    receipt = sale.claim(engine=nasty, quote=quote.digest())
    for finding in examine(file_of(sale, receipt=receipt, quote=quote)).findings:
        assert finding.detail.isprintable(), finding


def test_text_sizes_that_are_not_of_these_tokens_are_broken(sale: Any) -> None:
    file = file_of(sale)
    moved = file_of(sale, text_sizes=(file.text_sizes[0] + 1, file.text_sizes[1] - 1, *file.text_sizes[2:]))
    assert set(broken(examine(moved, token_bytes=sale.token_bytes))) == {"text"}


def test_a_task_may_begin_in_the_first_millisecond_of_its_binding(sale: Any) -> None:
    fresh = sale.bind(not_before_ms=sale.started_ms)
    assert examine(file_of(sale, binding=fresh, receipt=sale.claim(binding=fresh.cid()))).ok


def test_the_times_are_the_bindings(sale: Any) -> None:
    late = sale.bind(not_after_ms=sale.started_ms)
    receipt = sale.claim(binding=late.cid())
    assert "time" in broken(examine(file_of(sale, binding=late, receipt=receipt)))


def test_a_file_can_be_checked_by_hand_as_documented(sale: Any) -> None:
    """The claims that matter, without our own code: a hash and a comparison each."""
    file = file_of(sale)
    receipt = decode(type(sale.receipt), file.receipt.body)
    at = 0
    for size, digest in zip(file.text_sizes, file.text_digests, strict=True):
        assert hashlib.sha256(sale.answer.encode()[at : at + size]).digest() == digest
        at += size
    assert receipt.quote == hashlib.sha256(file.quote.body).digest()
    assert decode(Binding, decode(SignedBinding, encode(SignedBinding, file.binding)).body).peer == receipt.provider
    assert isinstance(file.receipt, SignedReceipt)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("llama.cpp/0.3.36/cpu-avx512/q4_0", "needs a replay of the task"),
        ("openai_http/vllm/0.32.0/cpu/bfloat16", "within a tolerance"),
        ("openai_http/attached/ollama", "no replay can show what it ran"),
    ],
)
def test_what_a_replay_could_show_about_the_weights_depends_on_the_engine(engine: str, words: str) -> None:
    assert words in weights_unknown(engine)
