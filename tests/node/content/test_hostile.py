"""Strangers who send raw bytes: garbage, slowness, floods, paths that mean two things."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from inference.models.store import Store
from node.content.door import ContentLimits
from tests.inference.models.store_kit import put
from tests.node.content.kit import DATA, add_folder, ask, connected, listening, read_answer


async def test_a_request_that_never_becomes_whole_ends_in_bounded_time(store: Store) -> None:
    async with (
        listening(store, request_s=0.5) as url,
        asyncio.timeout(60),
        connected(url) as (reader, writer),
        connected(url) as (silent, _),
    ):
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 100_000:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(0.01)
                if reader.at_eof():
                    break
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert await silent.read() == b"", "who says nothing at all is not kept either"


async def test_an_answered_connection_is_kept_for_the_next_request_then_let_go(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"tiny", public=True)
    request = f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with listening(store, request_s=2.0) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            assert (await read_answer(reader)).body == b"tiny"
        writer.write(request[:-2])
        assert await reader.read() == b""


@pytest.mark.parametrize("sent", [
    b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /ipfs/x HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(2000)) + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\r\n\r\n\r\n\0\0\0\r\n\r\n",
    b"GET /ipfs/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /ipfs/x HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /ipfs/x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"GET /ipfs/x HTTP/1.1\r\nHost : x\r\nBad Name: y\r\n\r\n", b"GET http://[::1/ipfs/x HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip
async def test_what_is_no_request_is_answered_in_a_line_and_not_logged(
    store: Store, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with listening(store) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        try:
            said = await reader.read()
        except ConnectionError:  # closed while we were still talking
            said = b""
    assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), said[:200]
    assert b"aiohttp" not in said and b"Python" not in said and len(said) < 500
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404), ("/index.html", 404), ("/ipfs", 404), ("/ipns/x", 404), ("/api/v1/status", 404),
        ("/ipfs/", 404), ("//ipfs/{root}", 404), ("/%69pfs/{root}", 404), ("*", 400), ("/v1/models", 404),
        ("/ipfs//{root}", 400), ("/ipfs/{root}//a", 400), ("/ipfs/{root}/../{root}", 400),
        ("/ipfs/../ipfs/{root}", 400), ("/ipfs/{root}%00", 400), ("/ipfs/{root}%", 400),
        ("/ipfs/{root}/%2e%2e/%2e%2e/etc/passwd", 400), ("/ipfs/..%2f..%2fetc%2fpasswd", 400),
        ("/ipfs/{root}/a%00b", 400), ("/ipfs/{root}/a%2fb", 400), ("/ipfs/Qmx", 400), ("/ipfs/" + "b" * 59, 400),
        ("/ipfs/%F0%28%8C%28", 400), ("/ipfs/{root}/a/b", 404), ("/ipfs/{ROOT}", 400), ("/ipfs/{root}?format=", 406),
        ("/routing/v1/providers/", 404), ("/routing/v1/providers/{root}/x", 404), ("/routing/v1/peers/{root}", 404),
        ("/catalogs/0x12", 404), ("http://other.example/ipfs/{root}", 200), ("/ipfs/{root}#x", 200),
    ],
)  # fmt: skip
async def test_a_strange_target_gets_the_one_right_refusal(
    store: Store, tmp_path: Path, target: str, status: int
) -> None:
    root = await put(store, tmp_path, b"tiny", public=True)
    await add_folder(store, {"a": root}, public=True)
    async with listening(store) as url:
        answer = await ask(url, target.replace("{root}", root).replace("{ROOT}", root.upper()))
    assert answer.status == status, answer
    if status != 200:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/plain")


async def test_pipelined_requests_are_answered_whole_and_in_order(store: Store, tmp_path: Path) -> None:
    """A file's bytes bypass the transport: none may overtake what the transport still holds."""
    root, tiny = await put(store, tmp_path, DATA, public=True), await put(store, tmp_path, b"tiny", public=True)
    targets = [f"/ipfs/{root}", f"/ipfs/{tiny}", "/nothing", f"/ipfs/{root}?format=raw", f"/ipfs/{root}"] * 8
    bodies = {targets[0]: DATA, targets[1]: b"tiny", targets[3]: await store.read_block(root)}
    async with listening(store) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        writer.write("".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets).encode())
        for target in targets:
            answer = await read_answer(reader)
            assert answer.body == bodies.get(target, answer.body), target
            assert answer.status == (404 if target == "/nothing" else 200)


async def test_a_body_that_nobody_asked_for_is_not_read_for_long(store: Store) -> None:
    head = b"POST /ipfs/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n"
    async with listening(store) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        writer.write(head + bytes(100_000))
        assert (await read_answer(reader)).status == 405
        assert await reader.read() == b""


async def test_connections_beyond_the_limit_are_closed_unheard_and_places_come_back(
    store: Store, tmp_path: Path
) -> None:
    root = await put(store, tmp_path, b"tiny", public=True)
    limits = ContentLimits(requests_per_s=1e9, burst=10**9, connections=5)
    async with listening(store, limits=limits) as url, asyncio.timeout(60):
        held = [connected(url) for _ in range(40)]
        pairs = [await one.__aenter__() for one in held]
        ended = [asyncio.ensure_future(_ends(reader)) for reader, _ in pairs]
        while sum(one.done() for one in ended) < 35:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        open_ones = [one for one in ended if not one.done()]
        assert len(open_ones) == 5
        for one in held:
            await one.__aexit__(None, None, None)
        for waiting in open_ones:
            waiting.cancel()
        while True:
            try:
                assert (await ask(url, f"/ipfs/{root}")).body == b"tiny"
                break
            except (ConnectionError, asyncio.IncompleteReadError):  # a place has not come back yet
                await asyncio.sleep(0.02)


async def _ends(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""


async def test_a_reader_of_answers_that_takes_none_is_cut_off(store: Store, tmp_path: Path) -> None:
    """Blocks are written whole: without patience running out each such connection would hold one in memory for ever."""
    await put(store, tmp_path, DATA, public=True)
    root = await put(store, tmp_path, DATA[:1_000_000], public=True)
    asked = f"GET /ipfs/{root}?format=raw HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with listening(store, patience_s=0.5) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(asked * 30)
        await asyncio.sleep(2)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        try:
            got = len(await _all(reader))
        except ConnectionError:
            got = 0
        assert got < 30 * 1_000_000


async def _all(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while piece := await reader.read(1 << 20):
        data += piece
    return bytes(data)
