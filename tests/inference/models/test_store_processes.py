"""Several processes on one store, killed at any moment; and a store that cannot be written."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC, build_file
from market.errors import NodeMisconfigured
from tests.inference.models.store_kit import MIB, bend, put, seeded

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[3]

ADDER = """
import asyncio, sys
from pathlib import Path
from inference.models.store import Store
async def main():
    store = Store(Path(sys.argv[1]))
    print("up", flush=True)
    while True:
        for source in sys.argv[2:]:
            root = await store.add(Path(source))
            print(root, flush=True)
            await store.remove(root)
asyncio.run(main())
"""
PULLER = """
import asyncio, sys
from pathlib import Path
from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC, build_file
async def main():
    store, source = Store(Path(sys.argv[1])), Path(sys.argv[2])
    dag, data = build_file(source, PROFILE_CLASSIC), source.read_bytes()
    root = str(dag.root)
    print("up", flush=True)
    async with open_pull_lock(store.parts, root):
        store.save_nodes(root, len(data), dict(dag.nodes))
        partial = await store.open_partial(root, dag.leaves, len(data))
        for number in partial.missing():
            leaf = dag.leaves[number]
            assert partial.accept(number, data[leaf.offset : leaf.offset + leaf.length])
            if number % 4 == 0:
                partial.save()
                print(number, flush=True)
        store.commit(root, partial, public=False)
    print("whole", flush=True)
asyncio.run(main())
"""
ALL_AT_ONCE = """
import asyncio, sys
from pathlib import Path
from inference.models.store import Store
async def main():
    store = Store(Path(sys.argv[1]))
    for _ in range(3):
        for source in sys.argv[2:]:
            root = await store.add(Path(source))
            async with store.open_file(root) as file:
                assert len(await file.read(0, 10)) == 10
            await store.set_public(root)
    print("done", flush=True)
    store.close()
asyncio.run(main())
"""


def start(script: str, *arguments: object, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def kill(child: subprocess.Popen[str]) -> list[str]:
    """What it had said before it was killed."""
    child.send_signal(signal.SIGKILL)
    said, _ = child.communicate()
    return said.split()


async def test_an_add_killed_at_any_moment_leaves_a_sound_store(tmp_path: Path) -> None:
    sources = [tmp_path / name for name in "ab"]
    for source in sources:
        source.write_bytes(seeded(6 * MIB, source.name))
    chance = random.Random(4)
    for _ in range(8):
        child = start(ADDER, tmp_path / "models", *sources)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        time.sleep(chance.random() * 0.15)
        kill(child)
        store = Store(tmp_path / "models")
        try:
            for file in store.list():
                await store.verify(file.root)
            await store.gc()
            assert list(store.parts.iterdir()) == []
        finally:
            store.close()
    assert all(source.exists() for source in sources)


async def test_a_pull_killed_at_any_moment_keeps_what_it_had_saved(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(seeded(5 * MIB))
    dag = build_file(source, PROFILE_CLASSIC)
    root = str(dag.root)
    chance = random.Random(5)
    saved: set[int] = set()
    for _ in range(40):
        child = start(PULLER, tmp_path / "models", source)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        said = [child.stdout.readline().strip() for _ in range(chance.randrange(3))]
        time.sleep(chance.random() * 0.003)
        said += kill(child)
        saved |= {int(word) for word in said if word.isdigit()}
        store = Store(tmp_path / "models")
        try:
            if store.has(root):
                await store.verify(root)
                break
            assert "whole" not in said
            async with open_pull_lock(store.parts, root):
                partial = await store.open_partial(root, dag.leaves, dag.size_bytes)
                here = partial.part.read_bytes()
                assert all(
                    leaf.matches(here[leaf.offset : leaf.offset + leaf.length])
                    for leaf, done in zip(dag.leaves, partial.done, strict=True)
                    if done
                )
                assert all(partial.done[number] for number in saved)
                partial.close()
        finally:
            store.close()
    else:
        raise AssertionError("the pull never came to its end")
    assert saved


async def test_four_processes_add_the_same_files_at_once(tmp_path: Path) -> None:
    sources = [tmp_path / str(number) for number in range(3)]
    for source in sources:
        source.write_bytes(seeded(2 * MIB + 5, source.name))
    children = [start(ALL_AT_ONCE, tmp_path / "models", *sources) for _ in range(4)]
    assert [child.communicate(timeout=120)[0] for child in children] == ["done\n"] * 4
    store = Store(tmp_path / "models")
    try:
        assert len(list((tmp_path / "models" / "files").iterdir())) == len(store.list()) == 3
        assert all(file.public for file in store.list())
        assert [verdict.error for verdict in await store.verify_all()] == ["", "", ""]
        assert list(store.parts.iterdir()) == []
    finally:
        store.close()


# ---- a store that cannot be written --------------------------------------------------------------

READER = """
import asyncio, sys
from pathlib import Path
from inference.models.store import Store
from market.errors import NodeMisconfigured
async def main():
    store, root = Store(Path(sys.argv[1])), sys.argv[2]
    assert not store.writable
    assert [file.root for file in store.list()] == [root]
    async with store.open_file(root, public_only=True) as file:
        assert len(await file.read(0, 100)) == 100
    assert await store.read_block(root, public_only=True)
    with store.using(root):
        await store.verify(root)
    for write in (
        lambda: store.add(Path(sys.executable)), lambda: store.set_public(root, False), lambda: store.remove(root),
        lambda: store.gc(), lambda: store.make_room(1), lambda: store.add_block(b"\\xa0"),
        lambda: store.open_partial(root, [], 0), lambda: store.folder_of({"a": root}),
    ):
        try:
            await write()
        except NodeMisconfigured as error:
            assert "read-only" in str(error) and error.next_step
        else:
            raise AssertionError("written")
    assert store.has(root)
    store.close()
    print("read")
asyncio.run(main())
"""
MOUNTED_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def namespaces(script: str, *arguments: object) -> list[str]:
    """A command prefix that runs `script` with a mount table of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this kernel or container lets nobody make a mount table of their own")
    return [*command, "sh", "-c", script, "sh", *map(str, arguments)]


@pytest.mark.parametrize("killed", [False, True])
async def test_a_store_on_a_read_only_file_system_is_read(tmp_path: Path, killed: bool) -> None:
    """Also one whose writer was killed: what is only in SQLite's log is seen."""
    models = tmp_path / "models"
    store = Store(models)
    root = await put(store, tmp_path, seeded(2 * MIB + 5), public=True)
    if killed:
        shutil.copytree(models, tmp_path / "copy")
        store.close()
        shutil.rmtree(models)
        (tmp_path / "copy").rename(models)
        assert (models / "index.db-wal").stat().st_size > 0
    else:
        store.close()
    child = start(READER, models, root, before=namespaces(MOUNTED_READ_ONLY, models))
    assert child.communicate(timeout=60)[0].endswith("read\n")


async def test_a_folder_without_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    script = (
        "import sys; from pathlib import Path; from inference.models.store import Store\n"
        "from market.errors import NodeMisconfigured\n"
        "try: Store(Path(sys.argv[1]))\n"
        "except NodeMisconfigured as error: print(error)"
    )
    child = start(script, empty, before=namespaces(MOUNTED_READ_ONLY, empty))
    said = child.communicate(timeout=60)[0]
    assert str(empty) in said
    assert "Mount it writable" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission is ever refused to root")
async def test_a_store_of_somebody_else_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    root = await put(store, tmp_path, seeded(MIB + 5))
    store.close()
    folders = [path for path in (tmp_path / "models").rglob("*") if path.is_dir()]
    (tmp_path / "models" / "index.db").chmod(0o444)
    (tmp_path / "models" / "store.lock").chmod(0o444)
    for folder in (*folders, tmp_path / "models"):
        folder.chmod(0o555)
    try:
        store = Store(tmp_path / "models")
        assert not store.writable
        await store.verify(root)
        with pytest.raises(NodeMisconfigured):
            await store.remove(root)
        store.close()
    finally:
        for folder in (tmp_path / "models", *folders):
            folder.chmod(0o755)


WRONG_READER = """
import asyncio, sys
from pathlib import Path
from inference.models.store import Store
from market.errors import BlockInvalid, ContentUnavailable
async def main():
    store = Store(Path(sys.argv[1]))
    for expected in (BlockInvalid, ContentUnavailable):
        try:
            await store.checked_path(sys.argv[2])
        except expected as error:
            print(type(error).__name__, "read-only" in str(error))
asyncio.run(main())
"""


async def test_a_wrong_file_of_a_read_only_store_is_not_served(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    root = await put(store, tmp_path, seeded(MIB + 5))
    bend(store.path_of(root))
    store.close()
    child = start(WRONG_READER, tmp_path / "models", root, before=namespaces(MOUNTED_READ_ONLY, tmp_path / "models"))
    assert child.communicate(timeout=60)[0].endswith("BlockInvalid True\nContentUnavailable False\n")
