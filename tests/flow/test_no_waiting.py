"""The clock of the tests in memory: it moves only when nothing else is to be done."""

from __future__ import annotations

import asyncio
import time

import pytest
from no_waiting import NO_WAITING


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def test_an_hour_takes_no_time_and_timers_keep_their_order():
    began_s, loop, ended = time.monotonic(), asyncio.get_running_loop(), []
    at_s = loop.time()

    async def wait(hours):
        await asyncio.sleep(hours * 3600)
        ended.append((hours, round(loop.time() - at_s)))

    await asyncio.gather(*(wait(hours) for hours in (3, 1, 2)))
    assert ended == [(1, 3600), (2, 7200), (3, 10800)]
    assert time.monotonic() - began_s < 60


async def test_work_of_whatever_length_fits_into_any_limit():
    async with asyncio.timeout(0.001):
        for _ in range(1000):
            await asyncio.sleep(0)
        time.sleep(0.01)
        assert await asyncio.to_thread(lambda: time.sleep(0.05) or "done") == "done"


async def test_what_never_comes_is_given_up_at_once():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()
