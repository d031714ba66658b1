"""Serves `/octo/blocks` to peers, trio side. What the answers are is `p2p.shelving`'s business.

A stranger may open streams at will, so every stream is counted before a byte of it is read: over the limits
the answer is BUSY, far over them there is none. Every wait has an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog
import trio
from libp2p.abc import INetStream

from market.errors import EncodingInvalid
from market.identity import PeerId
from p2p.blocks import (
    AHEAD_BYTES,
    BLOCKS_PROTOCOL,
    BUSY,
    CREDIT_BYTES,
    HEAD_LIMIT_BYTES,
    INVALID,
    MORE,
    OK,
    Answer,
    Ask,
    answer_frame,
    ask_of,
    piece_frame,
)
from p2p.bridge import Bridge, ToTrio
from p2p.frames import read_frame, read_some
from p2p.host import Host
from p2p.limits import NetworkLimits
from p2p.shelving import QUEUE_BYTES, Shelving

# One yamux frame (12 bytes of header) in one noise message (at most 65,519 bytes of plain text). A frame of
# 64 KiB, libp2p's own cut, makes a second noise message of 17 bytes.
_WRITE_BYTES = 65_507
_HANG_UP_S = 5.0

_log = structlog.get_logger()


class BlockServer:
    def __init__(self, bridge: Bridge, host: Host, shelving: Shelving, limits: NetworkLimits) -> None:
        self._bridge = bridge
        self._shelving = shelving
        self._limits = limits
        self._open: Counter[PeerId] = Counter()
        self._seated: Counter[PeerId] = Counter()
        host.handle(BLOCKS_PROTOCOL, self._serve)

    def is_serving(self, peer: PeerId) -> bool:
        return self._seated[peer] > 0

    async def _serve(self, peer: PeerId, stream: INetStream) -> None:
        limits = self._limits
        with _counted(self._open, peer):
            if self._seated[peer] >= limits.content_streams_per_peer or self._seated.total() >= limits.content_streams:
                # Whoever is refused takes no seat: a flood of one peer leaves room for the others.
                refused = self._open.total() - self._seated.total()
                if self._open[peer] <= 4 * limits.content_streams_per_peer and refused <= 2 * limits.content_streams:
                    await _refuse(stream, BUSY)
                return
            with _counted(self._seated, peer):
                try:
                    with trio.fail_after(limits.content_wait_s):
                        ask = ask_of(await read_frame(stream, HEAD_LIMIT_BYTES))
                except EncodingInvalid as error:
                    _log.info("p2p.peer_broke_protocol", peer=peer, reason=error.message)
                    await _refuse(stream, INVALID)
                    return
                await _Serving(stream, limits).run(self._bridge, self._shelving, peer, ask)


@contextmanager
def _counted(counter: Counter[PeerId], peer: PeerId) -> Iterator[None]:
    counter[peer] += 1
    try:
        yield
    finally:
        counter[peer] -= 1
        if not counter[peer]:
            del counter[peer]


class _Serving:
    """One answer under way. Runs until it is told, the peer hangs up, or somebody waited for too long."""

    def __init__(self, stream: INetStream, limits: NetworkLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._sent = 0
        self._may_send = AHEAD_BYTES
        self._news = trio.Event()

    async def run(self, bridge: Bridge, shelving: Shelving, peer: PeerId, ask: Ask) -> None:
        items: ToTrio[Answer | bytes] = ToTrio(bridge, limit=QUEUE_BYTES)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, nursery.cancel_scope)
                nursery.start_soon(bridge.in_asyncio, shelving.fill, peer, ask, items)
                if await self._tell(items):
                    await _end(self._stream)
                    await trio.sleep(_HANG_UP_S)  # `_hear` ends it sooner: a reset of ours would overtake the end
                nursery.cancel_scope.cancel()
        finally:
            items.close()

    async def _tell(self, items: ToTrio[Answer | bytes]) -> bool:
        """Send the answer; False if it broke off, which the peer learns by the reset."""
        has_begun = False
        while taken := await items.take_all():
            for item in taken:
                if isinstance(item, bytes):
                    await self._credit_for(len(item))
                    self._sent += len(item)
                    await self._write(piece_frame(item))
                elif not has_begun:
                    await self._write(answer_frame(item))
                    has_begun = True
                    if item.code != OK:
                        return True
                else:
                    if item.code == OK:
                        await self._write(piece_frame(b""))
                    return item.code == OK
        return False

    async def _credit_for(self, size: int) -> None:
        with trio.fail_after(self._limits.content_idle_s):
            while self._sent + size > self._may_send:
                await self._news.wait()
                self._news = trio.Event()

    async def _hear(self, scope: trio.CancelScope) -> None:
        """Credit, and the end: nothing else may come. The peer hanging up ends the answer at once."""
        try:
            while True:
                heard = await read_some(self._stream, 64)
                self._may_send += CREDIT_BYTES * len(heard)
                if heard.strip(MORE) or self._may_send > self._sent + AHEAD_BYTES:
                    _log.debug("p2p.credit_invented", bytes=len(heard))
                    break
                self._news.set()
        except Exception as error:  # noqa: BLE001 - EOF, reset and a dozen kinds of a dead connection
            _log.debug("p2p.asker_left", error=type(error).__name__)
        scope.cancel()

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(data), _WRITE_BYTES):
            await self._stream.write(bytes(view[at : at + _WRITE_BYTES]))


async def _refuse(stream: INetStream, code: str) -> None:
    with trio.move_on_after(_HANG_UP_S):
        await stream.write(answer_frame(Answer(code=code)))
        await _end(stream)
        while True:  # until the peer hangs up: a reset of ours would overtake the frame
            await read_some(stream, HEAD_LIMIT_BYTES)


async def _end(stream: INetStream) -> None:
    """Say that nothing more comes; the peer still reads what is on its way."""
    await cast(Any, stream).close_write()
