"""Taking files in: copied or moved, hashed from the bytes that are kept, on the disk before they count.

Lives here: `add`, and the one step by which a file becomes the store's (a pull ends with it too). At every instant a
file to be moved is either where it was or in the store; nothing is ever kept twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from inference.models.cid import Cid
from inference.models.disk import Disk, disk_errors
from inference.models.eviction import Room
from inference.models.folders import Folders, stamp_of
from inference.models.hashing import Watch, cut_file
from inference.models.index import FileRow, Index
from inference.models.locks import locked
from inference.models.unixfs import FileDag, Leaf, Profile
from market.errors import RequestInvalid
from market.values import value


@value
class Order:
    """A file to take in; `move`: it goes away from where it was."""

    source: Path
    move: bool
    public: bool
    profile: Profile


class Intake:
    """Everything blocks. `clock` gives seconds since 1970."""

    def __init__(self, folders: Folders, index: Index, room: Room, disk: Disk, clock: Callable[[], float]) -> None:
        self._folders = folders
        self._index = index
        self._room = room
        self._disk = disk
        self._clock = clock

    def add(self, order: Order, watch: Watch) -> str:
        """Raises RequestInvalid for what is no plain file or changes meanwhile; DiskFull, OSError, Stopped."""
        self._folders.need_write()
        with _open_source(order.source) as descriptor:
            seen = os.fstat(descriptor)
            with disk_errors(seen.st_size):
                dag = None
                if any(row.whole and row.stamp.size_bytes == seen.st_size for row in self._index.files()):
                    dag = cut_file(descriptor, order.profile, watch, disk=self._disk)  # it may be here already
                    watch.again()
                    if not self._keep(str(dag.root), order.public):
                        dag = self._take(order, descriptor, seen, dag, watch)
                else:
                    dag = self._take(order, descriptor, seen, None, watch)
        if order.move:
            self._disk.remove(order.source)
        return str(dag.root)

    def put_away(
        self, path: Path, row: FileRow, *, leaves: Iterable[Leaf] = (), nodes: Iterable[tuple[Cid, bytes]] = ()
    ) -> None:
        """A file whose bytes are on the disk becomes the store's, unless it was here already: then `path` goes."""
        # The row goes first: a crash in between leaves a row without a file, which the store sees through, and a
        # whole part that the next pull only has to rename. mtime and inode outlive a rename.
        with locked(self._folders.lock), disk_errors(row.stamp.size_bytes):
            if self._keep(row.root, row.public):
                self._disk.remove(path)
                return
            self._index.save_file(replace(row, used_ms=int(self._clock() * 1000)), leaves=leaves, nodes=nodes)
            self._disk.rename(path, self._folders.path_of(row.root))
            self._disk.sync_folder(self._folders.files)

    def _keep(self, root: str, public: bool) -> bool:
        """Whether the very file is here, unchanged: it stays, since an engine may have it mapped."""
        row = self._index.file(root)
        if row is None or not row.whole:
            return False
        try:
            if stamp_of(self._folders.path_of(root).stat()) != row.stamp:
                return False
        except FileNotFoundError:
            return False
        self._index.save_file(replace(row, public=public, used_ms=int(self._clock() * 1000)))
        return True

    def _take(self, order: Order, descriptor: int, seen: os.stat_result, dag: FileDag | None, watch: Watch) -> FileDag:
        if order.move and _may_move(order.source, seen, self._folders.files):
            self._room.make(seen.st_size, on_disk=0, but=order.source)  # one of our parts counts already
            dag = dag or cut_file(descriptor, order.profile, watch, disk=self._disk)
            if self._move(order, descriptor, seen, dag):
                return dag
            watch.again()
        return self._copy(order, descriptor, watch)

    def _copy(self, order: Order, descriptor: int, watch: Watch) -> FileDag:
        own = self._folders.parts / f"add-{secrets.token_hex(8)}"
        copy = self._room.create(own, os.fstat(descriptor).st_size)
        try:
            fcntl.flock(copy, fcntl.LOCK_EX)  # tells others that somebody lives who writes this
            dag = cut_file(descriptor, order.profile, watch, copy=copy, disk=self._disk)
            os.fchmod(copy, 0o444)
            self._disk.sync(copy)
            self._settle(own, order, dag, os.fstat(copy))
        except BaseException:
            self._disk.remove(own)
            raise
        finally:
            os.close(copy)
        return dag

    def _move(self, order: Order, descriptor: int, seen: os.stat_result, dag: FileDag) -> bool:
        """Rename a file that was hashed where it lies. False if this cannot be done after all."""
        try:
            os.fchmod(descriptor, 0o444)
        except PermissionError:
            return False  # somebody else's, who could go on writing to it
        try:
            self._disk.sync(descriptor)
            now = os.fstat(descriptor)
            if stamp_of(now) != stamp_of(seen) or now.st_ino != order.source.lstat().st_ino:
                raise RequestInvalid(f"{order.source.name} was changed while it was being added.")
            self._settle(order.source, order, dag, now)
        except BaseException as error:
            os.fchmod(descriptor, stat.S_IMODE(seen.st_mode))
            if isinstance(error, OSError) and error.errno == errno.EXDEV:
                return False
            raise
        return True

    def _settle(self, path: Path, order: Order, dag: FileDag, seen: os.stat_result) -> None:
        row = FileRow(root=str(dag.root), whole=True, public=order.public, stamp=stamp_of(seen))
        self.put_away(path, row, leaves=dag.leaves, nodes=dag.nodes)


@contextmanager
def _open_source(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestInvalid(f"{path.name} is not a plain file.", next_step="Name a file, or add a folder as such.")
        yield descriptor
    finally:
        os.close(descriptor)


def _may_move(source: Path, seen: os.stat_result, folder: Path) -> bool:
    """A plain file with one name on our file system: a second name would be a way to write to it."""
    own = source.lstat()
    return stat.S_ISREG(own.st_mode) and own.st_nlink == 1 and seen.st_dev == folder.stat().st_dev
