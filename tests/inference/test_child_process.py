"""The node's side of a child process, whatever its work is: it comes up, hangs, lies, dies, and comes up again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.child_process import Child
from inference.frames import Frame
from inference.work.orders import DIALECT, TO_NODE, ChildFacts, ChildSettings
from market.errors import EncodingInvalid, EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError
from tests.inference.engine_kit import runs, until

ROGUE = """
import os, signal, socket, sys, time
from functools import partial
from pathlib import Path
from inference.frames import pack
from inference.work.orders import TO_CHILD
pack = partial(pack, limits=TO_CHILD)
line = socket.socket(fileno=0)
def say(message, parts=()):
    line.sendall(pack(message, parts=parts))
line.recv(65536)
ready = ["ready", {"engine": "e", "context": 1, "isolation": "none"}]
"""
UP = f"{ROGUE}\nsay(ready)\n"
SETTINGS = ChildSettings(
    parent=os.getpid(), runner="r", folder="f", readable=(), options={}, threads=1, memory_bytes=1 << 30
)


class Listener:
    """Owns a child, and keeps what it hears."""

    def __init__(self, silence_limit_s: float) -> None:
        self.silence_limit_s = silence_limit_s
        self.heard: list[Frame] = []
        self.working = False
        self.ups = 0
        self.errors: list[OctoError] = []

    def busy(self) -> bool:
        return self.working

    def up(self) -> None:
        self.ups += 1

    def down(self, error: OctoError) -> None:
        self.errors.append(error)
        self.working = False

    def hear(self, frame: Frame) -> None:
        if frame.message[0] == "odd":
            raise EncodingInvalid("odd.")
        self.heard.append(frame)


@contextlib.asynccontextmanager
async def running(
    script: str, *arguments: str, silence_limit_s: float = 20.0, least_load_s: float = 20.0
) -> AsyncIterator[tuple[Child[ChildSettings, ChildFacts], Listener]]:
    owner = Listener(silence_limit_s)
    command = [sys.executable, "-c", script, *arguments]
    child = Child(DIALECT, SETTINGS, owner, command=command, least_load_s=least_load_s)
    life = asyncio.create_task(child.run())
    try:
        await child.started
        yield child, owner
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


async def test_what_it_says_reaches_its_owner_whole_and_what_it_is_told_reaches_it():
    echo = "from inference.frames import FrameBuffer\nbuffer = FrameBuffer(TO_CHILD)\n" + (
        "while True:\n    for frame in buffer.feed(line.recv(65536)):\n        say(frame.message, frame.parts)\n"
    )
    blob = os.urandom(TO_NODE.body_bytes)
    async with running(UP + echo) as (child, owner):
        assert child.facts == ChildFacts(engine="e", context=1, isolation="none") and owner.ups == 1
        child.send(["first", 1])
        child.send(["second"], [blob])
        await until(lambda: len(owner.heard) == 2)
        assert owner.heard == [Frame(["first", 1]), Frame(["second"], (blob,))]
        pid = child.pid
        assert pid is not None and runs(pid)
    assert not runs(pid)


@pytest.mark.parametrize(
    ("speech", "why"),
    [
        ("say(['odd'])", "makes no sense"),
        ("line.sendall(b'\\xff' * 8)", "makes no sense"),
        (f"line.sendall(({TO_NODE.head_bytes + 1}).to_bytes(4, 'big') + bytes(4))", "makes no sense"),
        (f"line.sendall(bytes(4) + ({TO_NODE.body_bytes + 1}).to_bytes(4, 'big'))", "makes no sense"),
        (f"say(['made'], [b'x'] * {TO_NODE.parts - 1} + [bytes({TO_NODE.body_bytes})])", "makes no sense"),
        ("pass", r"was silent for \d+\.\d s"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"ended \(SIGKILL\)"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "was silent"),
        ("sys.exit(3)", r"ended \(exit status 3\)"),
        ("line.close()", r"ended \(SIGKILL\)"),
    ],
    ids=["odd", "huge", "head", "body", "parts", "hang", "kill", "stop", "exit", "close"],
)
async def test_one_that_lies_hangs_or_dies_is_ended_and_the_next_comes_up(tmp_path: Path, speech: str, why: str):
    """Only the first misbehaves, once it is told to."""
    script = f"""{UP}
line.recv(65536)
mark = Path(sys.argv[1])
if not mark.exists():
    mark.touch()
    {speech}
time.sleep(600)
"""
    silence_limit_s = 0.5 if "silent" in why else 60.0
    async with running(script, str(tmp_path / "mark"), silence_limit_s=silence_limit_s) as (child, owner):
        first = child.pid
        assert first is not None
        child.send(["work"])
        owner.working = True
        await until(lambda: owner.ups == 2)
        [error] = owner.errors
        assert isinstance(error, EngineFailed) and child.ready and child.broken is None
        assert child.pid != first and not runs(first)
        assert re.search(why, error.message)


async def test_an_idle_one_may_be_silent_and_what_it_is_told_then_begins_anew():
    async with running(f"{UP}\ntime.sleep(600)", silence_limit_s=0.4) as (child, owner):
        await asyncio.sleep(1.5)
        assert child.ready and not owner.errors
        child.send(["work"])
        owner.working = True
        await until(lambda: owner.errors)
        assert re.search(r"silent for 0\.\d s", owner.errors[0].message)


@pytest.mark.parametrize(
    ("speech", "kind", "words"),
    [
        (
            "say(['fail', 'model_file_invalid', 'broken.' + 'x' * 600, 'Pull.'])",
            ModelFileInvalid,
            r"broken\.x{493} Pull",
        ),
        ("say(['fail', 'node_misconfigured', 'too big.', 'Less.'])", NodeMisconfigured, "too big"),
        ("say(['fail', 'anything', 'no.', ''])", EngineFailed, "no"),
        ("say(['made', 1])", EngineFailed, "makes no sense"),
        ("say(['ready', {'engine': 'e'}])", EngineFailed, "makes no sense"),
        ("os.abort()", ModelFileInvalid, r"ended while loading the model \(SIGABRT\).*too little memory"),
        ("os.kill(os.getpid(), 9)", ModelFileInvalid, r"\(SIGKILL\).*too little memory"),  # the kernel, short of it
        ("bytearray(1 << 60)", ModelFileInvalid, r"\(exit status 1\).*too little memory"),
    ],
    ids=["file", "setting", "other", "early", "facts", "abort", "kill", "memory"],
)
async def test_a_first_start_that_fails_is_the_last_and_says_why(speech: str, kind: type[OctoError], words: str):
    with pytest.raises(kind, match=words):
        async with running(f"{ROGUE}\n{speech}\ntime.sleep(600)"):
            pass


async def test_a_command_that_cannot_be_run_is_said():
    child = Child(DIALECT, SETTINGS, Listener(1), command=["/nothing/here"], least_load_s=1)
    await child.run()
    with pytest.raises(EngineFailed, match="cannot be started"):
        await child.started


async def test_one_that_hangs_while_it_loads_again_is_ended_and_the_next_comes_up(tmp_path: Path):
    lives = tmp_path / "lives"
    script = f"""{ROGUE}
lives = Path(sys.argv[1])
count = len(lives.read_bytes()) if lives.exists() else 0
lives.write_bytes(b"x" * (count + 1))
if count == 1:
    time.sleep(600)
say(ready)
time.sleep(600)
"""
    async with running(script, str(lives), silence_limit_s=0.4, least_load_s=0.4) as (child, owner):
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: len(lives.read_bytes()) >= 3 and child.ready, limit_s=200)
        assert "was not loaded after" in owner.errors[1].message
