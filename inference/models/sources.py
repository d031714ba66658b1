"""Where bytes come from. A source is never trusted: whoever asks hashes what it gets.

Lives here: octo peers and trustless gateways over HTTP, and a file on this machine. Limits on
size and time; no redirects, no names, no cookies, no proxies, no compression. Knows no store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from inference.models.cid import BLOCK_LIMIT_BYTES, RAW, parse_cid
from inference.models.endpoints import multiaddr_of_url
from inference.models.unixfs import PROFILE_2025, FileDag, Profile, build_file
from market.errors import BlockInvalid, ContentUnavailable

_READ_TIMEOUT_S = 20.0
"""Silence for this long ends a request; a slow but steady source is the fetcher's business."""
_BLOCK_TIMEOUT_S = 60.0
_READ_BYTES = 1024 * 1024


class HttpSource:
    """An octo peer's content listener, or any trustless gateway that also serves ranges of files."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession, *, timeout_s: float = _READ_TIMEOUT_S) -> None:
        multiaddr_of_url(base_url)  # raises EncodingInvalid: an IP address, or nothing
        self.name = base_url.rstrip("/")
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(timeout_s, 10.0), sock_read=timeout_s)

    async def block(self, cid: str) -> bytes:
        data = bytearray()
        try:
            async with asyncio.timeout(_BLOCK_TIMEOUT_S), self._ask(f"/ipfs/{cid}?format=raw", {}) as response:
                self._expect(response, 200)
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > BLOCK_LIMIT_BYTES:
                        raise BlockInvalid(f"{self.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unavailable(error) from None
        return bytes(data)

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        left = length
        try:
            async with self._ask(f"/ipfs/{root}", {"Range": f"bytes={start}-{start + length - 1}"}) as response:
                self._expect(response, 206)
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise ContentUnavailable(f"{self.name} answered with another range than asked for.")
                async for piece in response.content.iter_any():
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unavailable(error) from None

    def _ask(self, path: str, headers: dict[str, str]) -> aiohttp.client._RequestContextManager:
        accept = "application/vnd.ipld.raw" if path.endswith("format=raw") else "application/octet-stream"
        return self._session.get(
            self.name + path,
            headers={"Accept": accept, "Accept-Encoding": "identity", **headers},
            allow_redirects=False,
            timeout=self._timeout,
        )

    def _expect(self, response: aiohttp.ClientResponse, status: int) -> None:
        if response.status != status or response.headers.get("Content-Encoding", "identity") != "identity":
            raise ContentUnavailable(f"{self.name} answered {response.status} where {status} was expected.")

    def _unavailable(self, error: Exception) -> ContentUnavailable:
        return ContentUnavailable(f"{self.name} does not deliver: {type(error).__name__}.")


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
        for offset in range(start, start + length, _READ_BYTES):
            yield await asyncio.to_thread(_read, self._path, offset, min(_READ_BYTES, start + length - offset))

    async def _built(self) -> FileDag:
        if self._dag is None:
            self._dag = await asyncio.to_thread(build_file, self._path, self._profile)
        return self._dag


@asynccontextmanager
async def open_content_session() -> AsyncIterator[aiohttp.ClientSession]:
    """The one HTTP session for all sources of a node."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_BYTES,
        max_line_size=4096,
        max_field_size=4096,
    ) as session:
        yield session


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
