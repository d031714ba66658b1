"""What a receipt file proves to someone who has nothing else: no network, no data folder, no model.

`examine` lists, in plain words and in order, what holds, what is broken, and what the file alone cannot tell.
A file comes from anybody, so nothing in it is believed before a hash or a signature carries it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from market.errors import EncodingInvalid
from market.identity import Binding, check_binding
from market.money import format_octo
from market.quote import Quote, check_quote
from market.receipt import Receipt, check_receipt_signature
from market.record import unit_of
from market.signing import address_text
from market.task import prompt_digest
from market.values import decode, value
from verifier.answer import Verdict, match_answer
from verifier.engine_class import weights_unknown
from verifier.receipt_file import ReceiptFile
from verifier.receipts import check_ending, check_price, check_quoted, shown
from verifier.transcript import chain_start, replay_commitment

T = TypeVar("T")


@value
class Finding:
    """One line of an examination: `what` was looked at, and what came of it."""

    what: str
    verdict: Verdict
    detail: str


@value
class Examination:
    """`ok` means that nothing is broken; read the "unknown" findings for what it does not mean."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.verdict != "broken" for finding in self.findings)


def examine(
    file: ReceiptFile,
    *,
    network: str | None = None,
    provider: str | None = None,
    client: str | None = None,
    answer: str | None = None,
    stop: Sequence[str] = (),
    prompt_ids: tuple[int, ...] | None = None,
    token_bytes: Callable[[int], bytes] | None = None,
) -> Examination:
    """Judge a receipt file.

    Each argument that the reader can give turns an "unknown" into a verdict: the `network` and the peer ids that
    it should be about, the `answer` as shown (with the `stop` strings asked for), the token ids of the rendered
    prompt, and the model's detokenizer. Never raises for what the file holds.
    """
    notes = _Notes()
    notes.rule("file", "whole: its checksum matches", lambda: _check_checksum(file))
    receipt = notes.read("receipt", file.receipt.read)
    quote = notes.read("quote", file.quote.read)
    binding = notes.read("keys", lambda: decode(Binding, file.binding.body))
    if receipt is None or quote is None or binding is None:
        notes.add("rest", "unknown", "cannot be judged: a part of the file cannot be read")
        return Examination(findings=tuple(notes.findings))
    _signatures(notes, file, receipt, binding)
    _parties(notes, receipt, binding, network=network, provider=provider, client=client)
    _agreement(notes, file, receipt, quote, binding)
    _transcript(notes, file, receipt)
    _origin(notes, receipt)
    _words(notes, file, answer=answer, stop=stop, token_bytes=token_bytes)
    _prompt(notes, file, receipt, prompt_ids)
    notes.add("weights", "unknown", weights_unknown(receipt.engine, pieces=file.pieces))
    for what, detail in _NEVER_KNOWN:
        notes.add(what, "unknown", detail)
    return Examination(findings=tuple(notes.findings))


_NEVER_KNOWN = (
    ("payment", "that it was paid: vouchers lie with buyer and seller, settlement on their rail"),
    ("only one", "that the provider signed no other receipt for the same channel, task and seq: needs the other one"),
)


class _Notes:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, what: str, verdict: Verdict, detail: str) -> None:
        self.findings.append(Finding(what=what, verdict=verdict, detail=detail))

    def rule(self, what: str, detail: str, check: Callable[[], object]) -> None:
        """Holds, with `detail`, unless the check raises EncodingInvalid."""
        try:
            check()
        except EncodingInvalid as error:
            self.add(what, "broken", error.message)
        else:
            self.add(what, "holds", detail)

    def equal(self, what: str, detail: str, said: object, known: object) -> None:
        if said == known:
            self.add(what, "holds", detail)
        else:
            self.add(what, "broken", f"the receipt says {shown(said)}, it is {shown(known)}")

    def read(self, what: str, reader: Callable[[], T]) -> T | None:
        """A part of the file that is canonical, or None and a broken finding."""
        try:
            return reader()
        except EncodingInvalid as error:
            self.add(what, "broken", error.message)
            return None


def _check_checksum(file: ReceiptFile) -> None:
    if file.check != file.checksum():
        raise EncodingInvalid("the file was damaged or edited: its checksum does not match what it holds.")


def _signatures(notes: _Notes, file: ReceiptFile, receipt: Receipt, binding: Binding) -> None:
    key = address_text(binding.receipt_key)
    notes.rule(
        "receipt",
        f"canonical, receipt {receipt.seq} of its task, CID {file.receipt.cid()}",
        lambda: check_ending(receipt),
    )
    notes.rule(
        "signature",
        f"signed by receipt key {key}",
        lambda: check_receipt_signature(file.receipt, receipt_key=binding.receipt_key),
    )
    notes.rule(
        "keys",
        f"receipt key {key}, wallet {address_text(binding.wallet)} and peer {shown(binding.peer)} are bound to each "
        "other by their three signatures",
        lambda: check_binding(file.binding, network=receipt.network, now_ms=None),
    )
    notes.equal("binding", "the receipt cites this binding by its CID", receipt.binding, file.binding.cid())
    if binding.not_before_ms <= receipt.started_ms < binding.not_after_ms:
        notes.add("time", "holds", "the task began, by the provider's own clock, while the binding was valid")
    else:
        notes.add("time", "broken", f"the task began at {receipt.started_ms} ms, when the binding was not valid")


def _parties(
    notes: _Notes, receipt: Receipt, binding: Binding, *, network: str | None, provider: str | None, client: str | None
) -> None:
    notes.equal("provider", "the receipt names the peer of the binding", receipt.provider, binding.peer)
    for what, said, known in (
        ("network", receipt.network, network),
        ("your provider", receipt.provider, provider),
        ("your client", receipt.client, client),
    ):
        if known is None:
            notes.add(what, "unknown", f"the receipt says {shown(said)}: compare it with the one you mean")
        else:
            notes.equal(what, f"it is {shown(said)}, as you expect", said, known)


def _agreement(notes: _Notes, file: ReceiptFile, receipt: Receipt, quote: Quote, binding: Binding) -> None:
    unit = unit_of(file.pieces)
    notes.rule(
        "quote",
        "signed by the same receipt key",
        lambda: check_quote(file.quote, receipt_key=binding.receipt_key),
    )
    notes.equal("quote cited", "the receipt cites this quote by its hash", receipt.quote, file.quote.digest())
    notes.rule(
        "terms",
        f"as quoted: model {shown(receipt.model)}, weights {shown(receipt.weights)}, engine {shown(receipt.engine)}, "
        f"at most {quote.max_tokens} {unit}, {quote.mode}",
        lambda: check_quoted(receipt, quote, unit=unit),
    )
    notes.rule(
        "price",
        f"{receipt.tokens_in} {unit} in at {format_octo(quote.price_in)} and {receipt.tokens_out} out at "
        f"{format_octo(quote.price_out)} per million are {format_octo(receipt.amount)}; "
        f"at most {format_octo(quote.max_cost())} was agreed",
        lambda: check_price(receipt, quote, unit=unit),
    )


def _transcript(notes: _Notes, file: ReceiptFile, receipt: Receipt) -> None:
    try:
        start = chain_start(
            task=receipt.task,
            quote=receipt.quote,
            prompt=receipt.prompt,
            sampling=receipt.sampling,
            pieces=file.pieces,
        )
        made = replay_commitment(
            start=start,
            tokens=file.tokens,
            chunk_sizes=file.chunk_sizes,
            text_digests=file.text_digests,
            pieces=file.pieces,
        )
    except EncodingInvalid as error:
        notes.add("transcript", "broken", error.message)
        return
    said, listed = (receipt.tokens_out, receipt.chunks), (made.tokens, made.chunks)
    unit, part = unit_of(file.pieces), "pieces" if file.pieces else "chunks"
    if said != listed:
        detail = f"receipt says {said[0]} {unit} in {said[1]} {part}, the file lists {listed[0]} in {listed[1]}"
        notes.add("transcript", "broken", detail)
        return
    counted = f"{made.tokens} {unit} in {made.chunks} {part} give"
    notes.equal("transcript", f"{counted} root {made.root.hex()}", receipt.transcript_root, made.root)
    notes.equal("chain", f"{counted} head {made.head.hex()}", receipt.chain_head, made.head)
    if receipt.final:
        notes.add("end", "holds", f"the receipt is final: the answer ended by {receipt.finish!r}")
    else:
        notes.add("end", "unknown", "the receipt is not final: more may have followed, under a later receipt")


def _origin(notes: _Notes, receipt: Receipt) -> None:
    if receipt.kind == "cached":
        notes.add(
            "cached",
            "holds",
            f"nothing was generated for this task: the answer of receipt {shown(receipt.cached)} was told again, at "
            "the price quoted for that; verify that receipt too",
        )


def _words(
    notes: _Notes,
    file: ReceiptFile,
    *,
    answer: str | None,
    stop: Sequence[str],
    token_bytes: Callable[[int], bytes] | None,
) -> None:
    if len(file.text_sizes) != len(file.text_digests):
        detail = f"{len(file.text_digests)} chunks have {len(file.text_sizes)} text sizes"
        notes.add("answer", "broken", detail)
        return
    if file.pieces:
        notes.add(
            "answer", "unknown", "which pieces they were: the file has the hash of each, and no text to compare with"
        )
        return
    if token_bytes is None:
        notes.add(
            "text", "unknown", "that the hashed text is what these token ids stand for: needs the model's tokenizer"
        )
    else:
        notes.rule("text", "the token ids stand for the text that was hashed", lambda: _check_text(file, token_bytes))
    if answer is None:
        notes.add("answer", "unknown", "give the answer, as it was shown, to compare it with the hashed text")
    else:
        match = match_answer(answer, stop=stop, text_sizes=file.text_sizes, text_digests=file.text_digests)
        notes.add("answer", match.verdict, match.detail)


def _check_text(file: ReceiptFile, token_bytes: Callable[[int], bytes]) -> None:
    at = 0
    parts = zip(file.chunk_sizes, file.text_sizes, file.text_digests, strict=False)
    for index, (size, text_size, digest) in enumerate(parts):
        try:
            text = b"".join(token_bytes(token) for token in file.tokens[at : at + size])
        except (LookupError, ValueError, ArithmeticError):  # An id that the model does not have: the file made it up.
            raise EncodingInvalid(f"chunk {index} holds a token id that the model does not have.") from None
        if len(text) != text_size or hashlib.sha256(text).digest() != digest:
            raise EncodingInvalid(f"the tokens of chunk {index} stand for another text than the one that was hashed.")
        at += size


def _prompt(notes: _Notes, file: ReceiptFile, receipt: Receipt, prompt_ids: tuple[int, ...] | None) -> None:
    if file.pieces:
        notes.add(
            "prompt", "unknown", "which request it was: what is hashed is the whole request, not a prompt's tokens"
        )
    elif prompt_ids is None:
        notes.add("prompt", "unknown", "which prompt it was: give the prompt, and the model's tokenizer, to compare")
    elif len(prompt_ids) != receipt.tokens_in:
        notes.add("prompt", "broken", f"receipt says {receipt.tokens_in} tokens in, the prompt has {len(prompt_ids)}")
    else:
        digest = prompt_digest(file.salt, prompt_ids)
        notes.equal("prompt", f"its {len(prompt_ids)} token ids hash to the receipt's", receipt.prompt, digest)
