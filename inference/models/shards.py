"""Directories too large for one block: a tree of shards, each name placed by bits of its hash (HAMT).

Lives here: the hash, one shard's layout, and building the tree. Pure; bringing shards one after another is paths.py's.
Sources: https://specs.ipfs.tech/unixfs/#dag-pb-hamtdirectory ; MurmurHash3 x64 (public domain, Austin Appleby).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inference.models import dagpb
from inference.models.cid import DAG_PB, Cid, cid_of_block
from inference.models.dagpb import varint
from inference.models.names import name_of
from market.errors import BlockInvalid, EncodingInvalid
from market.values import value

FANOUT = 256
_HASH_TYPE = 0x22
HASH_BITS = 64
_M64 = (1 << 64) - 1
_FANOUTS = (8, 16, 32, 64, 128, 256, 512, 1024)

Named = tuple[bytes, Cid, int]
"""Name, CID, Tsize."""


class Slot(NamedTuple):
    """One place of a shard: an entry, or with an empty name the shard below."""

    name: str
    cid: Cid


@value
class Shard:
    """`slots` by number; a shard takes `bits` bits of a name's hash."""

    bits: int
    slots: dict[int, Slot]


def slot_of(name: str, bits: int, depth: int) -> int:
    """Where a name belongs in a shard `depth` levels down (0: the root). Raises BlockInvalid below the hash's end."""
    left = HASH_BITS - bits * (depth + 1)
    if left < 0:
        raise BlockInvalid("a sharded directory is deeper than its hash has bits.")
    return murmur3(name.encode()) >> left & (1 << bits) - 1


def parse_shard(block: bytes) -> Shard:
    """One shard, strictly: its bit field is its links. Raises BlockInvalid."""
    links, unixfs = dagpb.parse_block(block)
    if unixfs.kind != dagpb.SHARD:
        raise BlockInvalid(f"a block is {dagpb.KINDS[unixfs.kind]} where a shard of a directory is expected.")
    if unixfs.hash_type != _HASH_TYPE or unixfs.fanout not in _FANOUTS or unixfs.size or unixfs.sizes:
        raise BlockInvalid("a shard of a directory has another hash than murmur3, or an unusual fanout.")
    width = len(f"{unixfs.fanout - 1:X}")
    slots: dict[int, Slot] = {}
    for link in links:
        slot = _slot_number(link.name[:width], width)
        if slot >= unixfs.fanout or slot in slots:
            raise BlockInvalid("a shard of a directory uses a slot twice, or one that it does not have.")
        slots[slot] = Slot(name_of(link.name[width:]) if len(link.name) > width else "", link.cid)
    start, end = unixfs.data
    if int.from_bytes(block[start:end], "big") != sum(1 << slot for slot in slots):
        raise BlockInvalid("a shard's bit field does not fit its links.")
    return Shard(bits=unixfs.fanout.bit_length() - 1, slots=slots)


def build_shards(entries: Sequence[Named]) -> tuple[Cid, list[tuple[Cid, bytes]], int]:
    """Checked names -> root, blocks, Tsize of a tree of shards, the reference importer's. Raises EncodingInvalid."""
    nodes: list[tuple[Cid, bytes]] = []
    root, total = _build([(murmur3(name), (name, cid, size)) for name, cid, size in entries], 0, nodes)
    return root, nodes, total


def _build(hashed: Sequence[tuple[int, Named]], depth: int, nodes: list[tuple[Cid, bytes]]) -> tuple[Cid, int]:
    left = HASH_BITS - 8 * (depth + 1)
    if left < 0:
        raise EncodingInvalid(f"{hashed[0][1][0]!r} and {hashed[1][1][0]!r} have the same hash in one directory.")
    groups: dict[int, list[tuple[int, Named]]] = {}
    for number, named in hashed:
        groups.setdefault(number >> left & (FANOUT - 1), []).append((number, named))
    links, below = [], 0
    for slot in sorted(groups):
        name, cid, total = groups[slot][0][1]
        if len(groups[slot]) > 1:
            name, (cid, total) = b"", _build(groups[slot], depth + 1, nodes)
        links.append(dagpb.encode_link(cid, b"%02X" % slot + name, total))
        below += total
    field = sum(1 << slot for slot in groups)
    bits = field.to_bytes((field.bit_length() + 7) // 8, "big")
    unixfs = b"\x08\x05\x12" + varint(len(bits)) + bits + b"\x28" + varint(_HASH_TYPE) + b"\x30" + varint(FANOUT)
    block = dagpb.encode_node(links, unixfs)
    cid = cid_of_block(DAG_PB, block)
    nodes.append((cid, block))
    return cid, len(block) + below


def _slot_number(prefix: bytes, width: int) -> int:
    try:
        number = int(prefix, 16)
    except ValueError:
        number = -1
    if number < 0 or prefix != b"%0*X" % (width, number):  # int() also takes "+1", " 1" and lower case
        raise BlockInvalid(f"a shard of a directory has a link {prefix!r} without a slot number.")
    return number


def murmur3(data: bytes) -> int:
    """The first 64 of MurmurHash3_x64_128's bits, seed 0."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = 0
    whole = len(data) & ~15
    for at in range(0, whole, 16):
        k1 = int.from_bytes(data[at : at + 8], "little")
        k2 = int.from_bytes(data[at + 8 : at + 16], "little")
        h1 ^= _rotate(k1 * c1 & _M64, 31) * c2 & _M64
        h1 = ((_rotate(h1, 27) + h2) * 5 + 0x52DCE729) & _M64
        h2 ^= _rotate(k2 * c2 & _M64, 33) * c1 & _M64
        h2 = ((_rotate(h2, 31) + h1) * 5 + 0x38495AB5) & _M64
    h2 ^= _rotate(int.from_bytes(data[whole + 8 :], "little") * c2 & _M64, 33) * c1 & _M64
    h1 ^= _rotate(int.from_bytes(data[whole : whole + 8], "little") * c1 & _M64, 31) * c2 & _M64
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = h1 + h2 & _M64
    h2 = h2 + h1 & _M64
    return _mix(h1) + _mix(h2) & _M64


def _rotate(number: int, by: int) -> int:
    return (number << by | number >> (64 - by)) & _M64


def _mix(number: int) -> int:
    number = (number ^ number >> 33) * 0xFF51AFD7ED558CCD & _M64
    number = (number ^ number >> 33) * 0xC4CEB9FE1A85EC53 & _M64
    return number ^ number >> 33
