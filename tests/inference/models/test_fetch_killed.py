"""Pulls in processes of their own: killed at every stage and taken up again, two at once, and their memory."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from inference.models.fetch import fetch_file
from inference.models.http_client import open_http_client
from inference.models.sources import PIECE_BYTES, HttpSource
from inference.models.store import Store
from node.content.listener import content_app
from tests.inference.models.content_kit import MIB, PLENTY, Counter, Watched, counted_app, put, seeded, serving

pytestmark = pytest.mark.processes

DATA = seeded(16 * MIB + 99)
STREAMS = 3

PULLS = """
import asyncio, json, os, signal, sys
from pathlib import Path
from inference.models.disk import Disk
from inference.models.fetch import fetch_file
from inference.models.http_client import open_http_client
from inference.models.sources import HttpSource
from inference.models.store import Store

left = stage = counter = None

def die(here):
    global left
    left -= here == stage
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

class DeadlyDisk(Disk):
    def write(self, descriptor, data, offset):
        kind = "map" if offset == 0 and len(data) < 1000 else "leaf"
        die(f"before {kind}")
        super().write(descriptor, data, offset)
        die(f"after {kind}")
    def sync_data(self, descriptor):
        super().sync_data(descriptor)
        die("synced")
    def sync(self, descriptor):
        die("before last sync")
        super().sync(descriptor)
        die("after last sync")
    def rename(self, source, target):
        die("before rename")
        super().rename(source, target)
        die("after rename")
    def sync_folder(self, folder):
        super().sync_folder(folder)
        die("folder synced")
    def remove(self, path):
        die("before map goes")
        super().remove(path)
        die("after map has gone")

class Deadly(HttpSource):
    async def block(self, cid):
        block = await super().block(cid)
        die("node")
        return block
    async def read_range(self, root, start, length):
        async for piece in super().read_range(root, start, length):
            with open(counter, "a") as file:
                file.write(f"{len(piece)}\\n")
            die("piece")
            yield piece

async def pull(folder, root, url):
    async with open_http_client() as client:
        await fetch_file(Store(Path(folder), disk=DeadlyDisk()), root, [Deadly(url, client)])
    die("end")

for line in sys.stdin:  # a process each, without the second that the imports take
    children = []
    for folder, root, url, stage, left, counter in json.loads(line):
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            asyncio.run(pull(folder, root, url))
            os._exit(0)
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""

STAGES = [
    ("node", 1),
    ("piece", 1),
    ("before leaf", 1),
    ("after leaf", 1),
    ("after leaf", 13),
    ("piece", 9),
    ("synced", 1),
    ("before map", 1),
    ("after map", 1),
    ("before map", 2),
    ("after map", 2),
    ("before last sync", 1),
    ("after last sync", 1),
    ("before rename", 1),
    ("after rename", 1),
    ("folder synced", 2),
    ("before map goes", 1),
    ("after map has gone", 1),
    ("end", 1),
]
ALL_IS_HERE = ("last sync", "rename", "map goes", "map has gone", "end")


@pytest.fixture
async def root(other_store: Store, tmp_path: Path) -> str:
    return await put(other_store, tmp_path, DATA, public=True)


@pytest.fixture
async def url(other_store: Store, root: str) -> AsyncIterator[str]:
    async with serving(content_app(other_store, limits=PLENTY)) as url:
        yield url


Pulls = Callable[..., Awaitable[list[int]]]


@pytest.fixture(scope="module")
def pulls() -> Iterator[Pulls]:
    """Starts pulls at once, in a process each, and gives their exit codes."""
    command = [sys.executable, "-c", PULLS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        into, out = parent.stdin, parent.stdout

        def ask(orders: tuple[object, ...]) -> list[int]:
            into.write(json.dumps(orders) + "\n")
            into.flush()
            return json.loads(out.readline())

        yield lambda *orders: asyncio.to_thread(ask, orders)
        into.close()


@pytest.mark.parametrize(("stage", "count"), STAGES)
async def test_a_pull_that_was_killed_fetches_only_what_is_missing(
    pulls: Pulls, tmp_path: Path, root: str, url: str, stage: str, count: int
) -> None:
    folder, counter = tmp_path / "models", tmp_path / "counter"
    counter.touch()
    assert await pulls((str(folder), root, url, stage, count, str(counter))) == [-signal.SIGKILL]
    first = sum(map(int, counter.read_text().split()))
    store = Store(folder)
    async with open_http_client() as client:
        rest = Watched(HttpSource(url, client), lambda _: None)
        path = await fetch_file(store, root, [rest])
    assert path.read_bytes() == DATA
    assert [file.root for file in store.list()] == [root]
    assert not list(store.parts.glob("*.part"))  # a map may be left, of 40 bytes: `gc` takes it
    # Received but not verified: a piece and a part of a leaf on each stream, and what waited for its thread.
    assert first + rest.given <= len(DATA) + STREAMS * (PIECE_BYTES + MIB)
    if stage.endswith(ALL_IS_HERE):
        assert rest.given == 0
    await store.verify(root)
    store.close()


async def test_two_processes_that_pull_the_same_share_one_download(
    pulls: Pulls, tmp_path: Path, other_store: Store, root: str
) -> None:
    folder, counter = tmp_path / "models", Counter()
    async with serving(counted_app(other_store, counter, pause_s=0.05)) as url:
        order = (str(folder), root, url, "never", 1, str(tmp_path / "counter"))
        assert await pulls(order, order) == [0, 0]
    assert counter.bytes == len(DATA)
    store = Store(folder)
    assert store.path_of(root).read_bytes() == DATA
    store.close()


MEASURE = """
import asyncio, json, sys
from pathlib import Path
from inference.models.fetch import fetch_file
from inference.models.http_client import open_http_client
from inference.models.sources import HttpSource
from inference.models.store import Store

def memory(field):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

async def main():
    folder, root, *urls = sys.argv[1:]
    store = Store(Path(folder))
    async with open_http_client() as client:
        open("/proc/self/clear_refs", "w").write("5")
        idle = memory("VmRSS")
        await fetch_file(store, root, [HttpSource(url, client) for url in urls])
    print(json.dumps(memory("VmHWM") - idle))

asyncio.run(main())
"""


@pytest.mark.parametrize("size", [256 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.heavy)])
async def test_memory_stays_flat_however_large_the_file(tmp_path: Path, other_store: Store, size: int) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(size)  # zeros: what it holds does not matter, but each leaf has another number in it
        for at in range(0, size, MIB):
            file.seek(at)
            file.write(at.to_bytes(8, "big"))
    root = await other_store.add(source, move=True, public=True)
    app = content_app(other_store, limits=PLENTY)
    async with serving(app) as one:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MEASURE, str(tmp_path / "models"), root, one, stdout=subprocess.PIPE
        )
        said, _ = await child.communicate()
    assert json.loads(said.decode().splitlines()[-1]) <= 64 * MIB
