"""HTTP/1.1 for content: one GET at a time on a connection, bodies straight into the reader's buffer.

Lives here: connections, their reuse, the head of an answer, silence. Knows no CID and no ticket; resolves no names,
speaks no TLS, follows no redirect, keeps no cookie, asks for no compression, uses no proxy. A client of our own because
a general one copies each byte of a body three times: pulling and hashing 1 GiB ran at 590-630 MiB/s with aiohttp's and
at 1,000-1,200 with this one (same server, two cores).
Source: RFC 9112 (messages), RFC 9110 (fields); everything optional in them is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

from market.values import value

HEAD_LIMIT_BYTES = 16 * 1024
_LINES_LIMIT = 100
_FLUSH_S = 0.2
"""A slow sender's bytes are handed on this long after they were asked for, though the buffer is not full."""
_IDLE_S = 30.0
_IDLE_CONNECTIONS = 4
_CONNECT_TIMEOUT_S = 10.0

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_SAFE = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
"""What may stand in a line that we write: a line break in it would be a second request."""


@value
class Endpoint:
    """Who to talk to: an IP address, never a name. `host` goes into the Host field."""

    address: str
    port: int
    host: str


class BadAnswer(Exception):
    """What came is not an answer that we read, or nothing came. Whoever asked knows who it was, and says so."""


class Answer:
    """The head of an answer, names in lower case. `length` is the body's, None if it was not declared."""

    def __init__(
        self, connection: _Connection, status: int, headers: Mapping[str, str], length: int | None, early: bytes
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self._connection = connection
        self._early = early
        self._left = length or 0

    async def read_into(self, view: memoryview, timeout_s: float) -> int:
        """Fill `view` with the next bytes of the body and say how many; 0 at its end, or where it breaks off.

        Returns before `view` is full if the sender is slow. Raises TimeoutError after `timeout_s` of silence.
        """
        view = view[: self._left]
        if not view:
            return 0
        got = min(len(self._early), len(view))
        if got:
            view[:got] = self._early[:got]
            self._early = self._early[got:]
        if got < len(view):
            got += await self._connection.read(view[got:], timeout_s, waited_for=got > 0)
        self._left -= got
        return got

    @property
    def spent(self) -> bool:
        """Whether the connection is at the start of a next answer: what is left of the body came with the head."""
        return self.length is not None and self._left == len(self._early) and self._keeps_alive()

    def _keeps_alive(self) -> bool:
        return self._connection.open and "close" not in self.headers.get("connection", "").lower()


class HttpClient:
    """Connections that wait for their next request, a few for each endpoint."""

    def __init__(self) -> None:
        self._idle: dict[Endpoint, list[_Connection]] = {}

    @asynccontextmanager
    async def get(
        self, endpoint: Endpoint, path: str, headers: Mapping[str, str], *, timeout_s: float
    ) -> AsyncIterator[Answer]:
        """One request. Leaving the block before the body's end closes the connection.

        Raises BadAnswer for anything but a well-formed head, OSError, TimeoutError after silence.
        """
        connection, answer = await self._ask(endpoint, _request(endpoint, path, headers), timeout_s)
        try:
            yield answer
        finally:
            idle = self._idle.setdefault(endpoint, [])
            if answer.spent and len(idle) < _IDLE_CONNECTIONS:
                idle.append(connection)
                connection.rest(lambda: idle.remove(connection))
            else:
                connection.close()
                if not idle:
                    self._idle.pop(endpoint, None)

    def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _ask(self, endpoint: Endpoint, request: bytes, timeout_s: float) -> tuple[_Connection, Answer]:
        while idle := self._idle.get(endpoint):
            connection = idle.pop()
            connection.wake()
            with contextlib.suppress(BadAnswer, OSError):  # the other side had closed it: no news, no blame
                return connection, await _converse(connection, request, timeout_s)
        connection = await _connect(endpoint, min(timeout_s, _CONNECT_TIMEOUT_S))
        return connection, await _converse(connection, request, timeout_s)


@asynccontextmanager
async def open_http_client() -> AsyncIterator[HttpClient]:
    """The one client for all sources of a node."""
    client = HttpClient()
    try:
        yield client
    finally:
        client.close()


class _Connection(asyncio.BufferedProtocol):
    """Reads only while somebody waits, and only into what they brought: unread bytes stay with the kernel."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._target: memoryview | None = None
        self._got = 0
        self._eager = self._waited_for = False
        self._waiter: asyncio.Future[None] | None = None
        self._resting: asyncio.TimerHandle | None = None

    # ---- what asyncio calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's does not inherit from it
        self._transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        if self._target is None:
            self.close()
            return memoryview(bytearray(1))
        return self._target[self._got :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is None:
            return
        self._got += nbytes
        if self._eager or self._got == len(self._target):
            self._done()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a broken connection is an end
        self.open = False
        self._done()

    # ---- what we call ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and self.open:
            self._transport.write(data)

    async def read(self, target: memoryview, timeout_s: float, *, eager: bool = False, waited_for: bool = False) -> int:
        """`eager`: return with the first bytes. `waited_for`: others are held up, so return soon, with nothing if need
        be. Else 0 means that the other side has closed."""
        if not self.open or self._transport is None:
            return 0
        loop = asyncio.get_running_loop()
        self._target, self._got, self._waiter = target, 0, loop.create_future()
        self._eager, self._waited_for = eager, waited_for
        timers = (loop.call_later(_FLUSH_S, self._flush), loop.call_later(timeout_s, self._give_up))
        try:
            self._transport.resume_reading()
            await self._waiter
        finally:
            for timer in timers:
                timer.cancel()
            self._pause()
            self._target = self._waiter = None
        return self._got

    def rest(self, tired: Callable[[], None]) -> None:
        """Wait for a next request, for half a minute."""

        def end() -> None:
            tired()
            self.close()

        self._resting = asyncio.get_running_loop().call_later(_IDLE_S, end)

    def wake(self) -> None:
        if self._resting is not None:
            self._resting.cancel()

    def close(self) -> None:
        self.open = False
        self.wake()
        if self._transport is not None:
            self._transport.abort()

    def _done(self) -> None:
        self._pause()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if self.open and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _flush(self) -> None:
        self._eager = True
        if self._got or self._waited_for:
            self._done()

    def _give_up(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())


async def _connect(endpoint: Endpoint, timeout_s: float) -> _Connection:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        _, connection = await loop.create_connection(_Connection, endpoint.address, endpoint.port)
    return connection


async def _converse(connection: _Connection, request: bytes, timeout_s: float) -> Answer:
    """Send a request and read the head of its answer, all of it in `timeout_s`; whatever goes wrong closes."""
    try:
        connection.write(request)
        async with asyncio.timeout(timeout_s):  # or a byte now and then would hold us for days
            return await _read_head(connection, timeout_s)
    except BaseException:
        connection.close()
        raise


async def _read_head(connection: _Connection, timeout_s: float) -> Answer:
    head, got = memoryview(bytearray(HEAD_LIMIT_BYTES)), 0
    while (end := bytes(head[:got]).find(b"\r\n\r\n")) < 0:
        if got == len(head):
            raise BadAnswer(f"an answer's head has over {HEAD_LIMIT_BYTES} bytes.")
        more = await connection.read(head[got:], timeout_s, eager=True)
        if not more:
            raise BadAnswer("the connection ended without an answer.")
        got += more
    status, headers = parse_head(bytes(head[:end]))
    return Answer(connection, status, headers, _length(headers), bytes(head[end + 4 : got]))


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and fields of an answer's head, less its empty line. Raises BadAnswer.

    A name that comes twice is refused where it decides how the body is read (RFC 9112 section 6.3); of others the
    first counts.
    """
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None or len(lines) > _LINES_LIMIT:
        raise BadAnswer("the answer is not HTTP/1.1.")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadAnswer("the answer has a malformed header.")
        name, text = field[1].decode().lower(), field[2].decode("latin-1").strip()
        if name in headers and name in ("content-length", "content-range", "content-encoding", "transfer-encoding"):
            raise BadAnswer(f"the answer has two {name} headers.")
        headers.setdefault(name, text)
    return int(status[1]), headers


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise BadAnswer("the answer has a malformed Content-Length.")
    return int(text)


def _request(endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {endpoint.host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    for line in lines:
        if not _SAFE.fullmatch(line):
            raise BadAnswer("a request cannot be written: a path or header has characters that do not belong.")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
