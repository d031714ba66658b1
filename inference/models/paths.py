"""From a root and a path to a CID, and from a root to all that lies in it, one block at a time.

Lives here: the order in which directory blocks are needed, and limits. Every function is a conversation: it yields
the CID of a block it needs and is sent that block. So one set of rules serves the store, which has blocks at hand
(`read_with`), and a pull, which waits for them (`bring_with`). Knows no store and no network.

    read_with(resolve_path(root, "shards/a.gguf"), store_block)
    await bring_with(list_folder(root), fetch)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from inference.models import dagpb
from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_PB, Cid, check_block
from inference.models.directory import ENTRIES_LIMIT, parse_directory
from inference.models.names import PATH_DEPTH_LIMIT, check_name, split_path
from inference.models.shards import HASH_BITS, Shard, parse_shard, slot_of
from market.errors import BlockInvalid, ContentUnavailable

T = TypeVar("T")
Steps = Generator[Cid, bytes, T]
"""Yields the CID of a block, is sent the block, returns T."""

SHARDS_LIMIT = 20_000
"""50,000 entries need 12,000 shards of 256 slots."""


def read_with(steps: Steps[T], blocks: Callable[[Cid], bytes]) -> T:
    """Run `steps` with blocks at hand; each is hashed. Raises what `blocks` raises, and BlockInvalid."""
    try:
        cid = next(steps)
        while True:
            cid = steps.send(_checked(cid, blocks(cid)))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # the generator's own T


async def bring_with(steps: Steps[T], blocks: Callable[[Cid], Awaitable[bytes]]) -> T:
    """Run `steps` with blocks from elsewhere; each is hashed. Raises what `blocks` raises, and BlockInvalid."""
    try:
        cid = next(steps)
        while True:
            cid = steps.send(_checked(cid, await blocks(cid)))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # the generator's own T


def find_entry(directory: Cid, name: str) -> Steps[Cid]:
    """The CID under a name. Raises ContentUnavailable if there is none, EncodingInvalid, BlockInvalid."""
    check_name(name)
    block = yield _need_directory(directory)
    if dagpb.kind_of(block) != dagpb.SHARD:
        found = parse_directory(block).entries.get(name)
    else:
        found = yield from _find_in_shards(parse_shard(block), name)
    if found is None:
        raise ContentUnavailable(f"{directory} has no entry {name!r}.")
    return found


def resolve_path(root: Cid, path: str) -> Steps[Cid]:
    """The CID at `path` below `root`; '' is the root itself. Raises as `find_entry`."""
    for name in split_path(path):
        root = yield from find_entry(root, name)
    return root


def list_entries(directory: Cid) -> Steps[dict[str, Cid]]:
    """All names of one directory, sharded or not. Raises BlockInvalid."""
    block = yield _need_directory(directory)
    if dagpb.kind_of(block) != dagpb.SHARD:
        entries = dict(parse_directory(block).entries)
    else:
        entries = yield from _list_shards(parse_shard(block))
    if len(entries) > ENTRIES_LIMIT:
        raise BlockInvalid(f"a directory of {len(entries)} entries is over the limit of {ENTRIES_LIMIT}.")
    return entries


def list_folder(root: Cid) -> Steps[dict[str, Cid]]:
    """Every file below a directory: relative path -> root of the file. Raises BlockInvalid, also for a symbolic link.

    Needs the root block of every dag-pb entry to tell a file from a directory; they are small, but for a file of
    one dag-pb leaf. A directory that is linked many times counts each time.
    """
    files: dict[str, Cid] = {}
    waiting, seen = [("", root)], 0
    while waiting:
        above, directory = waiting.pop()
        entries = yield from list_entries(directory)
        seen += 1 + len(entries)
        if seen > ENTRIES_LIMIT:
            raise BlockInvalid(f"a folder of more than {ENTRIES_LIMIT} files and folders is refused.")
        for name, cid in entries.items():
            path = f"{above}/{name}" if above else name
            if cid.codec == DAG_PB and (yield from _is_folder(cid, path)):
                if path.count("/") + 1 >= PATH_DEPTH_LIMIT:
                    raise BlockInvalid(f"a folder deeper than {PATH_DEPTH_LIMIT} levels is refused.")
                waiting.append((path, cid))
            else:
                files[path] = cid
    return files


def _is_folder(cid: Cid, path: str) -> Steps[bool]:
    kind = dagpb.kind_of((yield cid))
    if kind == dagpb.SYMLINK:
        raise BlockInvalid(f"{path!r} is a symbolic link: they are refused, because they can point anywhere.")
    return kind in (dagpb.DIRECTORY, dagpb.SHARD)


def _find_in_shards(shard: Shard, name: str) -> Steps[Cid | None]:
    depth = 0
    while True:
        slot = shard.slots.get(slot_of(name, shard.bits, depth))
        if slot is None or slot.name:
            return slot.cid if slot is not None and slot.name == name else None
        shard = parse_shard((yield slot.cid))
        depth += 1


def _list_shards(root: Shard) -> Steps[dict[str, Cid]]:
    """Every entry must lie where a look-up by its name would find it, so that both readings agree.

    No shard below the root may be empty: so shards cost no more than the entries that they bring, which are counted.
    """
    entries: dict[str, Cid] = {}
    waiting: list[tuple[Shard, tuple[int, ...]]] = [(root, ())]
    shards = 1
    while waiting:
        shard, way = waiting.pop()
        if shard.bits != root.bits or (way and not shard.slots):
            raise BlockInvalid("the shards of a directory differ in their fanout, or one of them is empty.")
        for number, slot in shard.slots.items():
            here = (*way, number)
            if slot.name:
                if any(slot_of(slot.name, shard.bits, depth) != place for depth, place in enumerate(here)):
                    raise BlockInvalid(f"a sharded directory has {slot.name!r} in the wrong place.")
                entries[slot.name] = slot.cid
            else:
                shards += 1
                if shards > SHARDS_LIMIT or len(entries) > ENTRIES_LIMIT or len(here) * shard.bits > HASH_BITS:
                    raise BlockInvalid(f"a directory of over {SHARDS_LIMIT} shards, or shards too deep, is refused.")
                waiting.append((parse_shard((yield slot.cid)), here))
    return entries


def _need_directory(cid: Cid) -> Cid:
    if cid.codec != DAG_PB:
        raise ContentUnavailable(f"{cid} is a file, not a directory.")
    return cid


def _checked(cid: Cid, block: bytes) -> bytes:
    if len(block) > BLOCK_LIMIT_BYTES:
        raise BlockInvalid(f"a block of {len(block)} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
    check_block(cid, block)
    return block
