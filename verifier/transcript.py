"""A transcript: what one answer commits to while it streams, so that a receipt can be checked token by token.

Tokens gather in chunks of at most 32. A closed chunk becomes a leaf of a Merkle tree and a link of a hash chain:

    leaf bytes  u32 index ‖ u32 start ‖ u16 n ‖ n * u32 token id ‖ sha256(UTF-8 bytes of the chunk)     big-endian
    leaf_i      H(0x00 ‖ leaf bytes)                      root: RFC 6962 over the leaves
    chain_0     H("octo/transcript/1" ‖ task ‖ quote ‖ prompt ‖ sampling)
    chain_i     H(0x02 ‖ chain_(i-1) ‖ leaf_i)

An answer in pieces (`market.work`) has one chunk a piece: n is 1, the "token" is the units that the piece counts for,
start the units before it, the text the piece itself; chain_0 begins with "octo/pieces/1".

Buyer and seller each keep their own; both close the open chunk at every receipt. Knows tokens and bytes,
never a tokenizer, a signature or a network.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from market.errors import EncodingInvalid
from market.merkle import Peaks, leaf_hash
from market.record import Commitment

CHUNK_TOKENS = 32
_CONTEXT = b"octo/transcript/1"
_PIECES_CONTEXT = b"octo/pieces/1"


def chain_start(*, task: bytes, quote: bytes, prompt: bytes, sampling: bytes, pieces: bool = False) -> bytes:
    """chain_0: the task and the digests (32 bytes each) that every later head stands on."""
    for name, part in (("task", task), ("quote", quote), ("prompt", prompt), ("sampling", sampling)):
        if len(part) != 32:  # Parts of free length could be cut in two ways and still hash alike.
            raise EncodingInvalid(f"a transcript's {name} has 32 bytes, not {len(part)}.")
    return hashlib.sha256((_PIECES_CONTEXT if pieces else _CONTEXT) + task + quote + prompt + sampling).digest()


def chunk_leaf(*, index: int, start: int, tokens: Sequence[int], text_digest: bytes) -> bytes:
    """The leaf bytes of one chunk. `start` is the absolute position of its first token."""
    try:
        return struct.pack(f">IIH{len(tokens)}I", index, start, len(tokens), *tokens) + text_digest
    except struct.error:
        raise EncodingInvalid("a token id in the transcript is not a 32-bit number.") from None


def chain_link(head: bytes, leaf: bytes) -> bytes:
    """The chain head after a chunk with these leaf bytes."""
    return hashlib.sha256(b"\2" + head + leaf_hash(leaf)).digest()


class StreamTranscript:
    """Implements `market.record.Transcript`. Linear in tokens: 8 bytes a token, about 150 bytes a chunk.

    `tokens` are all that were added; `chunk_sizes` (tokens), `text_sizes` (UTF-8 bytes) and `text_digests`
    (sha-256) describe the closed chunks, in order. The lists grow only and belong to this transcript: read them.
    """

    def __init__(self, *, task: bytes, quote: bytes, prompt: bytes, sampling: bytes, pieces: bool = False) -> None:
        self.pieces = pieces
        self.tokens: list[int] = []
        self.chunk_sizes: list[int] = []
        self.text_sizes: list[int] = []
        self.text_digests: list[bytes] = []
        self._head = chain_start(task=task, quote=quote, prompt=prompt, sampling=sampling, pieces=pieces)
        self._tree = Peaks()
        self._closed = 0
        self._units = 0
        self._text = bytearray()

    def add(self, token: int, text: bytes) -> bytes | None:
        """Append a token and the bytes it stands for; the new chain head if a chunk closed by being full."""
        if not 0 <= token < 1 << 32:
            raise EncodingInvalid(f"token id {token} is not a 32-bit number.")
        self.tokens.append(token)
        self._text += text
        if not self.pieces and len(self.tokens) - self._closed < CHUNK_TOKENS:
            return None
        self._close()
        return self._head

    def close_chunk(self) -> Commitment:
        """Close the open chunk, if it holds anything, and commit to all tokens so far."""
        if len(self.tokens) > self._closed:
            self._close()
        return Commitment(tokens=self._units, chunks=len(self.chunk_sizes), head=self._head, root=self._tree.root())

    def _close(self) -> None:
        tokens = self.tokens[self._closed :]
        text_digest = hashlib.sha256(self._text).digest()
        leaf = chunk_leaf(index=len(self.chunk_sizes), start=self._units, tokens=tokens, text_digest=text_digest)
        self._head = chain_link(self._head, leaf)
        self._tree = self._tree.append(leaf)
        self.chunk_sizes.append(len(tokens))
        self.text_sizes.append(len(self._text))
        self.text_digests.append(text_digest)
        self._closed += len(tokens)
        self._units += tokens[0] if self.pieces else len(tokens)
        self._text.clear()


def replay_commitment(
    *,
    start: bytes,
    tokens: Sequence[int],
    chunk_sizes: Sequence[int],
    text_digests: Sequence[bytes],
    pieces: bool = False,
) -> Commitment:
    """What a transcript that began at `start` (chain_0) and was recorded in these parts commits to.

    Raises EncodingInvalid if the parts do not fit one another.
    """
    if len(chunk_sizes) != len(text_digests):
        raise EncodingInvalid(f"{len(chunk_sizes)} chunks have {len(text_digests)} text hashes.")
    if sum(chunk_sizes) != len(tokens):
        raise EncodingInvalid(f"the chunks hold {sum(chunk_sizes)} tokens, {len(tokens)} are listed.")
    head, tree, at, units = start, Peaks(), 0, 0
    for index, (size, text_digest) in enumerate(zip(chunk_sizes, text_digests, strict=True)):
        most = 1 if pieces else CHUNK_TOKENS
        if not 1 <= size <= most:
            raise EncodingInvalid(f"chunk {index} has {size} tokens; a chunk has 1 to {most}.")
        leaf = chunk_leaf(index=index, start=units, tokens=tokens[at : at + size], text_digest=text_digest)
        head, tree, at = chain_link(head, leaf), tree.append(leaf), at + size
        units += tokens[at - 1] if pieces else size
    return Commitment(tokens=units, chunks=len(chunk_sizes), head=head, root=tree.root())
