"""The folder of kept answers: whole or not there, no larger and no older than it may be, through kills and restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.caching import CacheKey, Original
from market.errors import NodeMisconfigured
from market.kept import Kept, encode_kept
from market.receipt import SignedReceipt
from market.testing import FixedClock
from market.testing_cache import check_response_cache
from node.cache_salt import CacheSalt
from node.folder import Folder
from node.response_cache import ResponseCacheFolder, open_response_cache

DAY_S = 24 * 3600.0


def entry(number: int = 0, *, owner: str = "12D3alice", tokens: int = 10, kept_ms: int = 1_700_000_000_000) -> Kept:
    return Kept(
        key=CacheKey(key=number.to_bytes(32, "big")),
        owner=owner,
        content=bytes(32),
        original=Original(
            receipt=SignedReceipt(body=b"body", signature=bytes(65)), salt=bytes(32), chunk_sizes=(tokens % 32 or 1,)
        ),
        numbers=(7,) * tokens,
        finish="stop",
        kept_ms=kept_ms,
    )


async def opened(folder: Path, clock: Any = None, *, limit_bytes: int = 1 << 20, ttl_s: float = DAY_S) -> Any:
    cache = await open_response_cache(folder, limit_bytes=limit_bytes, ttl_s=ttl_s, clock=clock or FixedClock())
    assert cache is not None
    return cache


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_it_keeps_the_ports_rules(tmp_path: Path) -> None:
    await check_response_cache(await opened(tmp_path / "a"), entry())


async def test_answers_survive_a_restart(tmp_path: Path) -> None:
    first = await opened(tmp_path / "a")
    for number in range(5):
        await first.keep(entry(number))
    again = await opened(tmp_path / "a")
    assert len(again) == 5
    assert again.size_bytes == first.size_bytes == 5 * 4096
    assert await again.find(entry(3).place()) == entry(3)
    assert await again.forget("12D3alice") == 5
    assert files(tmp_path / "a") == []


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_a_file_that_was_torn_or_bent_is_a_miss_and_gone(tmp_path: Path, data: st.DataObject) -> None:
    cache = await opened(tmp_path / "a")
    await cache.keep(entry())
    (file,) = files(tmp_path / "a")
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    assert await cache.find(entry().place()) is None
    assert files(tmp_path / "a") == []
    assert cache.size_bytes == 0


async def test_a_file_that_was_moved_to_another_answers_place_is_not_told(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a")
    await cache.keep(entry(1))
    (first,) = files(tmp_path / "a")
    await cache.keep(entry(2))
    (second,) = set(files(tmp_path / "a")) - {first}
    second.write_bytes(first.read_bytes())
    assert await cache.find(entry(2).place()) is None
    assert await cache.find(entry(1).place()) == entry(1)
    assert (cache.counts.damaged, cache.counts.hits, cache.counts.misses) == (1, 1, 1)


async def test_a_file_that_vanished_is_a_miss(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a")
    await cache.keep(entry())
    files(tmp_path / "a")[0].unlink()
    assert await cache.find(entry().place()) is None
    assert len(cache) == 0


async def test_what_a_kill_left_half_written_and_what_is_not_ours_is_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / f".{'0' * 64}.{'0' * 16}.new").write_bytes(b"half")
    (folder / "notes.txt").write_bytes(b"?")
    (folder / f"{'0' * 64}.{'0' * 16}").symlink_to(tmp_path / "elsewhere")
    assert len(await opened(folder)) == 0
    assert files(folder) == []


async def test_the_least_recently_used_goes_first_when_there_is_no_room(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a", limit_bytes=3 * 4096)
    for number in range(3):
        await cache.keep(entry(number))
    await cache.find(entry(0).place())
    await cache.keep(entry(3))
    assert [bool(await cache.find(entry(n).place())) for n in range(4)] == [True, False, True, True]
    assert (cache.counts.evicted, cache.size_bytes) == (1, 3 * 4096)
    await cache.keep(entry(4, tokens=100_000))
    assert len(cache) == 3  # one that never fits takes nobody's place


async def test_a_lower_limit_holds_from_the_next_start_and_zero_takes_everything_away(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a")
    for number in range(5):
        await cache.keep(entry(number))
    assert len(await opened(tmp_path / "a", limit_bytes=2 * 4096)) == 2
    assert await open_response_cache(tmp_path / "a", limit_bytes=0, ttl_s=DAY_S, clock=FixedClock()) is None
    assert files(tmp_path / "a") == []


async def test_what_is_too_old_is_not_told_and_is_swept_out(tmp_path: Path) -> None:
    clock = FixedClock()
    cache = await opened(tmp_path / "a", clock, ttl_s=60)
    for number in (1, 2):
        await cache.keep(entry(number))
    clock.advance(59_999)
    assert await cache.find(entry(1).place()) is not None
    clock.advance(1)
    assert await cache.find(entry(1).place()) is None
    await cache.sweep()
    assert (files(tmp_path / "a"), cache.counts.expired) == ([], 2)


async def test_what_claims_to_be_from_the_future_is_not_told(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a", ttl_s=60)
    await cache.keep(entry(kept_ms=2**50))
    assert await cache.find(entry().place()) is None


async def test_a_disk_that_refuses_costs_the_answer_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    cache = await opened(folder)
    folder.rmdir()
    await cache.keep(entry())
    assert len(cache) == 0
    assert cache.size_bytes == 0


async def test_a_folder_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NodeMisconfigured, match="folder of kept answers"):
        await opened(tmp_path / "a")


async def test_wrong_answers_count_as_misses(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a")
    await cache.keep(entry())
    await cache.find(entry().place())
    await cache.wrong(entry().place())
    assert (cache.counts.hits, cache.counts.misses, cache.counts.damaged) == (0, 1, 1)


def test_the_names_of_files_show_neither_prompt_nor_owner(tmp_path: Path) -> None:
    cache = ResponseCacheFolder(tmp_path, limit_bytes=1, ttl_s=1, clock=FixedClock())
    assert len(cache) == 0
    assert entry().place() != entry(owner="12D3bob").place()
    assert b"12D3alice" not in entry().place()
    assert encode_kept(entry()) != encode_kept(replace(entry(), owner="x"))


# ---- the salt --------------------------------------------------------------------------------------


def test_the_salt_is_the_same_after_a_restart_and_another_once_renewed(tmp_path: Path) -> None:
    salt = CacheSalt(Folder(tmp_path))
    first = salt.current()
    assert CacheSalt(Folder(tmp_path)).current() == first
    assert (tmp_path / "cache" / "salt").stat().st_mode & 0o777 == 0o600
    salt.renew()
    assert salt.current() != first
    assert CacheSalt(Folder(tmp_path)).current() == salt.current()


def test_a_salt_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    CacheSalt(Folder(tmp_path))
    (tmp_path / "cache" / "salt").write_bytes(b"short")
    assert len(CacheSalt(Folder(tmp_path)).current()) == 32
