"""Where bytes come from. A source is never trusted: whoever asks hashes what it gets.

Lives here: octo peers over HTTP, and a file on this machine. What an answer must look like, and when to ask for a
ticket. Knows no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from inference.models.cid import BLOCK_LIMIT_BYTES, RAW, parse_cid
from inference.models.endpoints import multiaddr_of_url
from inference.models.http_client import Answer, BadAnswer, Endpoint, HttpClient
from inference.models.unixfs import PROFILE_2025, FileDag, Profile, build_file
from market.errors import BlockInvalid, ContentUnavailable, OctoError

Ticket = Callable[[], Awaitable[str | None]]
"""Asks the peer, over the mesh, for what opens its roots that are not public; None if it gives nothing."""

PIECE_BYTES = 2 * 1024 * 1024
"""One system call's worth is 0.2 MiB; the hop to a thread that hashes and writes costs 0.1 ms, 2 MiB of it 2.5 ms."""
_READ_TIMEOUT_S = 20.0
"""Silence for this long ends a request; a slow but steady source is the fetcher's business."""
_BLOCK_TIMEOUT_S = 60.0
_TICKET_TIMEOUT_S = 10.0
_TICKET_REST_S = 30.0
_REFUSED = (401, 403, 404)
_BUSY = (429, 503)
_TICKET = re.compile(r"[A-Za-z0-9\-._~+/]{1,2048}=*")
"""token68 of RFC 9110 section 11.2."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")


class SourceBusy(ContentUnavailable):
    """Not now (429, 503): neither a lie nor a failure. `retry_after_s` is what the source asks for, 2 s if it does not
    say."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = 2.0 if retry_after_s is None else retry_after_s


class HttpSource:
    """An octo peer's content listener: `http://IP:PORT`, no names, no redirects, no compression."""

    def __init__(
        self,
        base_url: str,
        client: HttpClient,
        *,
        timeout_s: float = _READ_TIMEOUT_S,
        ticket: Ticket | None = None,
    ) -> None:
        """`ticket` is asked when the listener refuses us, and again when what it gave is refused; seldom otherwise."""
        multiaddr_of_url(base_url)  # raises EncodingInvalid: an IP address, or nothing
        parts = urlsplit(base_url)
        self.name = base_url.rstrip("/")
        self._endpoint = Endpoint(address=parts.hostname or "", port=parts.port or 80, host=parts.netloc)
        self._client = client
        self._timeout_s = timeout_s
        self._purse = _Purse(ticket) if ticket else None

    async def block(self, cid: str) -> bytes:
        with self._blamed():
            async with (
                asyncio.timeout(_BLOCK_TIMEOUT_S),
                self._ask(f"/ipfs/{cid}?format=raw", {"Accept": "application/vnd.ipld.raw"}) as answer,
            ):
                size = self._expect(answer, 200)
                if size > BLOCK_LIMIT_BYTES:
                    raise BlockInvalid(f"{self.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
                data = bytearray(size)
                if await self._fill(answer, memoryview(data)) < size:
                    raise ContentUnavailable(f"{self.name} ended a block early.")
                return bytes(data)

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[memoryview]:
        """Pieces of at most PIECE_BYTES in one buffer: each is good until the next one is asked for."""
        last = start + length - 1
        headers = {"Accept": "application/octet-stream", "Range": f"bytes={start}-{last}"}
        with self._blamed():
            async with self._ask(f"/ipfs/{root}", headers) as answer:
                left = self._expect(answer, 206)
                self._expect_range(answer, start, last, left)
                buffer = memoryview(bytearray(min(left, PIECE_BYTES)))
                while left:
                    got = await answer.read_into(buffer, self._timeout_s)
                    if not got:
                        raise ContentUnavailable(f"{self.name} ended {root} early.")
                    left -= got
                    yield buffer[:got]

    @asynccontextmanager
    async def _ask(self, path: str, headers: dict[str, str]) -> AsyncIterator[Answer]:
        held = self._purse.held if self._purse else None
        async with self._client.get(
            self._endpoint, path, {**headers, **_bearer(held)}, timeout_s=self._timeout_s
        ) as answer:
            fresh = None
            if answer.status in _REFUSED and self._purse is not None:
                fresh = await self._purse.after_refusal_of(held)
            if fresh is None:
                yield answer
                return
        async with self._client.get(
            self._endpoint, path, {**headers, **_bearer(fresh)}, timeout_s=self._timeout_s
        ) as answer:
            if answer.status in _REFUSED and self._purse is not None:
                self._purse.no_use(fresh)
            yield answer

    def _expect(self, answer: Answer, status: int) -> int:
        """The body's length."""
        if answer.status in _BUSY:
            raise SourceBusy(f"{self.name} is busy ({answer.status}).", retry_after_s=_retry_after(answer))
        if answer.status != status:
            raise ContentUnavailable(f"{self.name} answered {answer.status} where {status} was expected.")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ContentUnavailable(f"{self.name} sent compressed bytes, which nobody asked for.")
        if answer.length is None:
            raise ContentUnavailable(f"{self.name} does not say how long its answer is.")
        return answer.length

    def _expect_range(self, answer: Answer, start: int, last: int, length: int) -> None:
        """What came must begin where we asked and may end early, at the file's end."""
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != start or not start <= int(match[2]) <= last:
            raise ContentUnavailable(f"{self.name} answered with another range than asked for.")
        if length != int(match[2]) - start + 1:
            raise ContentUnavailable(f"{self.name} says two different lengths for one range.")

    async def _fill(self, answer: Answer, view: memoryview) -> int:
        done = 0
        while done < len(view) and (got := await answer.read_into(view[done:], self._timeout_s)):
            done += got
        return done

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        """What the client and the system say becomes what this source did."""
        try:
            yield
        except BadAnswer as error:
            raise ContentUnavailable(f"{self.name} does not deliver: {error}") from None
        except (OSError, TimeoutError) as error:
            raise ContentUnavailable(f"{self.name} does not deliver: {type(error).__name__}.") from None


class _Purse:
    """The ticket of one peer. It is asked for when it is needed, by one request for all that wait."""

    def __init__(self, ask: Ticket) -> None:
        self.held: str | None = None
        self._ask = ask
        self._asking = asyncio.Lock()
        self._rest_until = 0.0

    async def after_refusal_of(self, refused: str | None) -> str | None:
        """A ticket that is not `refused`; None if the peer gives none, or gave one just now that was of no use."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self.held == refused and now >= self._rest_until:
                self.held = await self._fresh()
                if self.held is None:
                    self._rest_until = now + _TICKET_REST_S
            return self.held if self.held != refused else None

    def no_use(self, ticket: str) -> None:
        """What is refused with a new ticket is not there: do not ask for one at every block that is not."""
        if self.held == ticket:
            self._rest_until = asyncio.get_running_loop().time() + _TICKET_REST_S

    async def _fresh(self) -> str | None:
        with contextlib.suppress(OctoError, TimeoutError):
            async with asyncio.timeout(_TICKET_TIMEOUT_S):
                text = await self._ask()
            return text if text is not None and _TICKET.fullmatch(text) else None
        return None


class LocalSource:
    """A file on this machine under the CID that its bytes have; it is read and hashed at the first question."""

    def __init__(self, path: Path, profile: Profile = PROFILE_2025) -> None:
        self.name = path.name
        self._path = path
        self._profile = profile
        self._dag: FileDag | None = None

    async def root(self) -> str:
        return str((await self._built()).root)

    async def block(self, cid: str) -> bytes:
        dag, wanted = await self._built(), parse_cid(cid)
        for node, block in dag.nodes:
            if node == wanted:
                return block
        for leaf in dag.leaves:
            if wanted.codec == RAW and leaf.digest == wanted.digest:
                return await asyncio.to_thread(_read, self._path, leaf.offset, leaf.length)
        raise ContentUnavailable(f"{self.name} holds no block {cid}.")

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        if root != await self.root():
            raise ContentUnavailable(f"{self.name} is not {root}.")
        for offset in range(start, start + length, PIECE_BYTES):
            yield await asyncio.to_thread(_read, self._path, offset, min(PIECE_BYTES, start + length - offset))

    async def _built(self) -> FileDag:
        if self._dag is None:
            self._dag = await asyncio.to_thread(build_file, self._path, self._profile)
        return self._dag


def _bearer(ticket: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {ticket}"} if ticket else {}


def _retry_after(answer: Answer) -> float | None:
    """Seconds only: a date would need the other side's clock to be right."""
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else None


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
