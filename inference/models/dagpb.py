"""DAG-PB blocks and the UnixFS message inside: bytes to plain tuples and back, strictly.

Lives here: the two protobuf messages, nothing of what they mean together. Knows no file and no network.
Sources: https://ipld.io/specs/codecs/dag-pb/spec/ , https://specs.ipfs.tech/unixfs/ . Either order of a node's two
fields is read (IPIP-550 allows data first); torn, repeated, unknown and overlong fields are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inference.models.cid import BLOCK_LIMIT_BYTES, Cid, cid_from_binary
from market.errors import BlockInvalid, EncodingInvalid

BYTES, DIRECTORY, FILE, METADATA, SYMLINK, SHARD = range(6)
KINDS = ("raw bytes", "a directory", "a file", "metadata", "a symbolic link", "a sharded directory")

_MTIME_LIMIT_BYTES = 24
"""Seconds and nanoseconds take 16. A free length would be room for padding that nothing else bounds."""
_NUMBERS = (1, 3, 5, 6, 7)
"""Type, filesize, hashType, fanout, mode; 2 is the data, 4 the block sizes, 8 the mtime."""


class Link(NamedTuple):
    """`total_bytes` (Tsize) is what the sender says of all blocks below, never verified; None if it is not there."""

    cid: Cid
    name: bytes
    total_bytes: int | None


class UnixFs(NamedTuple):
    """`data` is (start, end) within the block; `size` is the file's bytes at and below this node."""

    kind: int
    data: tuple[int, int]
    size: int | None
    sizes: Sequence[int]
    hash_type: int | None
    fanout: int | None


class PbNode(NamedTuple):
    links: Sequence[Link]
    unixfs: UnixFs


def parse_block(block: bytes) -> PbNode:
    """Raises BlockInvalid for anything but one well-formed dag-pb node with a UnixFS message. 3 ms for 1,024 links."""
    if len(block) > BLOCK_LIMIT_BYTES:
        raise BlockInvalid(f"a block of {len(block)} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
    links: list[Link] = []
    unixfs: UnixFs | None = None
    at, end, closed = 0, len(block), False
    while at < end:
        tag = block[at]
        start, stop = _span(block, at + 1, end)
        if tag == 0x12 and not closed:
            links.append(_parse_link(block, start, stop))
        elif tag == 0x0A and unixfs is None:
            unixfs = _parse_unixfs(block, start, stop)
            closed = bool(links)
        else:
            raise BlockInvalid("a dag-pb node has a field that does not belong there.")
        at = stop
    if unixfs is None:
        raise BlockInvalid("a dag-pb node holds no UnixFS data.")
    return PbNode(links, unixfs)


def kind_of(block: bytes) -> int:
    """FILE, DIRECTORY, … of a block, without a look at its links. Raises BlockInvalid."""
    at, end = 0, len(block)
    while at < end:
        start, stop = _span(block, at + 1, end)
        if block[at] == 0x0A:
            return _parse_unixfs(block, start, stop).kind
        at = stop
    raise BlockInvalid("a dag-pb node holds no UnixFS data.")


def encode_link(cid: Cid, name: bytes, total_bytes: int) -> bytes:
    link = b"\x0a\x24" + cid.binary + b"\x12" + varint(len(name)) + name + b"\x18" + varint(total_bytes)
    return b"\x12" + varint(len(link)) + link


def encode_node(links: Sequence[bytes], unixfs: bytes) -> bytes:
    """Links first, then the data: what every importer writes by default."""
    return b"".join(links) + b"\x0a" + varint(len(unixfs)) + unixfs


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def total_bytes(block: bytes) -> int:
    """A node's Tsize: its own bytes and what its links say of theirs. Raises BlockInvalid."""
    return len(block) + sum(link.total_bytes or 0 for link in parse_block(block).links)


def _parse_link(block: bytes, at: int, end: int) -> Link:
    """Hash, then Name, then Tsize; the last two may be missing."""
    length = block[at + 1] if end - at >= 2 and block[at] == 0x0A else 0
    start, at = at + 2, at + 2 + length
    if length not in (34, 36):
        raise BlockInvalid("a link of a dag-pb node holds no CID of version 0 or 1 with sha2-256.")
    try:
        cid = cid_from_binary(block[start:at])
    except EncodingInvalid as error:
        raise BlockInvalid(f"a link of a dag-pb node: {error.message}") from None
    name, total = b"", None
    if at < end and block[at] == 0x12:
        start, at = _span(block, at + 1, end)
        name = block[start:at]
    if at < end and block[at] == 0x18:
        total, at = _varint(block, at + 1, end)
    if at != end:  # also a CID that reaches beyond its link
        raise BlockInvalid("a link of a dag-pb node has unknown fields, known ones out of order, or is torn.")
    return Link(cid, name, total)


def _parse_unixfs(block: bytes, at: int, end: int) -> UnixFs:
    numbers: dict[int, int] = {}
    sizes: list[int] = []
    data: tuple[int, int] | None = None
    dated = False
    while at < end:
        tag = block[at]
        if tag == 0x20:
            number, at = _varint(block, at + 1, end)
            sizes.append(number)
        elif tag == 0x12 and data is None:
            data = _span(block, at + 1, end)
            at = data[1]
        elif tag == 0x22 and not sizes:  # packed, as proto3 writers without the old schema do
            start, stop = _span(block, at + 1, end)
            while start < stop:
                number, start = _varint(block, start, stop)
                sizes.append(number)
            at = stop
        elif tag & 7 == 0 and tag >> 3 in _NUMBERS and tag >> 3 not in numbers:
            numbers[tag >> 3], at = _varint(block, at + 1, end)
        elif tag == 0x42 and not dated:
            start, at = _span(block, at + 1, end)
            dated = True
            if at - start > _MTIME_LIMIT_BYTES:
                raise BlockInvalid(f"a UnixFS time of {at - start} bytes is over the limit of {_MTIME_LIMIT_BYTES}.")
        else:
            raise BlockInvalid("a UnixFS message has an unknown field, or the same one twice.")
    kind = numbers.get(1, -1)
    if not 0 <= kind < len(KINDS):
        raise BlockInvalid("a UnixFS message is of no known type.")
    return UnixFs(kind, data or (0, 0), numbers.get(3), sizes, numbers.get(5), numbers.get(6))


def _span(block: bytes, at: int, end: int) -> tuple[int, int]:
    length, at = _varint(block, at, end)
    if length > end - at:
        raise BlockInvalid("a dag-pb block is torn.")
    return at, at + length


def _varint(block: bytes, at: int, end: int) -> tuple[int, int]:
    """A number below 2^63 and where it ends; the only form accepted is the shortest."""
    number = 0
    for shift in range(0, 63, 7):
        if at >= end:
            break
        byte = block[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                break  # a longer form of a shorter number: two encodings for one value
            return number, at
    raise BlockInvalid("a dag-pb block has a malformed number.")
