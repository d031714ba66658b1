"""UnixFS files: what a leaf is, and building the DAG of a file.

Lives here: profiles and balanced DAGs with raw leaves. Reads one open file when building; knows no store, no
network, and no DAG of others (walk.py).
Sources: https://specs.ipfs.tech/unixfs/ , IPIP-499 (profiles), https://ipld.io/specs/codecs/dag-pb/spec/ .
The CIDs equal the reference importer's (tests/vectors/unixfs.json).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from inference.models import dagpb
from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_PB, RAW, Cid, cid_of_block
from inference.models.dagpb import varint
from market.values import value

_SPAN_BYTES = 64 * 1024 * 1024


@value
class Profile:
    """How a file is cut: `leaf_bytes` a leaf, `width` links a node."""

    name: str
    leaf_bytes: int
    width: int

    def __post_init__(self) -> None:
        if not 0 < self.leaf_bytes <= BLOCK_LIMIT_BYTES or self.width < 2:
            raise ValueError(f"no file can be cut into leaves of {self.leaf_bytes} bytes, {self.width} a node.")


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

    @property
    def cid(self) -> Cid:
        """The CID of the block that travels: raw, or dag-pb if there is a protobuf around the bytes."""
        return Cid(codec=DAG_PB if self.head else RAW, digest=self.digest)

    def block(self, data: bytes) -> bytes:
        """The block that travels, of the leaf's bytes of the file."""
        return self.head + data + self.tail

    def cut(self, block: bytes) -> bytes:
        """The leaf's bytes of the file, of the block that travels; check them with `matches`."""
        return block[len(self.head) : len(block) - len(self.tail)]


@value
class FileDag:
    root: Cid
    size_bytes: int
    leaves: Sequence[Leaf]
    nodes: Sequence[tuple[Cid, bytes]]

    @property
    def total_bytes(self) -> int:
        """The bytes of all blocks (Tsize), what a directory says of this file."""
        return self.size_bytes + sum(len(block) for _, block in self.nodes)


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


def _encode_node(children: Sequence[tuple[Cid, int, int]]) -> bytes:
    """(cid, file bytes, total bytes) of each child -> a dag-pb file node."""
    unixfs = b"\x08\x02\x18" + varint(sum(child[1] for child in children))
    unixfs += b"".join(b"\x20" + varint(child[1]) for child in children)
    return dagpb.encode_node([dagpb.encode_link(cid, b"", total) for cid, _, total in children], unixfs)
