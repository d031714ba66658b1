"""The worker process: what it says, what it gives up, when it ends, and what the node makes of a rogue one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference.frames import FrameBuffer, pack
from inference.isolation import child_command, child_environment, landlock_abi
from inference.orders import LIMITS, Order, WorkerSettings, pack_tokens, unpack_tokens
from inference.supervisor import JobStream, Worker
from market.errors import EncodingInvalid, EngineFailed
from market.ports import Generated, Job
from market.task import Sampling, TaskId
from market.values import from_plain, to_plain
from tests.inference.engine_kit import runs

GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
MEMORY = 4 << 30


def worker_settings(model: Path, **changes: object) -> WorkerSettings:
    values = {"slots": 2, "context": 256, "threads": 1, "window": 64, "memory_bytes": MEMORY, "core": -1}
    return WorkerSettings(parent=os.getpid(), model=str(model), **{**values, **changes})  # type: ignore[arg-type]


def order(max_tokens: int) -> object:
    return to_plain(Order, Order(prompt=pack_tokens([1, 2, 3]), sampling=GREEDY, max_tokens=max_tokens))


class RealWorker:
    """A worker process as the node starts it, and our end of its line."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.line, theirs = socket.socketpair()
        self.line.settimeout(60)
        self.process = subprocess.Popen(child_command("inference.worker"), stdin=theirs, env=child_environment())
        theirs.close()
        self._buffer, self._messages = FrameBuffer(LIMITS), []
        self.say([to_plain(WorkerSettings, settings)])

    def say(self, message: list) -> None:
        self.line.sendall(pack(message, LIMITS))

    def hear(self) -> list:
        while not self._messages:
            data = self.line.recv(65536)
            assert data, "the worker ended"
            self._messages += [frame.message for frame in self._buffer.feed(data)]
        return self._messages.pop(0)

    def close(self) -> None:
        self.line.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def real_worker(default_model):
    worker = RealWorker(worker_settings(default_model))
    kind, facts = worker.hear()
    assert kind == "ready"
    worker.facts = facts
    yield worker
    worker.close()


def test_tokens_are_packed_as_they_are():
    assert unpack_tokens(pack_tokens([5, 2**31 - 1])) == [5, 2**31 - 1]


def test_the_longest_prompt_goes_into_an_order_and_twice_as_much_does_not():
    longest = Order(prompt=pack_tokens([7] * 131_072), sampling=GREEDY, max_tokens=1, grammar="g" * 100_000)
    [frame] = FrameBuffer(LIMITS).feed(pack(["run", 1, to_plain(Order, longest)], LIMITS))
    assert from_plain(Order, frame.message[2]) == longest
    with pytest.raises(EncodingInvalid, match="limit"):
        pack(["run", 1, bytes(LIMITS.head_bytes)], LIMITS)


# ---- the real process ----------------------------------------------------------------------------


@pytest.mark.model
def test_a_worker_says_what_it_is(real_worker):
    assert re.fullmatch(r"llama\.cpp/\d+\.\d+\.\d+/cpu-\w+/q4_0", real_worker.facts["engine"])
    assert real_worker.facts["vocabulary"] == 49152
    assert real_worker.facts["isolation"] == ("landlock+rlimits" if landlock_abi() else "rlimits")


@pytest.mark.model
def test_a_worker_answers_with_a_frame_a_step_and_pauses_at_the_window(real_worker):
    real_worker.say(["run", 1, order(100)])
    tokens = []
    while (frame := real_worker.hear())[0] == "step":
        [[job, token, finish, *_]] = frame[1]
        assert (job, finish) == (1, "")
        tokens.append(token)
    assert frame == ["alive"] and len(tokens) == 64
    real_worker.say(["read", 1, 10])
    assert [real_worker.hear()[0] for _ in range(11)] == ["step"] * 10 + ["alive"]
    real_worker.say(["cancel", 1])
    real_worker.say(["run", 2, order(1)])
    while (frame := real_worker.hear()) == ["alive"]:
        pass
    assert frame == ["step", [[2, tokens[0], "length", "", 0, b""]]]


@pytest.mark.model
def test_a_worker_carries_nothing_of_its_parent_and_can_open_nothing(real_worker, monkeypatch, default_model):
    process = Path(f"/proc/{real_worker.process.pid}")
    environment = (process / "environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0].decode() for entry in environment if entry}
    assert names == set(child_environment())
    assert default_model.name.encode() not in (process / "cmdline").read_bytes()
    status = (process / "status").read_text()
    assert re.search(r"NoNewPrivs:\s*1", status)
    limits = (process / "limits").read_text()
    for name, value in (("open files", 3), ("file size", 0), ("core file size", 0)):
        assert re.search(rf"Max {name}\s+{value}\s+{value}\s", limits)


@pytest.mark.model
def test_a_model_that_does_not_fit_is_refused_with_what_would(default_model):
    worker = RealWorker(worker_settings(default_model, slots=16, context=8192, memory_bytes=1 << 30))
    kind, code, message, next_step = worker.hear()
    assert (kind, code) == ("fail", "node_misconfigured")
    assert "16 slots of 8192 tokens" in message and re.search(r"at most [1-9] slots", next_step)
    assert worker.process.wait(60) == 1
    worker.close()


@pytest.mark.model
def test_a_context_longer_than_the_training_is_refused(default_model):
    worker = RealWorker(worker_settings(default_model, slots=1, context=16384))
    assert worker.hear()[:2] == ["fail", "node_misconfigured"]
    worker.close()


@pytest.mark.model
def test_gpu_layers_are_refused_by_a_library_without_a_gpu(default_model):
    worker = RealWorker(worker_settings(default_model, slots=1, gpu_layers=-1))
    kind, code, message, next_step = worker.hear()
    assert (kind, code) == ("fail", "node_misconfigured") and "GPU" in message and "CUDA" in next_step
    worker.close()


@pytest.mark.model
def test_a_worker_ends_when_its_line_is_closed(default_model):
    worker = RealWorker(worker_settings(default_model))
    assert worker.hear()[0] == "ready"
    worker.line.close()
    assert worker.process.wait(60) == 0


@pytest.mark.model
def test_a_worker_does_not_outlive_a_killed_parent(default_model):
    script = f"""
import asyncio, sys
from pathlib import Path
from inference.engines.llama_cpp import open_llama_engine
async def main():
    async with open_llama_engine(Path({str(default_model)!r}), workers=1, slots=1, context=256) as engine:
        print("pid", *engine.worker_pids, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=child_environment(), text=True
    )
    line = next(line for line in parent.stdout if line.startswith("pid "))
    child = int(line.split()[1])
    os.kill(child, signal.SIGSTOP)  # it cannot notice the end of the stream: only the kernel can end it
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while runs(child):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.02)


# ---- isolation -----------------------------------------------------------------------------------

_ATTEMPTS = """
import os, socket, sys
from pathlib import Path
from inference.isolation import close_the_door, confine, landlock_abi
allowed, secret, target, port = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
print(confine([allowed], memory_bytes=1 << 30))
def attempt(name, action):
    try:
        action()
        print(name, "ok")
    except (OSError, MemoryError) as error:
        print(name, type(error).__name__)
attempt("read-model", allowed.read_bytes)
attempt("read-secret", secret.read_bytes)
attempt("write", lambda: target.write_bytes(b"x"))
attempt("list", lambda: os.listdir(secret.parent))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), 2))
attempt("memory", lambda: bytearray(2 << 30))
attempt("run", lambda: os.execv("/bin/true", ["true"]))
import json.tool  # a late import of the standard library still works
close_the_door()
attempt("read-model-late", allowed.read_bytes)
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
"""


def test_a_confined_process_reads_its_model_and_nothing_else(tmp_path):
    model, secret = tmp_path / "model.gguf", tmp_path / "key"
    model.write_bytes(b"weights")
    secret.write_bytes(b"secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(model), str(secret), str(tmp_path / "out"), str(server.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, "-c", _ATTEMPTS, *arguments],
            check=False,
            env=child_environment(),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    level, *lines = done.stdout.splitlines()
    results = dict(line.split() for line in lines)
    assert results["read-model"] == "ok" and results["memory"] == "MemoryError"
    assert results["read-model-late"] == results["udp"] == "OSError"
    if landlock_abi():
        assert level == "landlock+rlimits"
        for name in ("read-secret", "write", "list", "run"):
            assert results[name] == "PermissionError", name
    if landlock_abi() >= 4:
        assert results["connect"] == "PermissionError"


# ---- a rogue worker, and its node ----------------------------------------------------------------

ROGUE = """
import socket, sys, time
from functools import partial
from inference.frames import FrameBuffer, Limits, pack
from inference.orders import LIMITS
line, buffer, pack = socket.socket(fileno=0), FrameBuffer(LIMITS), partial(pack, limits=LIMITS)
frames = []
def hear():
    while not frames:
        frames.extend(buffer.feed(line.recv(65536)))
    return frames.pop(0)
hear()
line.sendall(pack(["ready", {"engine": "e", "vocabulary": 100, "isolation": "none", "chunk_s": 0.1}]))
run = hear()
"""


@contextlib.asynccontextmanager
async def running(script: str, **more: float) -> AsyncIterator[Worker]:
    worker = Worker(
        worker_settings(Path("model.gguf"), window=8),
        hang_s=more.get("hang_s"),
        on_change=lambda: None,
        command=[sys.executable, "-c", script],
    )
    life = asyncio.create_task(worker.run())
    try:
        await worker.started
        yield worker
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


def some_job() -> Job:
    return Job(task=TaskId(bytes(32)), prompt=(1,), sampling=GREEDY, max_tokens=8, end_tokens=frozenset())


@pytest.mark.parametrize(
    "speech",
    [
        'line.sendall(pack(["step", [[1, 100, "", "", 0, b""]]]))',
        'line.sendall(pack(["step", [[1, "5", "", "", 0, b""]]]))',
        'line.sendall(pack(["step", [[1, 5, "maybe", "", 0, b""]]]))',
        'line.sendall(pack(["step", [[1, 5]]]))',
        'line.sendall(pack(["step", [[1, 5, "", "", 2, b""]]]))',
        'line.sendall(pack(["step", [[1, 5, "", "", "0", b""]]]))',
        'line.sendall(pack(["step", [[1, 5, "", "", 0, b""]] * 100]))',
        'line.sendall(pack(["ready", {}]))',
        'line.sendall(pack([{"step": 1}]))',
        'line.sendall(pack(["step", []], limits=Limits(99, 1, 1), parts=[b"x"]))',
        "sys.exit(3)",
    ],
)
async def test_a_worker_that_talks_nonsense_or_dies_fails_its_jobs_at_once(speech):
    async with running(f"{ROGUE}\n{speech}\ntime.sleep(90)", hang_s=90) as worker:
        stream = JobStream(1, some_job())
        worker.assign(stream)
        with pytest.raises(EngineFailed):
            async with asyncio.timeout(60):
                while True:
                    await stream.take()
        assert not worker.streams


async def test_tokens_that_came_before_the_end_are_delivered_before_the_error():
    async with running(
        f'{ROGUE}\nline.sendall(pack(["step", [[1, 5, "", "", 0, b""], [1, 6, "", "", 0, b""]]]))'
    ) as worker:
        stream = JobStream(1, some_job())
        worker.assign(stream)
        while not stream.ended:
            await asyncio.sleep(0.01)
        assert await stream.take() == Generated(tokens=(5, 6))
        with pytest.raises(EngineFailed, match="exit status 0"):
            await stream.take()


def test_core_dumps_of_this_test_process_are_untouched():
    """confine() was only ever called in children."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
