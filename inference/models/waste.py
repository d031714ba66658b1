"""What a store can do without: dead parts, quarantine, rows and files that have lost each other, old views.

Lives here: `collect`, and what may go at once when room is short. A part is dead when nobody has written to it for a
day and nobody holds its lock; a copy whose writer has died is dead at once. A file without a row was not removed by
us (the file goes before its row), so its index was lost: it is taken in again if its bytes hash to its name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from inference.models.cid import parse_cid
from inference.models.disk import Disk
from inference.models.folders import Folders, stamp_of
from inference.models.hashing import Watch, cut_file
from inference.models.index import FileRow, Index
from inference.models.locks import alone, locked
from inference.models.unixfs import PROFILES
from inference.models.views import drop_dead_views
from market.errors import EncodingInvalid
from market.values import value

_log = structlog.get_logger()

STALE_AFTER_S = 24 * 3600.0
"""Nobody takes a day off in the middle of a download that goes on."""


@value
class Collected:
    """What `collect` freed, and which files it took in again (their root CIDs)."""

    freed_bytes: int
    parts: int
    quarantined: int
    rows: int
    strays: int
    views: int
    adopted: Sequence[str]


def collect(folders: Folders, index: Index, disk: Disk, now: float, watch: Watch) -> Collected:
    """Blocking. Free what nothing needs; nothing that is in use, being pulled or being added is touched."""
    folders.need_write()
    adopted, strays, freed = [], 0, 0
    for path in list(folders.files.iterdir()):  # hashes perhaps, so not under the lock
        if index.file(path.name) is not None:
            continue
        row = _adopt(path, index, disk, now, watch)
        if row is not None:
            adopted.append(row)
            continue
        with locked(folders.lock), alone(path) as free:
            if free and index.file(path.name) is None:
                freed += _remove(path, disk)
                strays += 1
                _log.warning("stray_file_removed", name=path.name)
    with locked(folders.lock):
        parts, quarantined, bytes_ = drop_waste(folders, index, disk, now)
        rows = 0
        for file in index.files():
            part = folders.parts / f"{file.root}.part"
            if not folders.path_of(file.root).exists() and not part.exists() and _unlocked(folders, file.root):
                index.drop_file(file.root)
                rows += 1
        freed += bytes_ + index.drop_blocks()
        views = drop_dead_views(folders)
    return Collected(
        freed_bytes=freed, parts=parts, quarantined=quarantined, rows=rows, strays=strays, views=views, adopted=adopted
    )


def drop_waste(
    folders: Folders, index: Index, disk: Disk, now: float, *, but: Path | None = None
) -> tuple[int, int, int]:
    """Under the store's lock: dead parts and quarantine go. (parts, quarantined files, bytes)."""
    parts = quarantined = freed = 0
    for path in list(folders.parts.iterdir()):
        if path.suffix in (".map", ".lock") or path == but or not _is_dead(folders, path, now):
            continue
        freed += _remove(path, disk)
        parts += 1
        if path.suffix == ".part":
            disk.remove(path.with_suffix(".map"))
            row = index.file(path.stem)
            if row is not None and not row.whole:
                index.drop_file(path.stem)
    for path in list(folders.parts.glob("*.map")):
        if not path.with_suffix(".part").exists() and _unlocked(folders, path.stem):
            disk.remove(path)
    for path in list(folders.quarantine.iterdir()):
        freed += _remove(path, disk)
        quarantined += 1
    return parts, quarantined, freed


def drop_dead_copies(folders: Folders, now: float) -> None:
    """At start-up: what a killed process left in the middle of an add; unfinished pulls stay, to be resumed."""
    for path in list(folders.parts.glob("add-*")):
        if _is_dead(folders, path, now):
            path.unlink(missing_ok=True)


def _is_dead(folders: Folders, path: Path, now: float) -> bool:
    if path.suffix == ".part" and not _unlocked(folders, path.stem):
        return False
    try:
        if path.name.startswith("add-"):
            with alone(path) as free:
                return free
        newest = max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False
    return now - newest > STALE_AFTER_S


def _unlocked(folders: Folders, root: str) -> bool:
    """Nobody is pulling `root` now."""
    path = folders.parts / f"{root}.lock"
    if not path.exists():
        return True
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: Path, disk: Disk) -> int:
    """The bytes that were freed."""
    size = sum(entry.lstat().st_blocks * 512 for entry in (path, *path.rglob("*")))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        disk.remove(path)
    return size


def _adopt(path: Path, index: Index, disk: Disk, now: float, watch: Watch) -> str | None:
    """Take a file without a row in again if it is, in one of our profiles, what its name says."""
    try:
        wanted = parse_cid(path.name)
    except EncodingInvalid:
        return None
    if path.is_symlink() or not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for profile in PROFILES.values():
            dag = cut_file(descriptor, profile, watch, disk=disk)
            if dag.root == wanted:
                os.fchmod(descriptor, 0o444)
                disk.sync(descriptor)
                row = FileRow(
                    root=path.name,
                    whole=True,
                    public=False,
                    stamp=stamp_of(os.fstat(descriptor)),
                    used_ms=int(now * 1000),
                )
                index.save_file(row, leaves=dag.leaves, nodes=dag.nodes)
                _log.info("model_file_adopted", cid=path.name, profile=profile.name)
                return path.name
    finally:
        os.close(descriptor)
    return None
