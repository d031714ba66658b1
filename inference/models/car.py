"""CAR v1: blocks one after the other, each behind its CID. Only writing; bytes in, bytes out.

Source: https://ipld.io/specs/transport/car/carv1/ . Sections are framed by varints; the header is DAG-CBOR.
"""

from __future__ import annotations

from inference.models.cid import Cid
from inference.models.dagpb import varint

_HEADER_START = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00"
"""A map of two, "roots", a list of one, tag 42, 37 bytes, the identity multibase; what follows never varies either."""
_HEADER_END = b"\x67version\x01"


def car_header(root: Cid) -> bytes:
    header = _HEADER_START + root.binary + _HEADER_END
    return varint(len(header)) + header


def car_section(cid: Cid, block: bytes) -> bytes:
    return varint(len(cid.binary) + len(block)) + cid.binary + block
