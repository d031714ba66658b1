"""UnixFS files: building the DAG of a file, and walking somebody else's without trusting it.

Lives here: balanced DAGs with raw leaves, the strict dag-pb reader and its limits. Reads one open
file when building; knows no store and no network.
Sources: https://specs.ipfs.tech/unixfs/ , IPIP-499 (profiles), https://ipld.io/specs/codecs/dag-pb/spec/ .
The CIDs equal the reference importer's (tests/vectors/unixfs.json).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from inference.models.cid import DAG_PB, RAW, Cid, check_block, cid_from_binary, cid_of_block
from market.errors import BlockInvalid, EncodingInvalid
from market.values import value

BLOCK_LIMIT_BYTES = 2 * 1024 * 1024
"""What bitswap and gateways agree to carry; a larger block cannot be verified before it is stored."""
DEPTH_LIMIT = 8
LEAVES_LIMIT = 1 << 20
"""1 TiB in 1 MiB leaves, 256 GiB in 256 KiB ones. Bounds the memory that a hostile root can make us spend."""

_FILE = 2
_SPAN_BYTES = 64 * 1024 * 1024


@value
class Profile:
    """How a file is cut: `leaf_bytes` a leaf, `width` links a node."""

    name: str
    leaf_bytes: int
    width: int


PROFILE_2025 = Profile(name="unixfs-v1-2025", leaf_bytes=1024 * 1024, width=1024)
PROFILE_CLASSIC = Profile(name="raw-256k-174", leaf_bytes=256 * 1024, width=174)
"""What `ipfs add --cid-version=1 --raw-leaves` gave before IPIP-499."""
PROFILES = {profile.name: profile for profile in (PROFILE_2025, PROFILE_CLASSIC)}


class Leaf(NamedTuple):
    """`length` bytes at `offset` of the file, between `head` and `tail`, hash to `digest`.

    A raw leaf has neither; in a dag-pb leaf (`ipfs add` without --raw-leaves) they are the protobuf around the bytes,
    so that its block can be made again from the plain file. A tuple: a 40 GB model has 40,000 of them.
    """

    offset: int
    length: int
    digest: bytes
    head: bytes = b""
    tail: bytes = b""

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        if len(data) != self.length:
            return False
        if not self.head:
            return hashlib.sha256(data).digest() == self.digest
        digest = hashlib.sha256(self.head)
        digest.update(data)
        digest.update(self.tail)
        return digest.digest() == self.digest

    def block(self, data: bytes) -> bytes:
        """The block that travels, of the leaf's bytes of the file."""
        return self.head + data + self.tail


@value
class FileDag:
    root: Cid
    size_bytes: int
    leaves: Sequence[Leaf]
    nodes: Sequence[tuple[Cid, bytes]]


@value
class FileNode:
    """One parsed inner node: `links` are (cid, bytes of the file below it), in file order."""

    size_bytes: int
    links: tuple[tuple[Cid, int], ...]


def build_file(
    path: Path, profile: Profile = PROFILE_2025, *, threads: int = 2, progress: Callable[[int], None] | None = None
) -> FileDag:
    """The DAG of a file; hashing uses `threads` (hashlib lets go of the GIL). `progress` hears bytes done so far.

    Blocking: 1.9 GB/s with two threads here. Raises OSError, and EOFError for a file that shrinks meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        spans = range(0, size, _SPAN_BYTES)
        leaves: list[Leaf] = []
        with ThreadPoolExecutor(max(1, threads), "octo-hash") as pool:
            for part in pool.map(lambda at: _hash_span(descriptor, at, size, profile.leaf_bytes), spans):
                leaves.extend(part)
                if progress:
                    progress(leaves[-1].offset + leaves[-1].length)
    finally:
        os.close(descriptor)
    return build_tree(leaves or [Leaf(0, 0, hashlib.sha256(b"").digest())], profile)


def _hash_span(descriptor: int, start: int, size: int, leaf_bytes: int) -> list[Leaf]:
    leaves, end = [], min(start + _SPAN_BYTES, size)
    whole = memoryview(bytearray(leaf_bytes))
    for offset in range(start, end, leaf_bytes):
        wanted = min(leaf_bytes, end - offset)
        got = 0
        while got < wanted:
            read = os.preadv(descriptor, [whole[got:wanted]], offset + got)
            if not read:
                raise EOFError("the file shrank while it was being read.")
            got += read
        leaves.append(Leaf(offset, wanted, hashlib.sha256(whole[:wanted]).digest()))
    return leaves


def build_tree(leaves: Sequence[Leaf], profile: Profile = PROFILE_2025) -> FileDag:
    """Balanced tree over at least one leaf. A lone last child is wrapped like any other, never lifted."""
    level = [(Cid(codec=RAW, digest=leaf.digest), leaf.length, leaf.length) for leaf in leaves]
    size = leaves[-1].offset + leaves[-1].length
    nodes: list[tuple[Cid, bytes]] = []
    while len(level) > 1:
        above = []
        for start in range(0, len(level), profile.width):
            children = level[start : start + profile.width]
            block = _encode_node(children)
            cid = cid_of_block(DAG_PB, block)
            nodes.append((cid, block))
            above.append((cid, sum(c[1] for c in children), len(block) + sum(c[2] for c in children)))
        level = above
    return FileDag(root=level[0][0], size_bytes=size, leaves=leaves, nodes=nodes)


def parse_node(block: bytes) -> FileNode:
    """One inner node of a file, strictly: known fields only, in order, sizes that sum. Raises BlockInvalid."""
    if len(block) > BLOCK_LIMIT_BYTES:
        raise BlockInvalid(f"a block of {len(block)} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
    cids: list[Cid] = []
    data: bytes | None = None
    for field, item in _fields(block):
        if field == 2 and isinstance(item, bytes) and data is None:
            cids.append(_link_cid(item))
        elif field == 1 and isinstance(item, bytes) and data is None:
            data = item
        else:
            raise BlockInvalid("a dag-pb node has a field that does not belong there.")
    sizes, total = _parse_unixfs(data or b"")
    if not cids or len(sizes) != len(cids):
        raise BlockInvalid(
            f"a file node has {len(cids)} links and {len(sizes)} sizes: "
            "only files with raw leaves (--raw-leaves) can be fetched."
        )
    if sum(sizes) != total or 0 in sizes:
        raise BlockInvalid(f"a file node says {total} bytes, its links sum to {sum(sizes)}.")
    return FileNode(size_bytes=total, links=tuple(zip(cids, sizes, strict=True)))


class TreeWalk:
    """The leaf table of a DAG, grown from verified inner nodes: `wanted()` says which blocks to bring next.

    Sizes count down from the root and no child may be empty, so the table cannot outgrow what the root declares.
    """

    def __init__(self, root: Cid, *, size_bytes: int | None = None, limit_bytes: int = 1 << 42) -> None:
        if root.codec != DAG_PB:
            raise BlockInvalid(f"{root} is not the root of a tree.")
        self.size_bytes = size_bytes
        self.nodes: dict[Cid, bytes] = {}
        self._limit_bytes = limit_bytes
        self._pending: dict[Cid, list[tuple[int, int | None, int]]] = {root: [(0, size_bytes, 1)]}
        self._leaves: list[Leaf] = []
        self._positions = 1

    def wanted(self) -> list[Cid]:
        return list(self._pending)

    def give(self, cid: Cid, block: bytes) -> None:
        """Raises BlockInvalid for a block that does not hash to `cid` or breaks the tree's rules."""
        if len(block) > BLOCK_LIMIT_BYTES:
            raise BlockInvalid(f"a block of {len(block)} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
        check_block(cid, block)
        node = parse_node(block)
        self.nodes[cid] = block
        for offset, size, depth in self._pending.pop(cid):
            if size is not None and size != node.size_bytes:
                raise BlockInvalid(f"{cid} holds {node.size_bytes} bytes where {size} were announced.")
            if size is None:
                self.size_bytes = node.size_bytes
                if node.size_bytes > self._limit_bytes:
                    raise BlockInvalid(f"a file of {node.size_bytes} bytes is over the limit of {self._limit_bytes}.")
            self._place(node, offset, depth)

    def leaves(self) -> list[Leaf]:
        """All leaves in file order; call it when nothing is wanted any more."""
        return sorted(self._leaves)

    def _place(self, node: FileNode, offset: int, depth: int) -> None:
        self._positions += len(node.links)
        if self._positions > LEAVES_LIMIT + LEAVES_LIMIT // 64:
            raise BlockInvalid(f"a DAG of more than {LEAVES_LIMIT} blocks is refused.")
        for cid, size in node.links:
            if cid.codec == RAW:
                if size > BLOCK_LIMIT_BYTES:
                    raise BlockInvalid(f"a leaf of {size} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
                self._leaves.append(Leaf(offset, size, cid.digest))
            elif cid.codec == DAG_PB and depth < DEPTH_LIMIT:
                known = self.nodes.get(cid)
                if known is None:
                    self._pending.setdefault(cid, []).append((offset, size, depth + 1))
                else:
                    child = parse_node(known)
                    if child.size_bytes != size:
                        raise BlockInvalid(f"{cid} holds {child.size_bytes} bytes where {size} were announced.")
                    self._place(child, offset, depth + 1)
            else:
                raise BlockInvalid(f"{cid} is deeper than {DEPTH_LIMIT} levels, or not a part of a file.")
            offset += size


# ---- protobuf ------------------------------------------------------------------------------------


def _encode_node(children: Sequence[tuple[Cid, int, int]]) -> bytes:
    """(cid, file bytes, total bytes) of each child -> a dag-pb file node: links first, then data."""
    inner = b"\x08\x02\x18" + _varint(sum(child[1] for child in children))
    inner += b"".join(b"\x20" + _varint(child[1]) for child in children)
    links = bytearray()
    for cid, _, total in children:
        link = b"\x0a\x24" + cid.binary + b"\x12\x00\x18" + _varint(total)
        links += b"\x12" + _varint(len(link)) + link
    return bytes(links) + b"\x0a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, number or bytes) in order; raises BlockInvalid for torn or unusual protobuf."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, at = _read_varint(data, at)
        if tag & 7 == 0:
            yield tag >> 3, number
        elif tag & 7 == 2 and number <= len(data) - at:
            yield tag >> 3, data[at : at + number]
            at += number
        else:
            raise BlockInvalid("a dag-pb block is torn.")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                break  # a longer form of a shorter number: two encodings for one value
            return number, at
    raise BlockInvalid("a dag-pb block has a malformed number.")


def _link_cid(link: bytes) -> Cid:
    """The CID of a PBLink: Hash, then an empty Name, then Tsize; a file's links carry no names."""
    fields = list(_fields(link))
    order = [field for field, _ in fields]
    if order not in ([1, 2, 3], [1, 3], [1, 2], [1]):
        raise BlockInvalid("a dag-pb link has its fields out of order.")
    binary, named = fields[0][1], dict(fields).get(2, b"")
    if not isinstance(binary, bytes) or named != b"" or isinstance(dict(fields).get(3, 0), bytes):
        raise BlockInvalid("a link of a file has a name, or a field of the wrong kind.")
    try:
        return cid_from_binary(binary)
    except EncodingInvalid as error:
        raise BlockInvalid(str(error)) from None


def _parse_unixfs(data: bytes) -> tuple[list[int], int]:
    """(block sizes, file size). Mode and mtime (UnixFS 1.5) are allowed and ignored, inline data is not."""
    seen: dict[int, int | bytes] = {}
    sizes: list[int] = []
    for field, item in _fields(data):
        if field == 4 and isinstance(item, int):
            sizes.append(item)
        elif field in (1, 2, 3, 7, 8) and field not in seen:
            seen[field] = item
        else:
            raise BlockInvalid("a UnixFS node has a field that a file has no use for.")
    total = seen.get(3)
    if seen.get(1) != _FILE or not isinstance(total, int) or seen.get(2, b"") != b"":
        raise BlockInvalid("a node is not a UnixFS file with all of its bytes in raw leaves.")
    return sizes, total
