"""Taking a model into the store: 1 GiB, copied and moved, beside `openssl dgst -sha256` of the file; and the index.

The rival only reads and hashes. Ours reads, hashes every leaf, writes the copy, waits until it is on the disk, and
commits the index. The file is in the page cache for both; they take turns.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rows import RESULTS, as_dicts, compared, measured
from inference.models.store import Store
from inference.models.unixfs import PROFILE_2025, PROFILE_CLASSIC, Profile

SIZE_BYTES = 1 << 30
RUNS = 5
INDEX_GOAL_PER_MILLE = 0.5
_SEED = b"octo/bench/adding/1"
_RIVAL = "openssl dgst -sha256 of the same file"


def run() -> list[dict[str, Any]]:
    """Speeds in MB/s (10^6 bytes), medians of paired runs; the index in thousandths of the model's size."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise RuntimeError("openssl is the rival, and is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=RESULTS.parent) as name:
        folder = Path(name)
        source = folder / "model"
        _write_model(source)
        copies, moves, rivals, index = [], [], [], []
        for _ in range(RUNS):
            rivals.append(
                _speed(lambda: subprocess.run([openssl, "dgst", "-sha256", source], check=True, capture_output=True))
            )
            speed, size = _add(folder, source, PROFILE_2025, move=False)
            copies.append(speed)
            index.append(size)
            moves.append(_add(folder, source, PROFILE_2025, move=True)[0])
        classic = _add(folder, source, PROFILE_CLASSIC, move=False)[1]
    return as_dicts(
        [
            compared("model_added_by_copy", "MB/s", copies, rivals, _RIVAL, at_least=1.0),
            compared("model_added_by_move", "MB/s", moves, rivals, _RIVAL, at_least=1.0),
            measured("model_index_1mib_leaves", "per mille of the model", index, at_most=INDEX_GOAL_PER_MILLE),
            measured("model_index_256kib_leaves", "per mille of the model", [classic], at_most=INDEX_GOAL_PER_MILLE),
        ]
    )


def _add(folder: Path, source: Path, profile: Profile, *, move: bool) -> tuple[float, float]:
    """MB/s of one add, and what the index takes after the store was closed, in thousandths of the file."""
    store = Store(folder / "store")
    found: list[str] = []

    async def add() -> None:
        found.append(await store.add(source, move=move, profile=profile))

    try:
        speed = _speed(lambda: asyncio.run(add()))
        kept = store.path_of(found[0])
    finally:
        store.close()
    index = sum(path.stat().st_size for path in (folder / "store").glob("index.db*"))
    if move:
        kept.rename(source)
    shutil.rmtree(folder / "store")
    return speed, 1000 * index / SIZE_BYTES


def _speed(work: Callable[[], object]) -> float:
    os.sync()  # what the run before left to the disk (a freed gibibyte to discard) is not this one's
    start = time.perf_counter()
    work()
    return SIZE_BYTES / (time.perf_counter() - start) / 1e6


def _write_model(path: Path) -> None:
    """The same bytes in every run, on the disk and in the page cache."""
    with path.open("wb") as file:
        for number in range(SIZE_BYTES >> 20):
            file.write(hashlib.shake_128(_SEED + number.to_bytes(8, "big")).digest(1 << 20))
        file.flush()
        os.fsync(file.fileno())
