"""Fills the answers of `/octo/blocks` from the node's shelf, asyncio side.

Turns whatever a shelf does, late or wrong, into a stable code; the caller learns nothing else. Never more
than a few pieces wait for the network: the shelf's generator is paused meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import structlog

from market.errors import ContentUnavailable, OctoError
from market.identity import PeerId
from market.ports import ContentShelf
from p2p.blocks import (
    FAILED,
    NOT_HERE,
    OK,
    Answer,
    Ask,
    WantBlock,
    WantCatalog,
    WantPin,
    WantRange,
)
from p2p.bridge import QueueClosed, ToTrio

STEP_BYTES = 256 * 1024
"""What crosses to trio at once: the stream's writes are fastest from here on (facts: 75 MB/s, 40 for 16 KiB)."""

QUEUE_BYTES = 2 * STEP_BYTES

_log = structlog.get_logger()


class EmptyShelf:
    """A `market.ports.ContentShelf` of a node that shares nothing."""

    async def block(self, peer: PeerId, cid: str) -> bytes:  # noqa: ARG002
        raise _not_here()

    async def read_range(self, peer: PeerId, root: str, start: int, length: int) -> AsyncGenerator[bytes]:  # noqa: ARG002
        raise _not_here()
        yield b""

    async def ticket(self, peer: PeerId) -> str:  # noqa: ARG002
        raise _not_here()

    async def catalog(self, creator: bytes, name: str) -> bytes:  # noqa: ARG002
        raise _not_here()

    async def pin(self, peer: PeerId, manifest: str) -> None:  # noqa: ARG002
        raise _not_here()


class Shelving:
    """One shelf, as the trio side calls it."""

    def __init__(self, shelf: ContentShelf, *, wait_s: float) -> None:
        self._shelf = shelf
        self._wait_s = wait_s

    async def fill(self, peer: PeerId, ask: Ask, out: ToTrio[Answer | bytes]) -> None:
        """Put an Answer, its pieces, and a last Answer: OK if all came. Never raises but for cancellation."""
        verdict = OK
        try:
            async with aclosing(self._answer(peer, ask)) as items:
                while True:
                    async with asyncio.timeout(self._wait_s):
                        item = await anext(items, None)
                    if item is None:
                        break
                    await _put(out, item)
        except QueueClosed:
            return
        except ContentUnavailable:
            verdict = NOT_HERE
        except (OctoError, TimeoutError) as error:
            # Not the message: it may name files and folders of this machine.
            _log.info("p2p.content_not_served", peer=peer, kind=ask.want.kind, error=type(error).__name__)
            verdict = FAILED
        except Exception as error:  # noqa: BLE001 - a shelf's bug ends one answer
            _log.error("p2p.shelf_failed", peer=peer, kind=ask.want.kind, error=type(error).__name__)
            verdict = FAILED
        with suppress(QueueClosed):
            out.put(Answer(code=verdict), 0)

    async def _answer(self, peer: PeerId, ask: Ask) -> AsyncGenerator[Answer | bytes]:
        match ask.want:
            case WantRange(root=root, start=start, length=length):
                async with aclosing(self._shelf.read_range(peer, root, start, length)) as pieces:
                    first = await anext(pieces, b"")  # a refusal must come before we say OK
                    yield Answer(code=OK)
                    yield first
                    async for piece in pieces:
                        yield piece
            case WantBlock(cid=cid):
                block = await self._shelf.block(peer, cid)
                yield Answer(code=OK)
                yield block
            case WantCatalog(creator=creator, name=name):
                catalog = await self._shelf.catalog(creator, name)
                yield Answer(code=OK)
                yield catalog
            case WantPin(manifest=manifest):
                await self._shelf.pin(peer, manifest)
                yield Answer(code=OK)
            case _:
                yield Answer(code=OK, text=await self._shelf.ticket(peer))


async def _put(out: ToTrio[Answer | bytes], item: Answer | bytes) -> None:
    if isinstance(item, Answer):
        out.put(item, 0)
        return
    for at in range(0, len(item), STEP_BYTES):
        await out.ready()
        step = item[at : at + STEP_BYTES] if len(item) > STEP_BYTES else item
        out.put(step, len(step))


def _not_here() -> ContentUnavailable:
    return ContentUnavailable("this node shares no content.")
