"""An answer that a seller keeps, to tell it again to whoever may hear it."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from market.caching import CacheKey, Digest, Original
from market.message import Logprobs
from market.task import MAX_TOKENS_LIMIT
from market.values import decode, encode, value

KEPT_LIMIT_BYTES = 16 * 1024 * 1024
"""2,048 embeddings of 1,024 dimensions are 8 MB; the images of one request may be more, and are not kept then."""

_Numbers = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=MAX_TOKENS_LIMIT)]


@value
class Kept:
    """`owner` asked for it first. `content` is the digest of the request (`market.caching`). `numbers` are token ids,
    or the units of each of `pieces`; `logprobs` one for each token, if they were asked for."""

    key: CacheKey
    owner: Annotated[str, Field(max_length=64)]
    content: Digest
    original: Original
    numbers: _Numbers
    pieces: Annotated[tuple[bytes, ...], Field(max_length=MAX_TOKENS_LIMIT)] = ()
    logprobs: Annotated[tuple[Logprobs, ...], Field(max_length=MAX_TOKENS_LIMIT)] = ()
    finish: Literal["stop", "length"]
    kept_ms: Annotated[int, Field(ge=0, lt=2**53)]

    def place(self) -> bytes:
        return place_of(self.key, self.owner)


def place_of(key: CacheKey, asker: str) -> bytes:
    """Where an answer is looked for: an own key works for the peer that used it first, and for no other."""
    whose = hashlib.sha256(b"" if key.shared else asker.encode()).digest()
    return hashlib.sha256(b"octo/cache/place/1" + whose + key.key).digest()


def encode_kept(kept: Kept) -> bytes:
    return encode(Kept, kept)


def decode_kept(data: bytes) -> Kept:
    """Raises EncodingInvalid."""
    return decode(Kept, data, limit_bytes=KEPT_LIMIT_BYTES)
