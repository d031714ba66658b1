"""A child that fails again and again is waited for longer and longer, and never for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.frames import WorkerSettings
from inference.restarting import FIRST_LOAD_S, LoadPatience, pause_s, silence_limit_s
from inference.supervisor import Worker
from inference.work.frames import ChildSettings
from inference.work.process import Child


@given(st.integers(0, 10**6))
def test_a_pause_doubles_up_to_its_limit_however_often_it_failed(failures):
    pause = pause_s(failures, first_s=0.05, limit_s=10)
    assert pause == min(10, 0.05 * 2 ** min(failures, 20))
    assert pause <= pause_s(failures + 1, first_s=0.05, limit_s=10)


def test_a_later_load_may_take_ten_times_the_slowest_and_more_after_each_failure():
    patience = LoadPatience(20)
    assert patience.limit_s(0) == patience.limit_s(5) == FIRST_LOAD_S
    patience.loaded(0.5)
    assert [patience.limit_s(failures) for failures in (0, 1, 3, 99)] == [20, 40, 160, FIRST_LOAD_S]
    patience.loaded(7)
    patience.loaded(1)
    assert patience.limit_s(0) == 70


def test_a_slow_models_silence_is_borne_longer_than_a_fast_ones_and_never_for_ever():
    assert [silence_limit_s(chunk_s) for chunk_s in (0, 0.02, 0.2, 0.5, 4, 10, 3600)] == [8, 8, 8, 15, 120, 300, 300]


_LOADS_ONCE = """
import socket, sys, time
from pathlib import Path
{head}
line = socket.socket(fileno=0)
line.recv(65536)
lives = Path(sys.argv[1])
count = len(lives.read_bytes()) if lives.exists() else 0
lives.write_bytes(b"x" * (count + 1))
if count == 1:
    time.sleep(600)
line.sendall({ready})
time.sleep(600)
"""
_WORKER = _LOADS_ONCE.format(
    head="from inference.frames import pack",
    ready='pack(["ready", {"engine": "e", "vocabulary": 100, "isolation": "none", "chunk_s": 0.1}])',
)
_CHILD = _LOADS_ONCE.format(
    head="from inference.work.frames import pack",
    ready='pack(["ready", {"engine": "e", "context": 1, "isolation": "none"}])',
)


class Nobody:
    """Owns a child, and has nothing for it to do."""

    def busy(self) -> bool:
        return False

    def up(self) -> None:
        pass

    def down(self, error) -> None:
        pass

    def hear(self, frame) -> None:
        pass


@pytest.mark.parametrize("kind", ["worker", "child"])
async def test_a_child_that_hangs_while_it_loads_again_is_ended_and_the_next_comes_up(tmp_path: Path, kind: str):
    lives = tmp_path / "lives"
    command = [sys.executable, "-c", _WORKER if kind == "worker" else _CHILD, str(lives)]
    child: Worker | Child
    if kind == "worker":
        settings = WorkerSettings(
            parent=1, model="m", slots=1, context=64, threads=1, window=8, memory_bytes=1 << 30, core=-1
        )
        child = Worker(settings, hang_s=0.4, on_change=lambda: None, command=command)
    else:
        told = ChildSettings(parent=1, runner="r", folder="f", readable=(), options={}, threads=1, memory_bytes=1 << 30)
        child = Child(told, Nobody(), hang_s=0.4, command=command)
    life = asyncio.create_task(child.run())
    try:
        await child.started
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        async with asyncio.timeout(200):  # ten times what the first took to load, on a machine that may be busy
            while len(lives.read_bytes()) < 3 or not child.ready:
                await asyncio.sleep(0.05)
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
