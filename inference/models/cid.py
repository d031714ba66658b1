"""A content identifier: CIDv1, base32, sha2-256, one of the three codecs that models are made of.

Lives here: parsing and printing. Knows nothing of blocks' insides, files or networks. CIDv0 (`Qm…`) is read and
becomes version 1, so that one block has one name in every table.
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

BLOCK_LIMIT_BYTES = 2 * 1024 * 1024
"""What bitswap and gateways agree to carry; a larger block cannot be verified before it is stored."""

_TEXT_LENGTH = 59  # "b" + 58 base32 characters of 36 bytes
_V0_LENGTH = 46  # 34 bytes that begin with 0x1220, in base58
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_NEXT_STEP = "Give a CIDv1 in base32 (b…, 59 characters) or a CIDv0 (Qm…); `ipfs cid base32` converts others."


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
    """Raises EncodingInvalid for anything but a lower-case base32 CIDv1 with sha2-256 and a codec of ours, or a CIDv0.

    `str` of the result is always version 1: text that came in as `Qm…` does not equal it.
    """
    if len(text) == _V0_LENGTH and text.startswith("Qm"):
        return _from_base58(text)
    if len(text) != _TEXT_LENGTH or not text.isascii() or text[0] != "b":
        raise EncodingInvalid(f"{text[:80]!r} is not a base32 CIDv1 with sha2-256.", next_step=_NEXT_STEP)
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


def _from_base58(text: str) -> Cid:
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise EncodingInvalid(f"{text!r} is not a CIDv0: {character!r} is no base58 character.")
        number = number * 58 + digit
    if number >> 256 != 0x1220:  # what starts with Qm may still be another number, and 46 characters hold 270 bits
        raise EncodingInvalid(f"{text!r} is not a CIDv0 with sha2-256.", next_step=_NEXT_STEP)
    return Cid(codec=DAG_PB, digest=(number & (1 << 256) - 1).to_bytes(32, "big"))
