"""A public IPFS gateway that the user names in the settings: blocks, and ranges of files where it serves them.

Lives here: what a gateway may answer, what its answers say about it, and where it may redirect us. Knows no store.
Names and TLS are allowed, unlike in HttpSource, whose addresses come from strangers; what arrives is as untrusted.
Sources: https://specs.ipfs.tech/http-gateways/trustless-gateway/ , …/path-gateway/ , …/subdomain-gateway/
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from inference.models.cid import BLOCK_LIMIT_BYTES
from inference.models.references import is_loopback, parse_url
from inference.models.sources import SourceBusy
from inference.models.web_client import Target, Web, broken
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured, RequestInvalid

RAW_TYPE = "application/vnd.ipld.raw"
REDIRECT_LIMIT = 2
"""`/ipfs/{cid}` -> `{cid}.ipfs.host` is one; another may add or take a slash."""
_BLOCK_TIMEOUT_S = 60.0
_BUSY = (429, 503)
_NO_FILES = (200, 400, 406, 415, 501)
"""Answers to a range of a file that mean "blocks only": 406 by the specification, 400 and 501 as seen; 200 is the
whole file for every range, which nobody can use."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")


class GatewaySource:
    """`url`: `https://HOST[:PORT]`, or http on this very machine. Raises NodeMisconfigured for anything else.

    Whether it serves ranges of files shows at the first one that is asked for: a trustless-only gateway refuses, and
    from then on `read_range` raises ContentUnavailable without asking.
    """

    def __init__(self, url: str, web: Web) -> None:
        self._base = named_url(url, "gateway")
        self._host = self._base.raw_host or ""
        self._plain = self._base.scheme == "http"
        self.name = str(self._base).rstrip("/")
        self._web = web
        self._serves_files: bool | None = None

    async def block(self, cid: str) -> bytes:
        try:
            async with (
                asyncio.timeout(_BLOCK_TIMEOUT_S),
                self._ask(f"{cid}?format=raw", {"Accept": RAW_TYPE}) as answer,
            ):
                self._expect(answer, 200)
                if answer.content_type != RAW_TYPE:
                    raise ContentUnavailable(f"{self.name} serves no raw blocks: it answers with whole files.")
                return await self._bounded(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise broken(self._base, error) from None

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        if self._serves_files is False:
            raise ContentUnavailable(f"{self.name} serves blocks, not ranges of files.")
        last, left = start + length - 1, length
        wanted = {"Accept": "application/octet-stream", "Range": f"bytes={start}-{last}"}
        try:
            async with self._ask(root, wanted) as answer:
                if answer.status in _NO_FILES and not self._serves_files:
                    self._serves_files = False
                self._expect(answer, 206)
                match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if match is None or int(match[1]) != start or int(match[2]) > last:
                    raise ContentUnavailable(f"{self.name} answered with another range than asked for.")
                self._serves_files = True
                async for piece in answer.content.iter_any():
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise broken(self._base, error) from None

    @asynccontextmanager
    async def _ask(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        hops = 0

        def on_hop(said: Mapping[str, str]) -> None:
            nonlocal hops
            if "Location" in said:
                hops += 1
                self._check_redirect(said["Location"], hops)

        url = URL(f"{self.name}/ipfs/{path}", encoded=True)
        target = Target(url=url, plain=self._plain)
        async with self._web.open_get(target, headers, authorization=None, on_hop=on_hop) as (answer, _):
            yield answer

    def _check_redirect(self, location: str, hops: int) -> None:
        """A gateway may send us to its own subdomains and nowhere else: it could not be held to its name there."""
        try:
            host = URL(location).raw_host or self._host
        except ValueError:
            host = ""
        if hops > REDIRECT_LIMIT or not (host == self._host or host.endswith(f".{self._host}")):
            raise ContentUnavailable(f"{self.name} redirects to another host, or too often.")

    def _expect(self, answer: aiohttp.ClientResponse, status: int) -> None:
        if answer.status in _BUSY:
            raise SourceBusy(
                f"{self.name} is busy ({answer.status}).", retry_after_s=_seconds(answer.headers.get("Retry-After", ""))
            )
        if answer.status != status:
            raise ContentUnavailable(f"{self.name} answered {answer.status} where {status} was expected.")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ContentUnavailable(f"{self.name} sent compressed bytes, which nobody asked for.")

    async def _bounded(self, answer: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > BLOCK_LIMIT_BYTES:
                raise BlockInvalid(f"{self.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
        return bytes(data)


def named_url(text: str, what: str) -> URL:
    """The URL of a server that the user named, without a slash at its end. Raises NodeMisconfigured.

    `localhost` becomes 127.0.0.1: Kubo redirects the name to `{cid}.ipfs.localhost`, which not every resolver knows,
    and answers the number at once.
    """
    try:
        url = parse_url(text)
    except RequestInvalid as error:
        raise NodeMisconfigured(f"The setting names a {what} that cannot be used. {error}") from None
    if url.query_string or url.fragment:
        raise NodeMisconfigured(f"The URL of a {what} ends with its path.", next_step="Leave out '?' and '#'.")
    if url.scheme == "http" and is_loopback(url.raw_host or "") and url.raw_host == "localhost":
        url = url.with_host("127.0.0.1")
    return url


def _seconds(text: str) -> float | None:
    """Seconds only: a date would need the other side's clock to be right."""
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else None
