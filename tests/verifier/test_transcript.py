"""The chain and the tree over a stream: golden bytes, and both sides alike however the tokens arrive."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from market.merkle import EMPTY_ROOT, check_proof, prove, root_of
from market.record import Commitment, Transcript
from verifier.receipts import ReceiptVerifier
from verifier.transcript import CHUNK_TOKENS, StreamTranscript, chain_link, chain_start, chunk_leaf, replay_commitment

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors" / "transcript.json").read_text(encoding="utf-8"))
START = {name: bytes.fromhex(raw) for name, raw in GOLDEN["start"].items()}
tokens_with_text = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.binary(max_size=5)), max_size=100)


def test_the_golden_transcript_is_reproduced_byte_for_byte() -> None:
    transcript = StreamTranscript(**START)
    closings = [commitment["after"] for commitment in GOLDEN["commitments"]]
    heads, commitments = [], []
    for count in range(len(GOLDEN["tokens"]) + 1):
        commitments += [transcript.close_chunk() for closing in closings if closing == count]
        if count < len(GOLDEN["tokens"]):
            token, text = GOLDEN["tokens"][count]
            head = transcript.add(token, bytes.fromhex(text))
            heads += [head.hex()] if head else []
    assert [
        {"tokens": c.tokens, "chunks": c.chunks, "head": c.head.hex(), "root": c.root.hex()} for c in commitments
    ] == [{name: c[name] for name in ("tokens", "chunks", "head", "root")} for c in GOLDEN["commitments"]]
    full = [chunk["head"] for chunk, size in zip(GOLDEN["chunks"], transcript.chunk_sizes, strict=True) if size == 32]
    assert heads == full
    assert transcript.text_sizes == [chunk["text_bytes"] for chunk in GOLDEN["chunks"]]
    assert transcript.tokens == [token for token, _ in GOLDEN["tokens"]]


def test_golden_leaves_links_and_roots_are_reproduced() -> None:
    head, leaves, at = chain_start(**START), [], 0
    assert head.hex() == GOLDEN["chain_0"]
    for index, chunk in enumerate(GOLDEN["chunks"]):
        size = int.from_bytes(bytes.fromhex(chunk["leaf"])[8:10], "big")
        part = GOLDEN["tokens"][at : at + size]
        text = b"".join(bytes.fromhex(raw) for _, raw in part)
        leaf = chunk_leaf(
            index=index, start=at, tokens=[token for token, _ in part], text_digest=hashlib.sha256(text).digest()
        )
        assert leaf.hex() == chunk["leaf"]
        head, at = chain_link(head, leaf), at + size
        leaves.append(leaf)
        assert (head.hex(), root_of(leaves).hex()) == (chunk["head"], chunk["root"])
    assert check_proof(leaves[1], index=1, size=len(leaves), proof=prove(leaves, 1), root=root_of(leaves))


def test_a_chunk_closes_by_itself_at_32_tokens() -> None:
    transcript: Transcript = ReceiptVerifier().open_transcript(**START)
    heads = [transcript.add(token, b"x") for token in range(CHUNK_TOKENS * 2 + 5)]
    assert [at for at, head in enumerate(heads) if head] == [31, 63]
    assert transcript.close_chunk().head not in (None, heads[63])
    assert transcript.chunk_sizes == [32, 32, 5]
    assert transcript.text_sizes == [32, 32, 5]


def test_closing_an_empty_chunk_changes_nothing() -> None:
    transcript = StreamTranscript(**START)
    empty = transcript.close_chunk()
    assert empty == Commitment(tokens=0, chunks=0, head=chain_start(**START), root=EMPTY_ROOT)
    transcript.add(1, b"one")
    assert transcript.close_chunk() == transcript.close_chunk() != empty


def test_tokens_of_an_open_chunk_are_not_committed_to() -> None:
    transcript = StreamTranscript(**START)
    transcript.add(1, b"one")
    first = transcript.close_chunk()
    transcript.add(2, b"two")
    assert len(transcript.tokens) == 2
    assert (first.tokens, sum(transcript.chunk_sizes)) == (1, 1)


@given(tokens_with_text, st.lists(st.integers(0, 100), max_size=5))
def test_a_recorded_transcript_gives_the_same_commitment_again(
    stream: list[tuple[int, bytes]], closings: list[int]
) -> None:
    transcript = StreamTranscript(**START)
    for count, (token, text) in enumerate(stream):
        if count in closings:
            transcript.close_chunk()
        transcript.add(token, text)
    commitment = transcript.close_chunk()
    assert commitment.tokens == len(stream)
    again = replay_commitment(
        start=chain_start(**START),
        tokens=transcript.tokens,
        chunk_sizes=transcript.chunk_sizes,
        text_digests=transcript.text_digests,
    )
    assert again == commitment


def test_a_full_chunk_and_a_chunk_of_one_token_are_recorded_alike() -> None:
    transcript = StreamTranscript(**START)
    for token in range(CHUNK_TOKENS + 1):
        transcript.add(token, b"x")
    commitment = transcript.close_chunk()
    assert transcript.chunk_sizes == [32, 1]
    parts = {"tokens": transcript.tokens, "chunk_sizes": [32, 1], "text_digests": transcript.text_digests}
    assert replay_commitment(start=chain_start(**START), **parts) == commitment


@pytest.mark.parametrize("name", list(START))
def test_every_part_of_the_start_is_in_the_chain(name: str) -> None:
    other = chain_start(**(START | {name: bytes(32)}))
    assert other != chain_start(**START)
    with pytest.raises(EncodingInvalid, match=f"{name} has 32 bytes, not 31"):
        chain_start(**(START | {name: bytes(31)}))


def committed(stream: list[tuple[int, bytes]], closings: tuple[int, ...] = ()) -> Commitment:
    transcript = StreamTranscript(**START)
    for count, (token, text) in enumerate(stream):
        if count in closings:
            transcript.close_chunk()
        transcript.add(token, text)
    return transcript.close_chunk()


def test_a_token_a_text_an_order_or_a_cut_changes_head_and_root() -> None:
    stream = [(token, b"%d" % token) for token in range(40)]
    others = [
        committed([*stream[:7], (99, b"7"), *stream[8:]]),
        committed([*stream[:7], (7, b"!"), *stream[8:]]),
        committed([stream[1], stream[0], *stream[2:]]),
        committed(stream, closings=(5,)),
        committed(stream[:-1]),
    ]
    base = committed(stream)
    assert len({base.head, *(other.head for other in others)}) == 6
    assert len({base.root, *(other.root for other in others)}) == 6


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_is_no_32_bit_number_is_refused(token: int) -> None:
    transcript = StreamTranscript(**START)
    with pytest.raises(EncodingInvalid, match="32-bit"):
        transcript.add(token, b"")
    assert transcript.close_chunk().tokens == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chunk_sizes": (2,)}, "hold 2 tokens, 3 are listed"),
        ({"chunk_sizes": (2, 1)}, "2 chunks have 1 text hashes"),
        ({"chunk_sizes": (3, 0), "text_digests": (bytes(32),) * 2}, "chunk 1 has 0 tokens"),
        ({"chunk_sizes": (4, -1), "text_digests": (bytes(32),) * 2}, "chunk 1 has -1 tokens"),
        ({"chunk_sizes": (33,), "tokens": (0,) * 33}, "chunk 0 has 33 tokens"),
        ({"tokens": (1, 2, 2**32)}, "32-bit"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(change: dict[str, Any], reason: str) -> None:
    parts: dict[str, Any] = {"tokens": (1, 2, 3), "chunk_sizes": (3,), "text_digests": (bytes(32),)}
    assert replay_commitment(start=bytes(32), **parts).tokens == 3
    with pytest.raises(EncodingInvalid, match=reason):
        replay_commitment(start=bytes(32), **(parts | change))
