"""Pulling 1 GiB from our content listener, against curl fetching the same file from the same process.

Servers and clients are processes of their own; the client pulls into an empty store on the same disk as curl writes
to. Pairs alternate, so both meet the same noise. The pull hashes every byte, has it on the disk before it says so, and
indexes it; curl writes it and is done. Three peers are three processes that serve one store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.rows import as_dicts, compared, measured

MIB = 1024 * 1024
SIZE_BYTES = 1024 * MIB
RUNS = 7
KILLS = 3

_SERVE = """
import asyncio, sys
from pathlib import Path
import uvloop
from aiohttp import web
from inference.models.store import Store
from node.content.door import ContentLimits
from node.content.listener import content_app

async def main():
    app = content_app(Store(Path(sys.argv[1])), limits=ContentLimits(requests_per_s=1e9, burst=10**9))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""

_ADD = """
import asyncio, sys
from pathlib import Path
from inference.models.store import Store

async def main():
    print(await Store(Path(sys.argv[1])).add(Path(sys.argv[2]), move=True, public=True))

asyncio.run(main())
"""

_PULL = """
import asyncio, json, logging, mmap, sys, time
from pathlib import Path
import structlog, uvloop
from inference.models.fetch import fetch_file
from inference.models.http_client import open_http_client
from inference.models.sources import HttpSource
from inference.models.store import Store

folder, root, counter, *urls = sys.argv[1:]
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

class Counted(HttpSource):
    '''Adds up what arrives in a file that outlives us.'''

    async def read_range(self, root, start, length):
        async for piece in super().read_range(root, start, length):
            total[0] += len(piece)
            yield piece

def memory(field):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

async def main():
    store = Store(Path(folder))
    async with open_http_client() as client:
        open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
        idle = memory("VmRSS")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        started = time.perf_counter()
        await fetch_file(store, root, [Counted(url, client) for url in urls])
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "above_idle": memory("VmHWM") - idle}))

with open(counter, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared, memoryview(shared) as view:
    with view.cast("Q") as total, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
"""


def run() -> list[dict[str, Any]]:
    """Rows `pull_one_peer`, `pull_three_peers`, `pull_memory` and `pull_resent_after_kill`."""
    if shutil.which("curl") is None:
        raise RuntimeError("curl is not installed: there is nothing to compare a pull with.")
    with tempfile.TemporaryDirectory(prefix="octo-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        root = _prepare(folder)
        urls = [stack.enter_context(_server(folder / "served")) for _ in range(3)]
        one, three, curl, memory = [], [], [], []
        _curl(folder, urls[0], root)
        _pull(folder, root, urls[:1])
        for _ in range(RUNS):
            curl.append(SIZE_BYTES / MIB / _curl(folder, urls[0], root))
            alone = _pull(folder, root, urls[:1])
            together = _pull(folder, root, urls)
            one.append(SIZE_BYTES / MIB / alone["seconds"])
            three.append(SIZE_BYTES / MIB / together["seconds"])
            memory.append(max(alone["above_idle"], together["above_idle"]) / MIB)
        resent = [_killed(folder, root, urls[:1], kill_at=(number + 1) / (KILLS + 1)) for number in range(KILLS)]
    return as_dicts(
        [
            compared("pull_one_peer", "MiB/s", one, curl, "curl -o, same listener", at_least=0.8),
            compared("pull_three_peers", "MiB/s", three, one, "our pull from one peer", at_least=1.0),
            measured("pull_memory", "MiB above idle", memory, at_most=64),
            measured("pull_resent_after_kill", "MiB", resent, at_most=16),
        ]
    )


def _prepare(folder: Path) -> str:
    """A file that does not compress, in a store; its root."""
    source = folder / "model"
    with source.open("wb") as file:
        for _ in range(SIZE_BYTES // (16 * MIB)):
            file.write(os.urandom(16 * MIB))
    command = [sys.executable, "-c", _ADD, str(folder / "served"), str(source)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def _server(store: Path) -> Iterator[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.kill()
        child.wait()


def _curl(folder: Path, url: str, root: str) -> float:
    """Seconds, as curl counts them."""
    target = folder / "curled"
    os.sync()
    command = ["curl", "-sf", "-o", str(target), "-w", "%{time_total}", f"{url}/ipfs/{root}"]
    seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if target.stat().st_size != SIZE_BYTES:
        raise RuntimeError("curl did not get the whole file.")
    target.unlink()
    return seconds


@contextmanager
def _puller(folder: Path, root: str, urls: list[str], counter: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is about to pull: everything loaded, the store open."""
    command = [sys.executable, "-c", _PULL, str(folder / "pulled"), root, str(counter), *urls]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        child.stdin.write("go\n")
        child.stdin.flush()
        yield child


def _pull(folder: Path, root: str, urls: list[str]) -> dict[str, float]:
    counter = _counter(folder)
    os.sync()
    with _puller(folder, root, urls, counter) as child:
        assert child.stdout is not None
        seen: dict[str, float] = json.loads(child.stdout.read())
    shutil.rmtree(folder / "pulled")
    return seen


def _killed(folder: Path, root: str, urls: list[str], *, kill_at: float) -> float:
    """MiB that were sent twice because the first pull died at `kill_at` of its way."""
    counter = _counter(folder)
    with _puller(folder, root, urls, counter) as child:
        while _counted(counter) < SIZE_BYTES * kill_at:
            time.sleep(0.001)
        child.kill()
    with _puller(folder, root, urls, counter) as child:
        assert child.stdout is not None
        child.stdout.read()
    shutil.rmtree(folder / "pulled")
    return (_counted(counter) - SIZE_BYTES) / MIB


def _counter(folder: Path) -> Path:
    path = folder / "counter"
    path.write_bytes(bytes(8))
    return path


def _counted(path: Path) -> int:
    return int.from_bytes(path.read_bytes(), sys.byteorder)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["pulling"]))
