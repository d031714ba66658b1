"""Pulling where sources are busy, moody, half equipped or slow, and where they attack the reader itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from inference.models.cid import DAG_PB, cid_of_block
from inference.models.fetch import fetch_file
from inference.models.http_client import open_http_client
from inference.models.progress import Progress
from inference.models.sources import HttpSource
from inference.models.standing import Patience
from inference.models.store import Store
from market.errors import ContentUnavailable
from market.testing_content import MemorySource
from node.content.listener import content_app
from tests.inference.models.content_kit import (
    MIB,
    PLENTY,
    Counter,
    DagSource,
    answering,
    blocks_of,
    counted_app,
    liar_app,
    put,
    seeded,
    slow_clock,
    sources,
)
from tests.inference.models.dag_kit import leaf_block, node_of

DATA = seeded(12 * MIB + 345)
HASTE = Patience(strikes=3, pause_s=0.05)
PARTIAL = b"HTTP/1.1 206 Partial Content\r\n"
TEN = PARTIAL + b"Content-Range: bytes 0-9/99\r\n"


@pytest.fixture
async def root(other_store: Store, tmp_path: Path) -> str:
    return await put(other_store, tmp_path, DATA, public=True)


@pytest.fixture
def dag(tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    (tmp_path / "model").write_bytes(DATA)
    return blocks_of(tmp_path / "model")


# ---- half equipped -------------------------------------------------------------------------------


async def test_a_source_of_blocks_only_gives_leaf_by_leaf_many_at_once(store: Store, dag) -> None:
    root, blocks = dag
    source = DagSource("blocks", blocks=blocks, pause_s=0.02)
    assert (await fetch_file(store, root, [source])).read_bytes() == DATA
    assert 8 <= source.most_at_once <= 16
    assert len([cid for cid in source.seen if isinstance(cid, str)]) == len(blocks)


async def test_a_source_of_ranges_only_serves_once_another_gave_the_inner_nodes(store: Store, dag) -> None:
    root, blocks = dag
    nodes = DagSource("nodes", blocks={root: blocks[root]})
    assert (await fetch_file(store, root, [DagSource("ranges", data=DATA), nodes])).read_bytes() == DATA


async def test_blocks_and_ranges_of_many_sources_make_one_file(store: Store, dag) -> None:
    root, blocks = dag
    three = [DagSource("a", blocks=blocks), DagSource("b", data=DATA, pause_s=0.001), DagSource("c", blocks=blocks)]
    assert (await fetch_file(store, root, three)).read_bytes() == DATA


async def test_a_wrong_leaf_block_blames_its_source(store: Store, dag) -> None:
    root, blocks = dag
    blamed: list[str] = []
    bad = DagSource("bad", blocks=blocks, bend=lambda b: b[:-1] + b"?" if len(b) > 10_000 else b)
    path = await fetch_file(
        store, root, [bad, DagSource("good", blocks=blocks)], blame=lambda name, why: blamed.append(name)
    )
    assert path.read_bytes() == DATA
    assert blamed == ["bad"]


async def test_a_file_of_one_raw_block_comes_as_a_range_if_nobody_gives_blocks(store: Store, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    root, _ = blocks_of(tmp_path / "small")
    path = await fetch_file(store, root, [DagSource("ranges", data=b"small")], size_bytes=5, patience=HASTE)
    assert path.read_bytes() == b"small"


async def test_a_leaf_that_came_as_a_block_does_not_come_again(store: Store, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    root, blocks = blocks_of(tmp_path / "small")
    source = DagSource("one", blocks=blocks, data=b"small")
    assert (await fetch_file(store, root, [source])).read_bytes() == b"small"
    assert source.seen == [root]


# ---- dag-pb leaves -------------------------------------------------------------------------------


def dag_of_leaves(leaves: list[bytes], kinds: list[int]) -> tuple[str, dict[str, bytes]]:
    """A file whose leaves are dag-pb, of UnixFS types `kinds`."""
    wrapped = [leaf_block(leaf, kind) for leaf, kind in zip(leaves, kinds, strict=True)]
    cids = [cid_of_block(DAG_PB, block) for block in wrapped]
    root, node = node_of([(c, len(leaf), len(w)) for c, leaf, w in zip(cids, leaves, wrapped, strict=True)])
    return str(root), {str(c): w for c, w in zip(cids, wrapped, strict=True)} | {str(root): node}


@pytest.mark.parametrize("kinds", [[2] * 12, [2] * 7 + [0] + [2] * 4], ids=["alike", "one of another type"])
async def test_dag_pb_leaves_are_checked_in_ranges_of_the_plain_file(store: Store, kinds: list[int]) -> None:
    leaves = [DATA[at : at + 300_000] for at in range(0, 3_600_000, 300_000)]
    root, blocks = dag_of_leaves(leaves, kinds)
    blamed: list[str] = []
    source = MemorySource("peer", blocks=blocks, files={root: b"".join(leaves)})
    path = await fetch_file(store, root, [source], blame=lambda name, _: blamed.append(name), patience=HASTE)
    assert path.read_bytes() == b"".join(leaves)
    assert not blamed


async def test_wrong_bytes_under_a_guessed_leaf_blame_the_sender_and_not_the_guess(store: Store) -> None:
    leaves = [DATA[at : at + 300_000] for at in range(0, 3_600_000, 300_000)]
    root, blocks = dag_of_leaves(leaves, [2] * 12)
    bent = bytearray(b"".join(leaves))
    bent[2_000_000] ^= 1
    blamed: list[str] = []
    bad = MemorySource("bad", blocks=blocks, files={root: bytes(bent)})
    good = MemorySource("good", blocks=blocks, files={})
    path = await fetch_file(
        store, root, [bad, good], blame=lambda name, _: blamed.append(name), patience=HASTE, clock=slow_clock()
    )
    assert path.read_bytes() == b"".join(leaves)
    assert blamed == ["bad"]


# ---- busy and moody ------------------------------------------------------------------------------


async def test_a_busy_source_is_asked_again_when_it_says_and_gets_no_strike(
    store: Store, other_store: Store, root: str
) -> None:
    app, refusals = content_app(other_store, limits=PLENTY), [0]

    @web.middleware
    async def busy(request: web.Request, handler) -> web.StreamResponse:
        if "Range" in request.headers and refusals[0] < 7:  # more than the strikes that a source has
            refusals[0] += 1
            raise web.HTTPTooManyRequests(headers={"Retry-After": "0"})
        return await handler(request)

    app.middlewares.append(busy)
    async with sources(app) as (peer,):
        assert (await fetch_file(store, root, [peer], patience=HASTE)).read_bytes() == DATA
    assert refusals[0] == 7


async def test_a_source_that_is_always_busy_is_given_up_in_the_end(store: Store, other_store: Store, root: str) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        raise web.HTTPServiceUnavailable(headers={"Retry-After": "0"})

    app = web.Application()
    app.router.add_get("/{any:.*}", busy)
    async with sources(app) as (peer,):
        with pytest.raises(ContentUnavailable, match="busy"):
            await fetch_file(store, root, [peer], patience=replace(HASTE, busy=3, pause_s=0.01))


async def test_a_source_that_changes_its_mind_loses_nothing_but_itself(
    store: Store, other_store: Store, root: str
) -> None:
    """Good at first, then wrong: what it sent before counts, what comes after is another's."""
    served = [0]

    def moody(request: web.Request, data: bytes) -> bytes:
        if request.query.get("format") == "raw":
            return data
        served[0] += 1
        return data if served[0] == 1 else bytes(len(data))

    blamed: list[str] = []
    async with sources(liar_app(other_store, moody), content_app(other_store, limits=PLENTY)) as (bad, good):
        path = await fetch_file(store, root, [bad, good], blame=lambda name, _: blamed.append(name))
    assert path.read_bytes() == DATA
    assert set(blamed) <= {bad.name}


async def test_two_sources_too_slow_to_steal_from_still_finish_between_them(store: Store, tmp_path: Path) -> None:
    """Each needs longer for a leaf than it takes to be thought dead; neither may lose its leaf to the other."""
    (tmp_path / "short").write_bytes(DATA[: 2 * MIB])
    root, blocks = blocks_of(tmp_path / "short")
    slow = [DagSource(name, blocks={root: blocks[root]}, data=DATA, pause_s=0.16) for name in ("one", "two")]
    async with asyncio.timeout(60):
        assert (await fetch_file(store, root, slow)).read_bytes() == DATA[: 2 * MIB]


async def test_eight_sources_that_wait_out_a_failure_do_not_stop_the_ninth(store: Store, dag) -> None:
    root, blocks = dag
    dead = [DagSource(f"dead {n}", blocks={root: blocks[root]}) for n in range(8)]
    good = DagSource("good", blocks=blocks, data=DATA)
    async with asyncio.timeout(120):
        path = await fetch_file(store, root, [*dead, good], patience=Patience(pause_s=300, longest_pause_s=300))
    assert path.read_bytes() == DATA


async def test_three_good_sources_share_the_work_and_no_byte_comes_twice(
    store: Store, other_store: Store, root: str
) -> None:
    counters, seen = [Counter() for _ in range(3)], list[Progress]()
    apps = [counted_app(other_store, counter, pause_s=0.02) for counter in counters]
    async with sources(*apps) as peers:
        path = await fetch_file(store, root, peers, progress=seen.append, clock=slow_clock())
        assert path.read_bytes() == DATA
    assert sum(counter.bytes for counter in counters) == len(DATA)
    assert all(counter.bytes for counter in counters)
    assert set(seen[-1].sources) == {peer.name for peer in peers}
    assert seen[-1].rate_bytes_per_s > 0
    assert seen[-1].eta_s == 0


# ---- attacks on the reader -----------------------------------------------------------------------


async def forever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(65536))
        await writer.drain()


@contextlib.asynccontextmanager
async def one_source(*answers: bytes, then=None, timeout_s: float = 60.0) -> AsyncIterator[HttpSource]:
    async with answering(*answers, then=then) as url, open_http_client() as client:
        yield HttpSource(url, client, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (PARTIAL + b"Content-Length: 10\r\n\r\n", "another range"),
        (PARTIAL + b"Content-Range: bytes 1-10/99\r\nContent-Length: 10\r\n\r\n", "another range"),
        (PARTIAL + b"Content-Range: bytes 0-99/*\r\nContent-Length: 100\r\n\r\n", "another range"),
        (TEN + b"Content-Length: 11\r\n\r\n", "two different lengths"),
        (TEN + b"Transfer-Encoding: chunked\r\n\r\n", "how long"),
        (TEN + b"\r\n", "how long"),
        (
            TEN + b"Content-Length: 10\r\nContent-Encoding: gzip\r\n\r\n",
            "compressed",
        ),
        (PARTIAL + b"Content-Length: 10\r\nContent-Length: 10\r\n\r\n", "two content-length"),
        (PARTIAL + b"Content-Length: +10\r\n\r\n", "malformed Content-Length"),
        (PARTIAL + b"Content-Length : 10\r\n\r\n", "malformed header"),
        (PARTIAL + b"X: 1\r\n folded\r\n\r\n", "malformed header"),
        (PARTIAL + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n", "not HTTP"),
        (PARTIAL + b"X: " + b"a" * 20_000 + b"\r\n\r\n", "head has over"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", "answered 200"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "answered 301"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"", "without an answer"),
    ],
)
async def test_answers_that_are_not_the_range_asked_for_are_refused_with_the_reason(answer: bytes, why: str) -> None:
    async with one_source(answer) as source:
        with pytest.raises(ContentUnavailable, match=why):
            await anext(source.read_range("bafy", 0, 10))


async def test_a_body_that_breaks_off_is_told_and_what_came_is_handed_on() -> None:
    async with one_source(TEN + b"Content-Length: 10\r\n\r\n0123") as source:
        pieces = source.read_range("bafy", 0, 10)
        assert bytes(await anext(pieces)) == b"0123"
        with pytest.raises(ContentUnavailable, match="ended"):
            await anext(pieces)


async def test_what_a_slow_sender_has_sent_is_handed_on_before_the_buffer_is_full() -> None:
    head = PARTIAL + b"Content-Range: bytes 0-999999/*\r\nContent-Length: 1000000\r\n\r\n0123"
    async with one_source(head, then=lambda _: asyncio.sleep(3600), timeout_s=120) as source:
        async with asyncio.timeout(60):
            assert bytes(await anext(source.read_range("bafy", 0, 1_000_000))) == b"0123"


async def test_a_body_that_never_ends_is_read_as_far_as_it_was_declared() -> None:
    head = TEN + b"Content-Length: 10\r\n\r\n"
    async with one_source(head, then=forever) as source:
        assert b"".join([bytes(piece) async for piece in source.read_range("bafy", 0, 10)]) == bytes(10)


async def test_silence_ends_a_request_before_and_within_a_body() -> None:
    head = TEN + b"Content-Length: 10\r\n\r\n"
    for said in (b"", PARTIAL, head):
        async with one_source(said, then=lambda _: asyncio.sleep(3600), timeout_s=0.4) as source:
            with pytest.raises(ContentUnavailable, match="TimeoutError"):
                await anext(source.read_range("bafy", 0, 10))


async def test_a_head_that_drips_ends_by_the_clock() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with one_source(PARTIAL + b"X: ", then=drip, timeout_s=0.5) as source:
        with pytest.raises(ContentUnavailable, match="TimeoutError"):
            async with asyncio.timeout(60):
                await anext(source.read_range("bafy", 0, 10))
