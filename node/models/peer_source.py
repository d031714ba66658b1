"""One peer as a content source: over HTTP where we can reach it, over the mesh where we cannot.

Knows the two ways by their port only. The mesh costs about ten times the CPU of HTTP (noise and yamux in Python),
so it is the second choice, for good once HTTP has failed before its first byte.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from market.errors import BlockInvalid, ContentUnavailable
from market.ports import ContentSource


class PeerSource:
    """`ways` in the order in which to try them; at least one. A way that lies raises BlockInvalid: no other is tried,
    the peer itself is to blame."""

    def __init__(self, name: str, ways: Sequence[ContentSource]) -> None:
        self.name = name
        self._ways = list(ways)

    async def block(self, cid: str) -> bytes:
        while True:
            way = self._ways[0]
            try:
                return await way.block(cid)
            except BlockInvalid:
                raise
            except ContentUnavailable:
                if not self._give_up(way):
                    raise

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes | memoryview]:
        while True:
            way, begun = self._ways[0], False
            try:
                async with aclosing(way.read_range(root, start, length)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                    return
            except ContentUnavailable:
                if begun or not self._give_up(way):
                    raise

    def _give_up(self, way: ContentSource) -> bool:
        """Whether there is another way to try."""
        if way in self._ways and len(self._ways) > 1:
            self._ways.remove(way)
            return True
        return way is not self._ways[0]
