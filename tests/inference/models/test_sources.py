"""The rules of the port, for every source of this machine's own; connections, and tickets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from inference.models.http_client import open_http_client
from inference.models.sources import PIECE_BYTES, HttpSource, LocalSource
from inference.models.store import Store
from market.errors import ContentUnavailable
from market.testing_content import check_source
from node.content.listener import content_app
from tests.inference.models.content_kit import MIB, PLENTY, answering, put, seeded, serving, sources

DATA = seeded(5 * MIB + 17)
ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
SECRET = "c2VjcmV0-ticket_1"


async def test_our_own_listener_keeps_the_rules_of_the_port(other_store: Store, tmp_path: Path) -> None:
    root = await put(other_store, tmp_path, DATA, public=True)
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        await check_source(peer, root=root, content=DATA, absent=ABSENT)


async def test_a_file_of_this_machine_keeps_the_rules_of_the_port(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(DATA)
    source = LocalSource(tmp_path / "model")
    await check_source(source, root=await source.root(), content=DATA, absent=ABSENT)


async def test_a_piece_is_a_view_of_one_buffer_that_is_read_into_again(other_store: Store, tmp_path: Path) -> None:
    root = await put(other_store, tmp_path, DATA, public=True)
    async with (
        sources(content_app(other_store, limits=PLENTY)) as (peer,),
        aclosing(peer.read_range(root, 0, len(DATA))) as pieces,
    ):
        first = await anext(pieces)
        assert len(first) <= PIECE_BYTES
        assert bytes(first) == DATA[: len(first)]
        second = await anext(pieces)
        assert second.obj is first.obj


# ---- connections ---------------------------------------------------------------------------------


@asynccontextmanager
async def counting(store: Store) -> AsyncIterator[tuple[str, set[object]]]:
    """The listener's URL and the connections that it has seen."""
    app, seen = content_app(store, limits=PLENTY), set()

    @web.middleware
    async def note(request: web.Request, handler) -> web.StreamResponse:
        seen.add(request.transport)
        return await handler(request)

    app.middlewares.append(note)
    async with serving(app) as url:
        yield url, seen


async def test_one_request_after_the_other_uses_one_connection(other_store: Store, tmp_path: Path) -> None:
    root = await put(other_store, tmp_path, DATA, public=True)
    async with counting(other_store) as (url, seen), open_http_client() as client:
        source = HttpSource(url, client)
        for start in (0, MIB, 4 * MIB):
            assert b"".join([bytes(p) async for p in source.read_range(root, start, MIB)]) == DATA[start : start + MIB]
            await source.block(root)
    assert len(seen) == 1


async def test_a_range_that_is_left_early_ends_its_connection(other_store: Store, tmp_path: Path) -> None:
    root = await put(other_store, tmp_path, DATA, public=True)
    async with counting(other_store) as (url, seen), open_http_client() as client:
        source = HttpSource(url, client)
        async with aclosing(source.read_range(root, 0, len(DATA))) as pieces:
            await anext(pieces)
        async with asyncio.timeout(60):
            while not all(transport.is_closing() for transport in seen):
                await asyncio.sleep(0.01)
        assert await source.block(root)
    assert len(seen) == 2


async def test_a_connection_that_the_other_side_has_closed_meanwhile_is_no_failure() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    async with answering(answer) as url, open_http_client() as client:
        source = HttpSource(url, client)
        for _ in range(3):
            assert await source.block(ABSENT) == b"hello"
            await asyncio.sleep(0.05)


async def test_nobody_at_the_address_is_told_in_a_second() -> None:
    async with answering(b"") as url:
        pass
    async with open_http_client() as client:
        with pytest.raises(ContentUnavailable, match="ConnectionRefusedError"):
            await HttpSource(url, client).block(ABSENT)


# ---- tickets -------------------------------------------------------------------------------------


@asynccontextmanager
async def guarded(good: set[str], *, status: int = 404) -> AsyncIterator[tuple[str, list[str]]]:
    """A listener that answers with `status` but to holders of a ticket in `good`; what it was shown."""
    shown: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        shown.append(request.headers.get("Authorization", ""))
        if shown[-1].removeprefix("Bearer ") in good:
            return web.Response(body=b"block")
        raise web.HTTPNotFound if status == 404 else web.HTTPUnauthorized

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    async with serving(app) as url:
        yield url, shown


class Issuer:
    """Gives one ticket after the other; None when it has no more."""

    def __init__(self, *tickets: str | None) -> None:
        self.asked = 0
        self._tickets = list(tickets)

    async def __call__(self) -> str | None:
        self.asked += 1
        await asyncio.sleep(0.01)
        return self._tickets.pop(0) if self._tickets else None


@pytest.mark.parametrize("status", [401, 404])
async def test_a_ticket_is_asked_for_once_and_shown_from_then_on(status: int) -> None:
    issuer = Issuer(SECRET)
    async with guarded({SECRET}, status=status) as (url, shown), open_http_client() as client:
        source = HttpSource(url, client, ticket=issuer)
        assert await source.block(ABSENT) == b"block"
        assert await source.block(ABSENT) == b"block"
    assert issuer.asked == 1
    assert shown == ["", f"Bearer {SECRET}", f"Bearer {SECRET}"]


async def test_many_requests_at_once_ask_for_one_ticket() -> None:
    issuer = Issuer(SECRET)
    async with guarded({SECRET}) as (url, _), open_http_client() as client:
        source = HttpSource(url, client, ticket=issuer)
        assert await asyncio.gather(*(source.block(ABSENT) for _ in range(8))) == [b"block"] * 8
    assert issuer.asked == 1


async def test_a_ticket_that_has_run_out_is_replaced() -> None:
    good, issuer = {"first"}, Issuer("first", "second")
    async with guarded(good) as (url, _), open_http_client() as client:
        source = HttpSource(url, client, ticket=issuer)
        await source.block(ABSENT)
        good.clear()
        good.add("second")
        assert await source.block(ABSENT) == b"block"
    assert issuer.asked == 2


async def test_what_is_refused_with_a_new_ticket_is_not_there_and_no_ticket_is_asked_for_again_soon() -> None:
    issuer = Issuer("one", "two", "three")
    async with guarded(set()) as (url, _), open_http_client() as client:
        source = HttpSource(url, client, ticket=issuer)
        for _ in range(4):
            with pytest.raises(ContentUnavailable, match="404"):
                await source.block(ABSENT)
    assert issuer.asked == 1


@pytest.mark.parametrize("bad", ["two words", "line\r\nX-Evil: 1", "", "x" * 5000, None])
async def test_a_ticket_that_is_none_is_never_sent(bad: str | None) -> None:
    async with guarded({"other"}) as (url, shown), open_http_client() as client:
        with pytest.raises(ContentUnavailable):
            await HttpSource(url, client, ticket=Issuer(bad)).block(ABSENT)
    assert set(shown) == {""}


async def test_a_ticket_never_shows_in_errors_logs_or_reprs() -> None:
    async with guarded(set()) as (url, shown), open_http_client() as client:
        source = HttpSource(url, client, ticket=Issuer(SECRET))
        with capture_logs() as lines, pytest.raises(ContentUnavailable) as caught:
            await source.block(ABSENT)
    assert shown[-1] == f"Bearer {SECRET}"
    for text in (repr(source), repr(vars(source)), str(caught.value), repr(caught.value), repr(lines), source.name):
        assert SECRET not in text
