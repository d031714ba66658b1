"""How much one listener takes: bytes, seconds, requests at once. Knows requests, not what they ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from market.values import value


@value
class ApiLimits:
    """`requests`: answers under way at once. `body_timeout_s`: until a body is whole. `write_timeout_s`: until a
    reader takes what waits for it. `listeners`: who follow or wait for tasks of /api/v1/inference. `uploads`: bodies
    with a file in them at once, each at most `upload_timeout_s` on its way, and never silent for `body_timeout_s`.
    `bad_keys` wrong keys at once from an address, then `bad_keys_per_s`."""

    body_bytes: int = 4 * 1024 * 1024
    requests: int = 64
    body_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    listeners: int = 64
    uploads: int = 8
    upload_timeout_s: float = 600.0
    bad_keys: int = 20
    bad_keys_per_s: float = 0.5
    addresses: int = 4096


class Slots:
    """Counts what is under way. Not a queue: who comes too many is told so, and may try again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """Whether there was room."""
        if self.taken >= self._limit:
            yield False
            return
        self.taken += 1
        try:
            yield True
        finally:
            self.taken -= 1


async def read_body(request: web.Request, limits: ApiLimits) -> bytes:
    """The whole body; raises HTTP 413 (before reading, if the length was announced) or 408."""
    announced = request.content_length or 0
    if announced > limits.body_bytes:
        raise web.HTTPRequestEntityTooLarge(max_size=limits.body_bytes, actual_size=announced)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await request.read()  # counts what it unpacks: a compressed bomb ends at client_max_size too
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
