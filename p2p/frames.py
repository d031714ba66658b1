"""Reading whole frames from a libp2p stream, trio side. For short exchanges; `p2p.wire` parses long-lived streams."""

from __future__ import annotations

from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF

from market.errors import EncodingInvalid


async def read_some(stream: INetStream, limit_bytes: int) -> bytes:
    """1 to `limit_bytes` bytes; raises EOFError at the end, and what libp2p raises for a dead stream."""
    try:
        data = bytes(await stream.read(limit_bytes))
    except StreamEOF:
        raise EOFError from None
    if not data:
        raise EOFError
    return data


async def read_exactly(stream: INetStream, size: int) -> bytes:
    """`size` bytes; raises as `read_some`."""
    data = await read_some(stream, size)
    while len(data) < size:
        data += await read_some(stream, size - len(data))
    return data


async def read_frame(stream: INetStream, limit_bytes: int) -> bytes:
    """The body of one frame of `p2p.wire`; raises EncodingInvalid before a byte of an oversized one is read."""
    size = int.from_bytes(await read_exactly(stream, 4), "big")
    if not 0 < size <= limit_bytes:
        raise EncodingInvalid(f"a frame announces {size} bytes; it may hold 1 to {limit_bytes}.")
    return await read_exactly(stream, size)
