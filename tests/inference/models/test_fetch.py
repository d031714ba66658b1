"""Pulling a file from honest, lying, slow and dying sources; over real HTTP, into a real folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.testing import capture_logs

from inference.models.cid import DAG_PB, parse_cid
from inference.models.fetch import fetch_block, fetch_file
from inference.models.http_client import open_http_client
from inference.models.progress import Progress
from inference.models.sources import HttpSource, LocalSource
from inference.models.standing import Patience
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC
from market.errors import BlockInvalid, ContentUnavailable, DiskFull, EncodingInvalid
from node.content.listener import content_app
from tests.inference.models.content_kit import (
    MIB,
    PLENTY,
    Counter,
    Watched,
    counted_app,
    liar_app,
    put,
    seeded,
    serving,
    slow_clock,
    sources,
    zeros_app,
)

T = TypeVar("T")
DATA = seeded(40 * MIB + 77)
HASTE = Patience(strikes=3, pause_s=0.05)


@pytest.fixture
async def root(other_store: Store, tmp_path: Path) -> str:
    return await put(other_store, tmp_path, DATA, public=True)


def flip(data: bytes, at: int) -> bytes:
    bent = bytearray(data)
    bent[at] ^= 1
    return bytes(bent)


async def test_a_pulled_file_is_the_file(store: Store, other_store: Store, root: str) -> None:
    seen: list[Progress] = []
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        path = await fetch_file(store, root, [peer], size_bytes=len(DATA), progress=seen.append)
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o444
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(DATA)
    assert list(seen[-1].sources) == [peer.name]
    assert list(store.parts.iterdir()) == []
    assert not [f for f in store.list() if f.public]


async def test_what_was_pulled_can_be_served_on(store: Store, other_store: Store, root: str, tmp_path: Path) -> None:
    third = Store(tmp_path / "third")
    async with sources(content_app(other_store, limits=PLENTY), content_app(store, limits=PLENTY)) as (first, second):
        await fetch_file(store, root, [first], public=True)
        path = await fetch_file(third, root, [second])
    assert path.read_bytes() == DATA
    third.close()


async def test_the_log_shows_every_block_and_from_whom(store: Store, other_store: Store, root: str) -> None:
    with capture_logs() as lines:
        async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
            await fetch_file(store, root, [peer])
    verified = [line for line in lines if line["event"] == "blocks_verified"]
    assert sum(line["blocks"] for line in verified) == 41
    assert sum(line["bytes"] for line in verified) == len(DATA)
    assert {(line["cid"], line["from"]) for line in verified} == {(root, peer.name)}


class Dawdling(Store):
    """Its threads are slow to report: what they wrote is on disk before anybody hears of it."""

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        def slowly() -> T:
            result = work(*arguments)
            time.sleep(0.06)
            return result

        return await super().in_thread(slowly)


async def test_the_log_shows_a_block_whose_worker_was_cancelled_because_the_file_was_whole(
    other_store: Store, tmp_path: Path
) -> None:
    root, store = await put(other_store, tmp_path, DATA, public=True), Dawdling(tmp_path / "dawdling")
    with capture_logs() as lines:
        async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
            await fetch_file(store, root, [peer])
    store.close()
    assert sum(line["blocks"] for line in lines if line["event"] == "blocks_verified") == 41


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1])
async def test_small_files_and_edges(store: Store, other_store: Store, tmp_path: Path, size: int) -> None:
    root = await put(other_store, tmp_path, seeded(size), public=True)
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        path = await fetch_file(store, root, [peer], size_bytes=size)
    assert path.read_bytes() == seeded(size)


async def test_the_classic_profile_can_be_pulled_too(store: Store, other_store: Store, tmp_path: Path) -> None:
    root = await put(other_store, tmp_path, DATA, public=True, profile=PROFILE_CLASSIC)
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        assert (await fetch_file(store, root, [peer])).read_bytes() == DATA


async def test_a_file_on_this_machine_is_a_source_like_any_other(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(DATA)
    source = LocalSource(tmp_path / "model.gguf")
    assert (await fetch_file(store, await source.root(), [source])).read_bytes() == DATA


async def test_another_size_than_announced_is_refused_before_any_leaf(
    store: Store, other_store: Store, root: str
) -> None:
    counter = Counter()
    async with sources(counted_app(other_store, counter)) as (peer,):
        with pytest.raises(BlockInvalid, match="announced"):
            await fetch_file(store, root, [peer], size_bytes=len(DATA) + 1)
    assert counter.bytes == 0


async def test_a_small_file_of_another_size_than_announced_is_refused(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    root = await put(other_store, tmp_path, b"small", public=True)
    async with sources(content_app(other_store)) as (peer,):
        with pytest.raises(BlockInvalid, match="announced"):
            await fetch_file(store, root, [peer], size_bytes=6)
    assert not store.has(root)


# ---- liars ---------------------------------------------------------------------------------------


async def test_a_flipped_bit_in_a_leaf_blames_that_source_and_the_other_finishes(
    store: Store, other_store: Store, root: str
) -> None:
    liar = liar_app(other_store, lambda r, data: flip(data, 9) if len(data) > MIB else data)
    blamed: list[tuple[str, str]] = []
    with capture_logs() as lines:
        async with sources(liar, content_app(other_store, limits=PLENTY)) as (bad, good):
            path = await fetch_file(
                store, root, [bad, good], blame=lambda *what: blamed.append(what), clock=slow_clock()
            )
    assert path.read_bytes() == DATA
    assert [name for name, why in blamed if "wrong bytes at offset" in why] == [bad.name]
    assert [(e["source"], e["code"]) for e in lines if e["event"] == "content_source_dropped"] == [
        (bad.name, "block_invalid")
    ]


async def test_a_flipped_bit_in_an_inner_node_blames_that_source(store: Store, other_store: Store, root: str) -> None:
    liar = liar_app(other_store, lambda r, data: flip(data, 40) if r.query.get("format") == "raw" else data)
    honest, lied = content_app(other_store, limits=PLENTY), asyncio.Event()

    @web.middleware
    async def second(request: web.Request, handler: Handler) -> web.StreamResponse:
        await lied.wait()  # however late the liar is: who is first has the word
        return await handler(request)

    honest.middlewares.append(second)
    with capture_logs() as lines:
        async with sources(liar, honest) as (bad, good):
            path = await fetch_file(store, root, [bad, good], blame=lambda *_: lied.set())
    assert path.read_bytes() == DATA
    assert [e["source"] for e in lines if e["event"] == "content_source_dropped"] == [bad.name]


async def test_a_lone_liar_delivers_nothing_and_says_why(store: Store, other_store: Store, root: str) -> None:
    async with sources(liar_app(other_store, lambda r, data: flip(data, 0) if len(data) > MIB else data)) as (bad,):
        with pytest.raises(ContentUnavailable, match="wrong bytes at offset"):
            await fetch_file(store, root, [bad])
    assert not store.has(root)


async def test_zeros_are_wrong_bytes(store: Store, other_store: Store, root: str) -> None:
    async with sources(zeros_app(other_store), content_app(other_store, limits=PLENTY)) as (bad, good):
        assert (await fetch_file(store, root, [bad, good])).read_bytes() == DATA


async def test_a_block_that_never_ends_is_cut_at_two_mebibytes(store: Store, other_store: Store, root: str) -> None:
    liar = liar_app(other_store, lambda r, data: data + bytes(64 * MIB))
    async with sources(liar) as (bad,):
        with pytest.raises(BlockInvalid, match="more than"):
            await bad.block(root)


async def test_a_source_that_cuts_everything_short_is_given_up_and_the_other_finishes(
    store: Store, other_store: Store, root: str
) -> None:
    short = liar_app(other_store, lambda r, data: data[:1000] if len(data) >= MIB else data)
    async with sources(short, content_app(other_store, limits=PLENTY)) as (bad, good):
        with pytest.raises(ContentUnavailable, match="1000 bytes does not hash"):
            await fetch_file(store, root, [bad], patience=HASTE)
        assert (await fetch_file(store, root, [bad, good])).read_bytes() == DATA


async def test_a_dripping_source_loses_its_segment_to_a_quick_one(store: Store, other_store: Store, root: str) -> None:
    drip, patient = zeros_app(other_store, pause_s=0.2, piece=b"x"), Patience(leaf_timeout_s=300)
    async with asyncio.timeout(120), sources(drip, content_app(other_store, limits=PLENTY)) as (slow, quick):
        assert (await fetch_file(store, root, [slow, quick], patience=patient)).read_bytes() == DATA


async def test_a_lone_dripping_source_is_given_up(store: Store, other_store: Store, root: str) -> None:
    async with sources(zeros_app(other_store, pause_s=0.05, piece=b"x")) as (slow,):
        with pytest.raises(ContentUnavailable, match="needs over"):
            await fetch_file(store, root, [slow], patience=replace(HASTE, leaf_timeout_s=0.3))


async def test_a_redirect_is_not_followed(store: Store, other_store: Store, root: str) -> None:
    counter = Counter()
    async with serving(counted_app(other_store, counter)) as elsewhere:
        app = web.Application()

        async def away(request: web.Request) -> web.Response:
            raise web.HTTPFound(elsewhere + request.path_qs)

        app.router.add_get("/ipfs/{cid}", away)
        async with sources(app) as (peer,):
            with pytest.raises(ContentUnavailable, match="302"):
                await fetch_file(store, root, [peer], patience=HASTE)
    assert counter.requests == 0


async def test_a_source_is_an_ip_address_never_a_name() -> None:
    async with open_http_client() as session:
        for url in (
            "http://localhost:8081",
            "https://1.2.3.4",
            "http://u:p@1.2.3.4:80",
            "http://1.2.3.4/x",
            "file:///",
        ):
            with pytest.raises(EncodingInvalid):
                HttpSource(url, session)


async def test_a_block_by_itself_is_verified(other_store: Store, root: str) -> None:
    async with sources(liar_app(other_store, lambda r, d: d[:-1]), content_app(other_store)) as (bad, good):
        block = await fetch_block(root, [bad, good])
    assert block == await other_store.read_block(root)


# ---- bad luck ------------------------------------------------------------------------------------


async def test_a_cancelled_pull_stops_soon_and_resumes_with_what_is_missing(
    store: Store, other_store: Store, root: str
) -> None:
    halfway = asyncio.Event()

    def watch(given: int) -> None:
        if given > len(DATA) // 2:
            halfway.set()

    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        stopped = Watched(peer, watch)
        pull = asyncio.create_task(fetch_file(store, root, [stopped]))
        await halfway.wait()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert stopped.given < len(DATA)
    seen: list[Progress] = []
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        rest = Watched(peer, lambda _: None)
        path = await fetch_file(store, root, [rest], progress=seen.append)
    assert path.read_bytes() == DATA
    assert seen[0].done_bytes > len(DATA) // 4
    assert rest.given == len(DATA) - seen[0].done_bytes


async def test_two_pulls_of_one_root_at_once_share_one_download(store: Store, other_store: Store, root: str) -> None:
    counter = Counter()
    async with sources(counted_app(other_store, counter)) as (peer,):
        one, two = await asyncio.gather(fetch_file(store, root, [peer]), fetch_file(store, root, [peer]))
    assert one == two
    assert counter.bytes == len(DATA)


async def test_a_part_that_somebody_changed_is_hashed_again(store: Store, other_store: Store, root: str) -> None:
    async with sources(liar_app(other_store, lambda r, d: flip(d, 2 * MIB) if len(d) > 2 * MIB else d)) as (bad,):
        with pytest.raises(ContentUnavailable):
            await fetch_file(store, root, [bad])
    (part,) = store.parts.glob("*.part")
    with part.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"damage")
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        assert (await fetch_file(store, root, [peer])).read_bytes() == DATA


# ---- a full disk -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False)
    if mount.returncode:
        pytest.skip("mounting a tmpfs is not permitted here, so no disk can be made full")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_is_too_small_is_told_before_the_download(
    small_disk: Path, other_store: Store, root: str
) -> None:
    counter, store = Counter(), Store(small_disk)
    async with sources(counted_app(other_store, counter)) as (peer,):
        with pytest.raises(DiskFull, match=f"{len(DATA)} bytes are still needed"):
            await fetch_file(store, root, [peer])
    assert counter.bytes == 0
    store.close()


async def test_a_disk_that_fills_up_meanwhile_keeps_what_arrived_and_goes_on_with_room(
    small_disk: Path, other_store: Store, tmp_path: Path
) -> None:
    data, store = seeded(6 * MIB), Store(small_disk)
    root = await put(other_store, tmp_path, data, public=True)
    ballast = small_disk / "ballast"

    def fill(given: int) -> None:
        if given >= 3 * MIB and not ballast.exists():  # of two streams, one has brought a whole leaf then
            with ballast.open("wb") as file, pytest.raises(OSError):
                while True:
                    os.write(file.fileno(), bytes(65536))

    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        with pytest.raises(DiskFull, match="Free some space"):
            await fetch_file(store, root, [Watched(peer, fill)])
        ballast.unlink()
        seen: list[Progress] = []
        path = await fetch_file(store, root, [peer], progress=seen.append)
    assert path.read_bytes() == data
    assert seen[0].done_bytes >= MIB
    store.close()


async def test_adding_to_a_full_disk_leaves_the_source_alone(small_disk: Path, tmp_path: Path) -> None:
    store, source = Store(small_disk), tmp_path / "big"
    source.write_bytes(DATA)
    for move in (False, True):
        with pytest.raises(DiskFull):
            await store.add(source, move=move)
        assert source.read_bytes() == DATA
    assert list(store.parts.iterdir()) == []
    store.close()


def test_roots_of_the_tests_are_trees() -> None:
    assert parse_cid("bafybeidd4va46is4xmnlwbnl3gluqqdvr34o6alhgit7g5s7ruylrv64b4").codec == DAG_PB
