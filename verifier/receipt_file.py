"""A receipt as a file: everything that is needed to check it offline, in one piece of canonical DAG-CBOR.

What `GET /api/v1/receipts/{cid}` serves and `octo-node receipts verify FILE` reads. It holds the answer's token
ids and hashes of its text, never the prompt. Lives here: the format and its limits; `verifier.examination` judges it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from market.errors import EncodingInvalid
from market.identity import SignedBinding
from market.quote import SignedQuote
from market.receipt import SignedReceipt
from market.record import ReceiptRecord
from market.task import MAX_TOKENS_LIMIT
from market.values import decode, value
from market.values import encode as encode_value

FILE_LIMIT_BYTES = 4 * 1024 * 1024
"""The longest answer (131,072 tokens in full chunks) takes 0.9 MB; the rest is room for short chunks."""

_CONTEXT = b"octo/receipt-file/1"
Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_ChunkSize = Annotated[int, Field(ge=1, le=32)]
_TextSize = Annotated[int, Field(ge=0, lt=2**31)]


@value
class ReceiptFile:
    """`tokens` are the generated token ids; `chunk_sizes` (tokens), `text_sizes` (UTF-8 bytes) and
    `text_digests` describe the transcript's chunks in order; `salt` opens the prompt's hash to whoever
    knows the prompt. With `pieces` (`market.work`), `tokens` are the units of each
    piece, and texts are the pieces. `check` is a checksum over the rest: against damage, not against a forger."""

    format: Literal["octo.receipt-file/1"] = "octo.receipt-file/1"
    receipt: SignedReceipt
    quote: SignedQuote
    binding: SignedBinding
    tokens: Annotated[tuple[_TokenId, ...], Field(max_length=MAX_TOKENS_LIMIT)]
    chunk_sizes: Annotated[tuple[_ChunkSize, ...], Field(max_length=MAX_TOKENS_LIMIT)]
    text_sizes: Annotated[tuple[_TextSize, ...], Field(max_length=MAX_TOKENS_LIMIT)]
    text_digests: Annotated[tuple[Digest, ...], Field(max_length=MAX_TOKENS_LIMIT)]
    salt: Digest
    pieces: bool = False
    check: Digest = bytes(32)

    def checksum(self) -> bytes:
        """What `check` should be."""
        return hashlib.sha256(_CONTEXT + encode_value(ReceiptFile, replace(self, check=bytes(32)))).digest()

    def sealed(self) -> ReceiptFile:
        """The same file with its checksum filled in."""
        return replace(self, check=self.checksum())


def from_record(record: ReceiptRecord) -> ReceiptFile:
    """The file of a receipt that this node holds. `record.binding` is the encoded SignedBinding of the provider."""
    return ReceiptFile(
        receipt=record.receipt,
        quote=record.quote,
        binding=decode(SignedBinding, record.binding),
        tokens=record.tokens,
        chunk_sizes=record.chunk_sizes,
        text_sizes=record.text_sizes,
        text_digests=record.text_digests,
        salt=record.salt,
        pieces=record.pieces,
    ).sealed()


def encode(file: ReceiptFile) -> bytes:
    """The file's bytes; raises EncodingInvalid if they would be more than `parse` takes."""
    data = encode_value(ReceiptFile, file)
    if len(data) > FILE_LIMIT_BYTES:
        raise EncodingInvalid(f"the receipt file has {len(data)} bytes, over the limit of {FILE_LIMIT_BYTES}.")
    return data


def parse(data: bytes) -> ReceiptFile:
    """The file in `data`; raises EncodingInvalid for anything that is not one, before anything in it is believed."""
    return decode(ReceiptFile, data, limit_bytes=FILE_LIMIT_BYTES)
