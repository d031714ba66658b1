"""The real listener on loopback, and clients that speak raw bytes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from inference.models.cid import RAW, cid_of_block, parse_cid
from inference.models.directory import build_folder
from inference.models.store import Store
from node.content.door import ContentLimits
from node.content.listener import Content
from node.content.site import open_content
from tests.inference.models.store_kit import seeded

KIB = 1024
MIB = 1024 * KIB
PLENTY = ContentLimits(requests_per_s=1e9, burst=10**9)
DATA = seeded(2 * MIB + 9)
LEAF = str(cid_of_block(RAW, DATA[:MIB]))
ABSENT = str(cid_of_block(RAW, b"never added"))


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@asynccontextmanager
async def listening(store: Store, *, request_s: float = 30.0, **options: Any) -> AsyncIterator[str]:
    """`open_content` on any port of loopback, with limits that no test meets by accident; yields the base URL."""
    content = Content(store, **{"limits": PLENTY, **options})
    async with open_content(content, host="127.0.0.1", ports=(0,), request_s=request_s) as url:
        yield url


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=8 * MIB, **options)
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer:
    """One HTTP answer that has a Content-Length. Raises IncompleteReadError if the connection ends before it does."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:] if line)}
    status = int(lines[0].split()[1])
    length = 0 if head or status == 304 else int(headers.get("content-length", 0))
    return Answer(status, headers, await reader.readexactly(length))


async def ask(url: str, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """One request whose target goes out exactly as written; no client library tidies it up."""
    fields = {"Host": "x", "Connection": "close", **(headers or {})}
    async with asyncio.timeout(60), connected(url) as (reader, writer):
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in fields.items())
        writer.write(head.encode("latin-1") + b"\r\n")
        answer = await read_answer(reader, head=method == "HEAD")
        assert await reader.read() == b"", "nothing follows an answer"
    return answer


async def add_folder(store: Store, files: Mapping[str, str], *, public: bool = False) -> str:
    """A directory of files that are in the store: relative path -> root."""
    sizes = {one.root: one.size_bytes for one in store.list()}
    dag = build_folder({name: (parse_cid(root), sizes[root]) for name, root in files.items()})
    root = await store.add_directory(dag)
    if public:
        await store.set_public(root)
    return root
