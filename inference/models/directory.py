"""UnixFS directories: names to CIDs, built as the reference importer builds them, read strictly.

Lives here: one directory node, and folders nested bottom up. A directory whose block would be
over 256 KiB is a tree of shards (shards.py). Pure; walking paths through several blocks is paths.py's.
Sources: https://specs.ipfs.tech/unixfs/#dag-pb-directory , IPIP-499 (`block-bytes`: the block's size decides).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from inference.models import dagpb
from inference.models.cid import DAG_PB, Cid, cid_of_block
from inference.models.names import check_name, name_of, split_path
from inference.models.shards import build_shards
from market.errors import BlockInvalid, EncodingInvalid
from market.values import value

SHARD_ABOVE_BYTES = 256 * 1024
ENTRIES_LIMIT = 50_000
"""In one directory. 2 MiB of links hold fewer; with shards it bounds what a hostile root can make us fetch."""


@value
class Directory:
    """`entries` are name -> CID, in the order of the block."""

    entries: Mapping[str, Cid]


@value
class DirectoryDag:
    """`nodes` are the blocks of the directory itself (of all directories, if nested), `total_bytes` its Tsize."""

    root: Cid
    nodes: Sequence[tuple[Cid, bytes]]
    total_bytes: int


def is_directory(block: bytes) -> bool:
    """Whether a dag-pb block is a directory, sharded or not. Raises BlockInvalid."""
    return dagpb.kind_of(block) in (dagpb.DIRECTORY, dagpb.SHARD)


def parse_directory(block: bytes) -> Directory:
    """One directory that is not sharded. Raises BlockInvalid, with a clear word for shards, links and files."""
    links, unixfs = dagpb.parse_block(block)
    if unixfs.kind != dagpb.DIRECTORY:
        raise BlockInvalid(f"a block is {dagpb.KINDS[unixfs.kind]} where a directory is expected.")
    if unixfs.data[0] != unixfs.data[1] or unixfs.size or unixfs.sizes or unixfs.hash_type or unixfs.fanout:
        raise BlockInvalid("a directory holds data of its own.")
    entries = {name_of(link.name): link.cid for link in links}
    if len(entries) != len(links):
        raise BlockInvalid("a directory has two entries of one name.")
    return Directory(entries=entries)


def build_directory(entries: Mapping[str, tuple[Cid, int]]) -> DirectoryDag:
    """`entries` are name -> (CID, bytes of all blocks below it: Tsize). Raises EncodingInvalid for a bad name.

    Sorted by the names' bytes. The unit of Tsize: `FileDag.total_bytes`, `DirectoryDag.total_bytes`,
    `dagpb.total_bytes(root block)`; the length of a raw block.
    """
    if len(entries) > ENTRIES_LIMIT:
        raise EncodingInvalid(
            f"a directory of {len(entries)} entries is over the limit of {ENTRIES_LIMIT}.",
            next_step="Spread the files over several folders.",
        )
    named = sorted((check_name(name), cid, total) for name, (cid, total) in entries.items())
    block = dagpb.encode_node([dagpb.encode_link(cid, name, total) for name, cid, total in named], b"\x08\x01")
    if len(block) > SHARD_ABOVE_BYTES:
        root, nodes, total = build_shards(named)
        return DirectoryDag(root=root, nodes=nodes, total_bytes=total)
    cid = cid_of_block(DAG_PB, block)
    return DirectoryDag(root=cid, nodes=[(cid, block)], total_bytes=len(block) + sum(total for *_, total in named))


def build_folder(files: Mapping[str, tuple[Cid, int]], folders: Iterable[str] = ()) -> DirectoryDag:
    """A tree of directories from relative paths ('a/b.gguf'); `folders` are kept even if nothing lies in them.

    `nodes` are those of all directories, lower ones first. Raises EncodingInvalid for a bad path, or one that is
    a file and a folder at once.
    """
    tree: dict[str, object] = {}
    for path in folders:
        _branch(tree, split_path(path), path)
    for path, entry in files.items():
        *above, name = split_path(path) or [""]
        place = _branch(tree, above, path)
        if place.setdefault(name, entry) is not entry:
            raise EncodingInvalid(f"{path!r} is a file and a folder at once.")
    nodes: list[tuple[Cid, bytes]] = []
    top = _build_tree(tree, nodes)
    return DirectoryDag(root=top.root, nodes=nodes, total_bytes=top.total_bytes)


def _branch(tree: dict[str, object], names: Sequence[str], path: str) -> dict[str, object]:
    for name in names:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise EncodingInvalid(f"{path!r} lies in something that is a file and a folder at once.")
        tree = below
    return tree


def _build_tree(tree: Mapping[str, object], nodes: list[tuple[Cid, bytes]]) -> DirectoryDag:
    entries: dict[str, tuple[Cid, int]] = {}
    for name, entry in tree.items():
        if isinstance(entry, dict):
            below = _build_tree(entry, nodes)
            entries[name] = below.root, below.total_bytes
        elif isinstance(entry, tuple):
            entries[name] = entry
    dag = build_directory(entries)
    nodes.extend(dag.nodes)
    return dag
