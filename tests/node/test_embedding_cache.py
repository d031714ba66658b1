"""Kept vectors: told to whom they belong, whole or not at all, whatever happens to the file; gone when told to go."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.errors import NodeMisconfigured
from market.task import Privacy
from node.vectors.cache import EmbeddingCache, open_embedding_cache
from node.vectors.file import VectorFile
from node.vectors.sealing import About, KeptVector, Sealer, is_vector

ROOT = Path(__file__).resolve().parents[2]
ABOUT = About(model="bafymodel", dimensions=0, privacy=Privacy.SHARED)
ENGINES = frozenset({"onnx/1"})
MIB = 1 << 20


def vector(number: float, *, width: int = 8, engine: str = "onnx/1", receipt: str = "bafyreceipt") -> KeptVector:
    return KeptVector(vector=struct.pack(f"<{width}f", *[number] * width), receipt=receipt, piece=3, engine=engine)


class Opened:
    """A cache with one user's eyes."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache

    async def keep(self, *texts: str, whose: str = "ann", about: About = ABOUT, width: int = 8) -> None:
        vectors = {text: vector(float(at), width=width) for at, text in enumerate(texts)}
        await self.cache.keep(whose, about, vectors, epoch=self.cache.epoch)

    async def finds(self, *texts: str, whose: str = "ann", about: About = ABOUT) -> list[str]:
        return list(await self.cache.find(whose, about, texts, engines=ENGINES))


@asynccontextmanager
async def opened(
    path: Path, *, limit_bytes: int = MIB, shared: bool = False, secret: bytes = b"s" * 32
) -> AsyncIterator[Opened]:
    async with open_embedding_cache(path, limit_bytes=limit_bytes, shared=shared, secret=lambda: secret) as cache:
        assert cache is not None
        yield Opened(cache)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.db"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of one MiB, really mounted."""
    with tempfile.TemporaryDirectory() as mountpoint:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mountpoint], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a tmpfs takes root")
        yield Path(mountpoint)
        subprocess.run(["umount", "--lazy", mountpoint], check=True)


def around(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def numbered(count: int, start: int = 0) -> Iterable[str]:
    return (f"text {n}" for n in range(start, start + count))


# ---- what is found, and by whom ----


async def test_a_vector_comes_back_as_it_was_with_its_receipt_also_after_a_restart(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one", "two")
        assert kept.cache.facts()["vectors"] == 2
    async with opened(path) as kept:
        found = await kept.cache.find("ann", ABOUT, ["two", "three"], engines=ENGINES)
        assert dict(found) == {"two": vector(1.0)}
        counts = kept.cache.counts
        assert (counts.hits, counts.misses, kept.cache.vectors) == (1, 1, 2)


@pytest.mark.parametrize(
    "about",
    [replace(ABOUT, model="other"), replace(ABOUT, dimensions=8), replace(ABOUT, privacy=Privacy.PUBLIC)],
    ids=["model", "dimensions", "privacy"],
)
async def test_what_settles_a_vector_is_part_of_its_name(path: Path, about: About) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
        assert await kept.finds("one", about=about) == []
        assert await kept.finds("one") == ["one"]


async def test_token_ids_are_no_text(path: Path) -> None:
    async with opened(path) as kept:
        await kept.cache.keep("ann", ABOUT, {(65, 66): vector(1)}, epoch=0)
        inputs = [(65, 66), "AB", "A\0\0\0B\0\0\0", (65,)]
        assert list(await kept.cache.find("ann", ABOUT, inputs, engines=ENGINES)) == [(65, 66)]


async def test_a_vector_of_an_engine_class_that_nobody_offers_now_is_not_told(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
        assert not await kept.cache.find("ann", ABOUT, ["one"], engines=frozenset({"onnx/2"}))
        assert kept.cache.counts.misses == 1


async def test_users_find_their_own_and_everybodys_only_if_they_share(path: Path, tmp_path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
        assert await kept.finds("one", whose="bob") == []
    async with opened(tmp_path / "shared.db", shared=True) as kept:
        await kept.keep("one")
        assert await kept.finds("one", whose="bob") == ["one"]
        assert await kept.cache.forget("bob") == 0
        assert await kept.cache.forget("ann") == 1
        assert await kept.finds("one", whose="bob") == []


# ---- forgetting ----


async def test_a_user_forgets_its_own_and_nothing_of_them_stays_on_the_disk(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep(*numbered(20))
        await kept.keep("one", whose="bob")
        seal = Sealer(b"s" * 32, "ann", ABOUT).seal("text 7")
        assert any(seal.place in file.read_bytes() for file in path.parent.iterdir())
        assert await kept.cache.forget("ann") == 20
        assert not any(seal.place in file.read_bytes() for file in path.parent.iterdir())
        assert await kept.finds("one", whose="bob") == ["one"]
        assert (kept.cache.vectors, kept.cache.counts.forgotten) == (1, 20)


async def test_what_was_bought_before_is_not_kept_after_its_user_said_forget(path: Path) -> None:
    async with opened(path) as kept:
        epoch = kept.cache.epoch
        assert await kept.cache.forget("ann") == 0
        await kept.cache.keep("ann", ABOUT, {"one": vector(1)}, epoch=epoch)
        assert await kept.finds("one") == []


async def test_clearing_leaves_no_file_of_before_and_goes_on_with_an_empty_one(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
        path.with_name("vectors.db.damaged").write_bytes(b"of last year")
        assert await kept.cache.clear() == 1
        assert (kept.cache.vectors, "vectors.db.damaged" in around(path)) == (0, False)
        await kept.keep("two")
        assert await kept.finds("one", "two") == ["two"]


async def test_under_another_secret_nothing_is_found(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
    async with opened(path, secret=b"t" * 32) as kept:
        assert await kept.finds("one") == []


async def test_zero_bytes_keep_nothing_and_throw_away_what_was_kept(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
    async with open_embedding_cache(path, limit_bytes=0, shared=False, secret=lambda: b"s" * 32) as cache:
        assert cache is None
    assert around(path) == set()


async def test_forgetting_what_cannot_be_removed_is_no_silent_success(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep("one")
        aside = path.with_name("vectors.db.damaged")
        aside.mkdir()
        with pytest.raises(NodeMisconfigured, match="cannot be removed"):
            await kept.cache.forget("ann")


# ---- size ----


@pytest.mark.parametrize("width", [8, 384, 512, 1024, 3072])
async def test_the_least_recently_used_go_first_and_the_file_keeps_its_size(path: Path, width: int) -> None:
    async with opened(path) as kept:
        await kept.keep("favourite", width=width)
        for start in range(0, 9_000 if width == 8 else 900, 20):
            await kept.keep(*numbered(20, start), width=width)
            assert await kept.finds("favourite") == ["favourite"]
            assert kept.cache.size_bytes <= MIB
        assert kept.cache.counts.evicted > 0
        assert await kept.finds("text 0") == []
        assert await kept.finds(f"text {start + 19}") == [f"text {start + 19}"]
        assert kept.cache.size_bytes > MIB // 2
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT count(*) FROM vectors").fetchone()[0] == kept.cache.vectors
    assert path.stat().st_size <= MIB


async def test_of_more_than_fits_only_what_fits_is_kept(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep(*numbered(600), width=1024)
        assert 0 < kept.cache.counts.kept < 256
        assert kept.cache.counts.kept == kept.cache.vectors
        assert await kept.finds("text 0") == ["text 0"]


async def test_a_lower_limit_holds_from_the_next_start(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep(*numbered(150), width=384)
        await kept.keep("last", width=384)
    before = path.stat().st_size
    async with opened(path, limit_bytes=MIB // 4) as kept:
        assert await kept.finds("last", "text 0") == ["last"]
    assert path.stat().st_size <= MIB // 4 < before


# ---- bad luck ----


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_a_row_that_was_torn_bent_or_moved_is_a_miss_and_gone(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "vectors.db"
    path.unlink(missing_ok=True)
    async with opened(path) as kept:
        await kept.keep("one", "two")
        one, two = (Sealer(b"s" * 32, "ann", ABOUT).seal(text).place for text in ("one", "two"))
        with sqlite3.connect(path) as database:
            (sealed,) = database.execute("SELECT sealed FROM vectors WHERE place = ?", (one,)).fetchone()
            match data.draw(st.sampled_from(("torn", "bent", "moved"))):
                case "torn":
                    wrong = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
                case "bent":
                    at = data.draw(st.integers(0, len(sealed) - 1))
                    wrong = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
                case _:
                    (wrong,) = database.execute("SELECT sealed FROM vectors WHERE place = ?", (two,)).fetchone()
            database.execute("UPDATE vectors SET sealed = ? WHERE place = ?", (wrong, one))
        database.close()
        assert await kept.finds("one", "two") == ["two"]
        assert (kept.cache.counts.damaged, kept.cache.vectors) == (1, 1)


@pytest.mark.parametrize("data", [b"", b"\0" * 3, struct.pack("<2f", 1, float("nan")), struct.pack("<f", float("inf"))])
async def test_what_is_no_vector_is_not_told_even_if_it_was_sealed(path: Path, data: bytes) -> None:
    assert not is_vector(data)
    async with opened(path) as kept:
        await kept.cache.keep("ann", ABOUT, {"one": replace(vector(1), vector=data)}, epoch=0)
        assert await kept.finds("one") == []
        assert kept.cache.counts.damaged == 1


async def test_a_vector_of_another_length_than_asked_for_is_not_told(path: Path) -> None:
    about = replace(ABOUT, dimensions=7)
    async with opened(path) as kept:
        await kept.keep("one", about=about)
        assert await kept.finds("one", about=about) == []


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + os.urandom(8192)])
async def test_a_damaged_file_is_set_aside_at_the_start_and_counts_as_empty(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    async with opened(path) as kept:
        assert await kept.finds("one") == []
        await kept.keep("one")
        assert await kept.finds("one") == ["one"]
        assert kept.cache.counts.damaged >= 1
    assert path.with_name("vectors.db.damaged").read_bytes()[:14] == content[:14]


async def test_a_file_of_another_schema_is_set_aside(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    async with opened(path) as kept:
        await kept.keep("one")
        assert await kept.finds("one") == ["one"]


async def test_a_file_that_is_damaged_while_it_is_used_costs_a_miss(path: Path) -> None:
    async with opened(path) as kept:
        await kept.keep(*numbered(300), width=384)
    size = path.stat().st_size
    async with opened(path) as kept:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        assert await kept.finds(*numbered(300)) == []
        await kept.keep("one")
        assert await kept.finds("one") == ["one"]
        assert kept.cache.counts.damaged >= 1


async def test_a_folder_that_is_gone_costs_the_keeping_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    async with opened(folder / "vectors.db") as kept:
        assert await kept.finds("one") == []
        await kept.keep("one")
        assert await kept.finds("one") == []
        folder.mkdir()
        await kept.keep("one")
        assert await kept.finds("one") == ["one"]


async def test_a_disk_that_is_full_costs_the_keeping_and_neither_finding_nor_forgetting(small_disk: Path) -> None:
    async with opened(small_disk / "vectors.db", limit_bytes=16 * MIB) as kept:
        await kept.keep("one", width=384)
        for start in range(0, 2000, 100):
            await kept.keep(*numbered(100, start), width=384)
        (small_disk / "filler").write_bytes(b"x" * os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize)
        for _ in range(20):
            assert await kept.finds("one", "text 1", "text 1999") == ["one", "text 1"]
        await kept.keep(*numbered(100, 5000), width=384)
        assert await kept.finds("text 5000") == []
        assert await kept.cache.forget("ann") > 1
        assert await kept.finds("one") == []


DIES = """
import asyncio, os, struct, sys
from pathlib import Path
sys.path.insert(0, "tests/node")
from test_embedding_cache import ABOUT, opened, numbered

async def main():
    async with opened(Path(sys.argv[1])) as kept:
        print("ready", flush=True)
        for start in range(0, 10**9, 40):
            await kept.keep(*numbered(40, start), width=384)
            print(start, flush=True)

asyncio.run(main())
"""


@pytest.mark.processes
async def test_after_kill_9_while_writing_whole_requests_are_kept_and_every_vector_is_whole(path: Path) -> None:
    for round_ in range(4):
        command = [sys.executable, "-c", DIES, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(1 + 2 * round_):
                last = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in process.stdout.read().split())])
        async with opened(path) as kept:
            found = await kept.cache.find("ann", ABOUT, list(numbered(40, last)), engines=ENGINES)
            assert len(found) == 40
            assert found[f"text {last + 7}"] == vector(7.0, width=384)
            assert kept.cache.counts.damaged == 0
            assert kept.cache.size_bytes <= MIB


def test_the_file_shows_no_text_no_user_and_no_vector(path: Path) -> None:
    sealer = Sealer(b"s" * 32, "ann-the-user", ABOUT)
    kept = vector(1.5, receipt="bafyreceipt")
    seal = sealer.seal("a secret text")
    file = VectorFile(path, limit_bytes=MIB)
    file.write([(seal.place, b"u" * 16, seal.close(kept))])
    file.close()
    content = path.read_bytes()
    for shown in (b"secret", b"ann-the-user", kept.vector, b"bafyreceipt", b"bafymodel"):
        assert shown not in content
    assert path.stat().st_mode & 0o777 == 0o600
    assert seal.close(kept) != seal.close(kept)
    assert Sealer(b"t" * 32, "ann-the-user", ABOUT).seal("a secret text").open(seal.close(kept)) is None
