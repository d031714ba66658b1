"""A double for content sources, and the kit that every source runs: built-in or plugged in, HTTP or not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from market.errors import BlockInvalid, ContentUnavailable
from market.ports import ContentSource
from market.values import cid_digest

_PIECE_BYTES = 64 * 1024


class MemorySource:
    """Blocks by CID and files by root CID, from memory."""

    def __init__(self, name: str, *, blocks: Mapping[str, bytes], files: Mapping[str, bytes]) -> None:
        self.name = name
        self._blocks = blocks
        self._files = files

    async def block(self, cid: str) -> bytes:
        if cid not in self._blocks:
            raise ContentUnavailable(f"{self.name} holds no block {cid}.")
        return self._blocks[cid]

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        if root not in self._files:
            raise ContentUnavailable(f"{self.name} is not {root}.")
        wanted = self._files[root][start : start + length]
        for at in range(0, len(wanted), _PIECE_BYTES):
            yield wanted[at : at + _PIECE_BYTES]


async def check_source(
    source: ContentSource, *, root: str, content: bytes, absent: str, ranges: bool = True, blocks: bool = True
) -> None:
    """Run every rule of the port against a source that holds the file `root` (over 1 MiB) and nothing named `absent`.

    `ranges` and `blocks` say which of the two it can give. Raises AssertionError naming the rule.
    """
    assert source.name, "a source has a name"
    await _refuses_what_it_has_not(source, absent, ranges=ranges, blocks=blocks)
    if blocks:
        block = await source.block(root)
        assert hashlib.sha256(block).digest() == cid_digest(root), "a block hashes to its CID"
    else:
        await _unavailable(source, root)
    if not ranges:
        try:
            await _read(source, root, 0, 1)
        except ContentUnavailable:
            return
        raise AssertionError("a source without ranges says ContentUnavailable")
    size = len(content)
    for start, length in ((0, 1), (0, size), (size - 1, 1), (1_000_003, 70_001), (size // 2, size - size // 2)):
        assert await _read(source, root, start, length) == content[start : start + length], "a range is what was asked"
    early = await _read(source, root, size - 10, 100)
    assert early == content[-10:], "a range past the end ends early"
    await _ends_when_closed(source, root, size)


async def _refuses_what_it_has_not(source: ContentSource, absent: str, *, ranges: bool, blocks: bool) -> None:
    if blocks:
        await _unavailable(source, absent)
    if ranges:
        try:
            data = await _read(source, absent, 0, 10)
        except (ContentUnavailable, BlockInvalid):
            return
        assert not data, "a file that is not there has no bytes"


async def _unavailable(source: ContentSource, cid: str) -> None:
    try:
        await source.block(cid)
    except (ContentUnavailable, BlockInvalid):
        return
    raise AssertionError("what is not there is ContentUnavailable")


async def _ends_when_closed(source: ContentSource, root: str, size: int) -> None:
    async with aclosing(source.read_range(root, 0, size)) as pieces:
        first = await anext(pieces)
        assert first, "a piece is never empty"
    assert await _read(source, root, 0, 10), "a source goes on after a reader has left"


async def _read(source: ContentSource, root: str, start: int, length: int) -> bytes:
    data = bytearray()
    async with aclosing(source.read_range(root, start, length)) as pieces:
        async for piece in pieces:
            data += piece
            assert len(data) <= length, "a range is never longer than asked for"
    return bytes(data)
