"""Minutes of all kinds of work at once while engine workers are killed and stopped at random: nothing hangs, nothing
is lost or told wrong, both sides' books agree, and what ran leaves nothing behind.

A gateway and two providers as processes, with the real model and its real workers; nothing but the clients is scripted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gauges import more, settled, slope
from soak import CLIENTS, PROVIDERS, Soak, open_soak
from soak_books import check_books, check_log, read_books, read_log

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.heavy]

SOAK_S = 600.0
LEAK_BYTES = 1024
"""A task, in any process. A task may leave counters; a stream, a conversation or a prompt that stays is over 10 KiB."""
ARENA_BYTES = 4 << 20
"""By so much a process's memory moves up and down by itself."""
THREADS = 6
"""Of the pool that works for asyncio, which starts them as it needs them and keeps them."""


def check_answers(soak: Soak) -> None:
    assert not soak.wrong, "\n".join(soak.wrong[:5])
    whole, refused = soak.ends["whole"], soak.ends["refused"]
    assert whole > 3 * refused and soak.ends["left"]
    for question in soak.asked:
        assert soak.kinds[f"{question.kind}: {'left' if question.leave_after else 'whole'}"], question.kind
    assert soak.kinds["batch: whole"]
    assert not any(process.is_running() for process in soak.stopped.values()), "the watchdog missed one"


def check_leaks(soak: Soak, before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, points in soak.readings.items():
        later = settled(points)
        tasks = later[-1][0] - later[0][0]
        assert slope(later) * tasks < LEAK_BYTES * tasks + ARENA_BYTES, f"{name} grows by {slope(later):.0f} a task"
    for name in soak.nodes:
        then, now = before[name]["reading"], after[name]["reading"]
        assert not more(after[name]["tasks"], before[name]["tasks"])
        assert now.handles <= then.handles + 2, name
        assert now.threads <= then.threads + THREADS, name


def check_end(soak: Soak) -> None:
    assert len(soak.children) > soak.kills["killed"] / 2
    assert not [child for child in soak.children if child.is_running()]
    books = {name: read_books(node.terms.folder / "node.db") for name, node in soak.nodes.items()}
    check_log(soak.nodes["gateway"].log())
    accepted = {name: read_log(soak.nodes[name].log()) for name in PROVIDERS}
    check_books(books["gateway"], {name: books[name] for name in PROVIDERS}, accepted, soak.receipts)


def report(soak: Soak, before: dict[str, Any], after: dict[str, Any]) -> None:
    """For whoever reads a failure, or runs it with -s."""
    counted = {"ends": soak.ends, "deaths": soak.kills, "slowest_s": soak.slowest_s, "kinds": soak.kinds}
    print(json.dumps(counted, indent=1, sort_keys=True))
    for name, points in soak.readings.items():
        print(name, points[0], points[-1], f"{slope(settled(points)):.0f} bytes a task")
    for name in soak.nodes:
        grown = more(after[name]["objects"], before[name]["objects"], 200)
        print(name, before[name]["reading"], after[name]["reading"], "more objects:", grown)


async def run(folder: Path, *, duration_s: float, deaths: int, seed: int) -> None:
    async with open_soak(folder, seed=seed) as soak:
        await soak.learn()
        await soak.repeat()
        await soak.quiet()
        before = await soak.census()
        await soak.load(duration_s)
        await soak.quiet()
        after = await soak.census()
        report(soak, before, after)
        assert soak.kills.total() >= deaths and soak.ends.total() > CLIENTS
        check_answers(soak)
        await soak.repeat()
        await soak.quiet()
        check_leaks(soak, before, after)
        await soak.end()
        check_end(soak)


@pytest.mark.timeout(600)
async def test_a_minute_of_everything_while_workers_die(tmp_path):
    await run(tmp_path, duration_s=60, deaths=10, seed=1)


@pytest.mark.timeout(1800)
async def test_ten_minutes_of_everything_while_workers_die(tmp_path):
    await run(tmp_path, duration_s=SOAK_S, deaths=100, seed=2)
