"""A receipt's record: the receipt with all that is needed to check it later, offline.

Also the Transcript's face: the hash chain and Merkle tree that a receipt commits to grow in `verifier`.
"""

from __future__ import annotations

from typing import Literal, Protocol

from market.quote import SignedQuote
from market.receipt import SignedReceipt
from market.values import value


@value
class Commitment:
    """What a transcript commits to so far. `tokens` are units where the answer comes in pieces. `root` is RFC 6962
    over the chunks; of none, it is sha-256 of nothing."""

    tokens: int
    chunks: int
    head: bytes
    root: bytes


def unit_of(pieces: bool) -> Literal["tokens", "units"]:
    """What a receipt's counts are of: a text's tokens; of an answer in pieces, units of its kind of work, which no
    receipt names (`market.work` says what they are of each)."""
    return "units" if pieces else "tokens"


class Transcript(Protocol):
    """The hash chain and Merkle tree over the chunks of one answer; see `verifier.transcript`.

    The lists grow only: a Commitment's counts say how much of each it covers. With `pieces`, each piece is a chunk:
    its "token" is the number of units that it counts for, its "text" the piece.
    """

    pieces: bool

    tokens: list[int]
    chunk_sizes: list[int]
    text_sizes: list[int]
    text_digests: list[bytes]

    def add(self, token: int, text: bytes) -> bytes | None:
        """Append a token; the new chain head if a chunk closed with it."""

    def close_chunk(self) -> Commitment:
        """Close the open chunk, if it holds anything, and commit. Both sides do this at each receipt."""


@value
class ReceiptRecord:
    """`tokens` are the generated token ids so far; `chunk_sizes` says how many each chunk holds,
    `text_sizes` and `text_digests` how many UTF-8 bytes, and their sha-256; `binding` is an encoded
    SignedBinding; `salt` opens the prompt's hash to whoever knows the prompt. With `pieces`, `tokens` are the units
    of each piece, and texts are the pieces."""

    role: Literal["client", "provider"]
    receipt: SignedReceipt
    quote: SignedQuote
    binding: bytes
    tokens: tuple[int, ...]
    chunk_sizes: tuple[int, ...]
    text_sizes: tuple[int, ...]
    text_digests: tuple[bytes, ...]
    salt: bytes
    pieces: bool = False


def record_of(
    role: Literal["client", "provider"],
    receipt: SignedReceipt,
    commitment: Commitment,
    *,
    quote: SignedQuote,
    binding: bytes,
    transcript: Transcript,
    salt: bytes,
) -> ReceiptRecord:
    """The record of a receipt over the part of `transcript` that `commitment` covers."""
    return ReceiptRecord(
        role=role,
        receipt=receipt,
        quote=quote,
        binding=binding,
        tokens=tuple(transcript.tokens[: commitment.chunks if transcript.pieces else commitment.tokens]),
        chunk_sizes=tuple(transcript.chunk_sizes[: commitment.chunks]),
        text_sizes=tuple(transcript.text_sizes[: commitment.chunks]),
        text_digests=tuple(transcript.text_digests[: commitment.chunks]),
        salt=salt,
        pieces=transcript.pieces,
    )
