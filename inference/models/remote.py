"""One file at one URL: ranges of it, through redirects whose signed ends expire.

Lives here: asking for a range, believing only an answer that says which range it is, and when to ask again. Knows
no disk. What comes is unverified: `download` checks the whole file, a pull checks every leaf.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from email.utils import parsedate_to_datetime
from time import time

import aiohttp

from inference.models.references import is_loopback, parse_url
from inference.models.sources import SourceBusy
from inference.models.web_client import HttpRefused, OnHop, Target, WayRefused, Web, broken
from market.errors import ContentUnavailable
from market.values import value

_CONTENT_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})")
_EMPTY_RANGE = re.compile(r"bytes \*/(\d{1,16})")
_STALE = (401, 403, 404, 410)
"""What a CDN answers once the signature in a location has run out."""
_GOOD_PROGRESS_BYTES = 64 * 1024


@value
class Patience:
    """When to stop asking. `tries` in a row without 64 kB of progress, `pause_s` (doubled each time) between them; a
    host that asks for more than `longest_wait_s` is believed and given up."""

    tries: int = 5
    pause_s: float = 0.5
    longest_wait_s: float = 120.0


class Retries:
    """Counts the failures in a row of one conversation."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0

    def pause_after(self, error: ContentUnavailable, gained_bytes: int = 0) -> float:
        """Seconds to wait before asking again; raises `error` if it is final or there were too many."""
        wanted = 0.0
        if isinstance(error, WayRefused):
            raise error
        if isinstance(error, HttpRefused):
            wanted = error.retry_after_s or 0.0
            if not error.passing:
                raise error
            if wanted > self._patience.longest_wait_s:
                raise ContentUnavailable(
                    f"{error.message} It asks to be left alone for {wanted:.0f} s.",
                    next_step="Try again then; what has arrived is kept.",
                )
        self._failures = 0 if gained_bytes >= _GOOD_PROGRESS_BYTES else self._failures + 1
        if self._failures >= self._patience.tries:
            raise error
        return max(wanted, self._patience.pause_s * 2.0**self._failures)


@value
class RangeAnswer:
    """`total_bytes` None if the host does not say; `pin` what must stay equal as long as the file is the same file;
    `whole`: not the range but everything, from the first byte. `length` is that of the body if known."""

    host: str
    total_bytes: int | None
    pin: str
    whole: bool
    length: int | None
    body: AsyncGenerator[bytes]


class RemoteFile:
    """`authorization` gives the value of that header, for the URL's own host alone; `on_hop` may look at (and refuse)
    the headers of every answer on the way. `strangers_word`: only public addresses, even at the first step.

    Raises RequestInvalid for anything but https (http on loopback).
    """

    def __init__(
        self,
        web: Web,
        url: str,
        *,
        authorization: Callable[[], str | None] = lambda: None,
        on_hop: OnHop = lambda _: None,
        strangers_word: bool = False,
    ) -> None:
        parsed = parse_url(url)
        self._web = web
        plain = parsed.scheme == "http" and is_loopback(parsed.raw_host or "") and not strangers_word
        self._first = Target(url=parsed, public_only=strangers_word, plain=plain)
        self._landed = self._first
        self._authorization = authorization
        self._on_hop = on_hop

    @asynccontextmanager
    async def open_range(self, start: int, length: int) -> AsyncIterator[RangeAnswer]:
        """Ask for `length` bytes from `start`. Raises HttpRefused, ContentUnavailable.

        Redirects are walked once, and their end is asked directly until it says no: then they are walked again.
        """
        known = self._landed
        for target in (known, self._first) if known != self._first else (known,):
            asked = {"Range": f"bytes={start}-{start + length - 1}"}
            answers = self._web.open_get(
                target,
                asked,
                authorization=self._authorization(),
                on_hop=self._on_hop if target == self._first else _any,
            )
            async with answers as (response, landed):
                if response.status in _STALE and target != self._first:
                    self._landed = self._first
                    continue
                answer = _answer(response, start, length)
                self._landed = self._first if landed.url == self._first.url else landed
                async with aclosing(answer.body):
                    yield answer
                return

    async def read(self, start: int, length: int) -> AsyncGenerator[bytes]:
        """The bytes of a range in pieces, fewer if the file ends. Raises ContentUnavailable, also without ranges."""
        async with self.open_range(start, length) as answer:
            if answer.whole and start:
                raise ContentUnavailable(f"{answer.host} serves no ranges.")
            left = length
            async for piece in answer.body:
                if piece[:left]:
                    yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    async def read_small(self, limit_bytes: int, patience: Patience) -> bytes:
        """All of a small answer, asked for again while the host is busy. Raises ContentUnavailable."""
        retries = Retries(patience)
        while True:
            try:
                return await self._small(limit_bytes)
            except ContentUnavailable as error:
                await asyncio.sleep(retries.pause_after(error))

    async def _small(self, limit_bytes: int) -> bytes:
        data = bytearray()
        plain = self._web.open_get(self._first, {}, authorization=self._authorization(), on_hop=self._on_hop)
        async with plain as (response, _):
            async for piece in _answer(response, 0, limit_bytes).body:
                data += piece
                if len(data) > limit_bytes:
                    raise ContentUnavailable(f"{response.url.host} answered with more than {limit_bytes} bytes.")
        return bytes(data)


class RemoteSource:
    """A RemoteFile as a source of ranges for one root; it has no blocks. `market.ports.ContentSource`."""

    def __init__(self, name: str, root: str, remote: RemoteFile) -> None:
        self.name = name
        self._root = root
        self._remote = remote

    async def block(self, cid: str) -> bytes:
        raise ContentUnavailable(f"{self.name} has ranges of one file, not the block {cid[:80]}.")

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        if root != self._root:
            raise ContentUnavailable(f"{self.name} is not {root[:80]}.")
        try:
            async with aclosing(self._remote.read(start, length)) as pieces:
                async for piece in pieces:
                    yield piece
        except HttpRefused as error:
            if error.status in (429, 503):
                raise SourceBusy(error.message, retry_after_s=error.retry_after_s) from None
            raise


def _any(_: object) -> None:
    """The headers of a CDN say nothing that the first host has not said."""


def _answer(response: aiohttp.ClientResponse, start: int, length: int) -> RangeAnswer:
    """What an answer claims to be. Raises HttpRefused, ContentUnavailable for claims that do not fit the question."""
    host, headers = response.url.host or "", response.headers
    if response.status not in (200, 206, 416):
        raise HttpRefused(
            host,
            response.status,
            error_code=headers.get("X-Error-Code", "")[:64],
            retry_after_s=_retry_after(headers.get("Retry-After", "")),
        )
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ContentUnavailable(f"{host} sends the file compressed, although it was asked not to.")
    pin = (headers.get("ETag") or headers.get("Last-Modified") or "").removeprefix("W/")[:256]
    size, length_sent = None, response.content_length
    if response.status == 200:
        return _made(response, pin, total=length_sent, whole=True, length=length_sent)
    said = headers.get("Content-Range", "")
    if response.status == 416:
        match = _EMPTY_RANGE.fullmatch(said)
        if match is None or int(match[1]) > start:
            raise HttpRefused(host, 416)
        return _made(response, pin, total=int(match[1]), whole=False, length=0)
    match = _CONTENT_RANGE.fullmatch(said)
    first, last, size = (int(part) for part in match.groups()) if match else (-1, -1, -1)
    if first != start or not start <= last < min(start + length, size) or length_sent not in (None, last + 1 - first):
        raise ContentUnavailable(f"{host} answered with another range than asked for.")
    return _made(response, pin, total=size, whole=False, length=last + 1 - first)


def _made(
    response: aiohttp.ClientResponse, pin: str, *, total: int | None, whole: bool, length: int | None
) -> RangeAnswer:
    body = _body(response, length) if response.status != 416 else _nothing()
    host = response.url.host or ""
    return RangeAnswer(host=host, total_bytes=total, pin=pin, whole=whole, length=length, body=body)


async def _body(response: aiohttp.ClientResponse, length: int | None) -> AsyncGenerator[bytes]:
    left = length
    try:
        async for piece in response.content.iter_any():
            yield piece if left is None else piece[:left]
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    return
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise broken(response.url, error) from None
    if left:
        raise ContentUnavailable(f"{response.url.host} ended {left} bytes early.")


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield b""  # makes this a generator


def _retry_after(text: str) -> float | None:
    """Seconds or a date (RFC 9110 section 10.2.3)."""
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
