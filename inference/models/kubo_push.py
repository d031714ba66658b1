"""Giving a Kubo node our own DAG, block for block, so that it serves the very CID that our receipts cite.

Lives here: the walk below a root, the parcels it is sent in, and when it counts as done. `ipfs add` would cut the file
again by the daemon's settings and may arrive at another CID; a CAR carries ours. Knows `Kubo` by its port only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from inference.models.car import car_header, car_section
from inference.models.cid import DAG_PB, Cid, check_block, parse_cid
from inference.models.dagpb import parse_block, total_bytes
from inference.models.kubo import Kubo
from inference.models.progress import Meter, OnProgress, quiet
from market.errors import BlockInvalid, ContentUnavailable

PARCEL_BYTES = 16 * 1024 * 1024
"""One request each: memory stays flat, a break costs one parcel, and progress means what the daemon has taken."""
_DEPTH_LIMIT = 64

ReadBlock = Callable[[str], Awaitable[bytes]]
"""A block of ours by CID: `Store.read_block`, or any source's `block`."""


async def push(
    kubo: Kubo,
    root: str,
    read_block: ReadBlock,
    *,
    progress: OnProgress = quiet,
    parcel_bytes: int = PARCEL_BYTES,
) -> None:
    """Bring everything below `root` to `kubo` and pin it there. A push that broke off goes on where it was.

    Progress counts bytes of blocks, inner nodes included. Raises ContentUnavailable if the daemon refuses or the
    pin is not confirmed, BlockInvalid if a block of ours is not what its CID says.
    """

    async def send(*, resume: bool) -> bool:
        return await _send(kubo, parse_cid(root), read_block, progress, parcel_bytes, resume=resume)

    skipped = await send(resume=True)
    try:
        await kubo.pin(root, offline=True)
    except ContentUnavailable:
        if not skipped:
            raise
        # What it said it had, it has no more, or not all of: a collection came between. Once more, and all of it.
        await send(resume=False)
        await kubo.pin(root, offline=True)


async def _send(
    kubo: Kubo, root: Cid, read_block: ReadBlock, progress: OnProgress, parcel_bytes: int, *, resume: bool
) -> bool:
    """Whether parcels were left out because the daemon has them: the first ones, up to where a push broke off."""
    clock = asyncio.get_running_loop().time
    skipped, done, speed = False, 0, 0.0
    block = await read_block(str(root))
    total = total_bytes(block) if root.codec == DAG_PB else len(block)
    meter = Meter(str(root), total, progress, clock, lambda: {kubo.name: speed})
    meter.say(0)
    async for parcel, last, count in _parcels(root, read_block, parcel_bytes):
        began = clock()
        resume = resume and await kubo.holds(str(last))  # the last block of a parcel arrives last
        if resume:
            skipped = True
        else:
            await kubo.import_car(parcel)
            speed = count / max(clock() - began, 1e-3)
        done += count
        meter.moved(count, done)
    meter.say(total)
    return skipped


async def _parcels(root: Cid, read_block: ReadBlock, limit_bytes: int) -> AsyncGenerator[tuple[bytes, Cid, int]]:
    """(a CAR, its last block's CID, bytes of blocks in it)."""
    parcel, count, last = bytearray(car_header(root)), 0, root
    async for cid, data in _blocks(root, read_block):
        parcel += car_section(cid, data)
        last, count = cid, count + len(data)
        if len(parcel) >= limit_bytes:
            yield bytes(parcel), last, count
            parcel, count = bytearray(car_header(root)), 0
    if count:
        yield bytes(parcel), last, count


async def _blocks(root: Cid, read_block: ReadBlock) -> AsyncGenerator[tuple[Cid, bytes]]:
    """Every block below and at `root`, parents first. Equal leaves come as often as they stand in the file: a list of
    those already sent would grow with the model."""
    seen: set[Cid] = set()
    waiting: list[tuple[Cid, int]] = [(root, 0)]
    while waiting:
        cid, depth = waiting.pop()
        data = await read_block(str(cid))
        check_block(cid, data)
        yield cid, data
        if cid.codec != DAG_PB:
            continue
        links = parse_block(data).links
        if links and depth >= _DEPTH_LIMIT:
            raise BlockInvalid(f"{root} is deeper than {_DEPTH_LIMIT} levels.")
        if links and cid not in seen:
            seen.add(cid)
            waiting.extend((link.cid, depth + 1) for link in reversed(links))
