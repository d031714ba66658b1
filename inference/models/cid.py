"""A content identifier: CIDv1, base32, sha2-256, one of the three codecs that models are made of.

Lives here: parsing and printing. Knows nothing of blocks' insides, files or networks.
Source: https://github.com/multiformats/cid; 4 header bytes + 32 digest bytes, so no library is needed.
"""

from __future__ import annotations

import hashlib

from market.errors import BlockInvalid, EncodingInvalid
from market.values import cid_digest, cid_text, value

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
CODECS = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}

_TEXT_LENGTH = 59  # "b" + 58 base32 characters of 36 bytes


@value
class Cid:
    codec: int
    digest: bytes

    @property
    def binary(self) -> bytes:
        return bytes((1, self.codec, 0x12, 0x20)) + self.digest

    def __str__(self) -> str:
        return cid_text(self.binary)


def parse_cid(text: str) -> Cid:
    """Raises EncodingInvalid for anything but a lower-case base32 CIDv1 with sha2-256 and a codec of ours."""
    if len(text) != _TEXT_LENGTH or not text.isascii():
        raise EncodingInvalid(f"{text[:80]!r} is not a base32 CIDv1 with sha2-256.")
    digest = cid_digest(text)
    return cid_from_binary(_header(text) + digest)


def cid_from_binary(binary: bytes) -> Cid:
    """Raises EncodingInvalid; a CIDv0 (34 bytes, 0x1220…) is dag-pb by definition."""
    if len(binary) == 34 and binary[:2] == b"\x12\x20":
        return Cid(codec=DAG_PB, digest=bytes(binary[2:]))
    if len(binary) != 36 or binary[0] != 1 or binary[2:4] != b"\x12\x20" or binary[1] not in CODECS:
        raise EncodingInvalid("a CID is not version 1 with sha2-256 and codec raw, dag-pb or dag-cbor.")
    return Cid(codec=binary[1], digest=bytes(binary[4:]))


def cid_of_block(codec: int, data: bytes | bytearray | memoryview) -> Cid:
    return Cid(codec=codec, digest=hashlib.sha256(data).digest())


def check_block(cid: Cid, data: bytes | bytearray | memoryview) -> None:
    """Raises BlockInvalid unless `data` hashes to `cid`."""
    if hashlib.sha256(data).digest() != cid.digest:
        raise BlockInvalid(f"a block of {len(data)} bytes does not hash to {cid}.")


def _header(text: str) -> bytes:
    """The four bytes before the digest; base32 carries 5 bits a character, so eight characters hold five bytes."""
    bits = 0
    for character in text[1:9]:
        bits = bits << 5 | "abcdefghijklmnopqrstuvwxyz234567".index(character)
    return bits.to_bytes(5, "big")[:4]
