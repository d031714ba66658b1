"""Whether stored files are still what their CIDs say: by a look at every opening, by hashing when the look differs.

Lives here: comparing stamps, hashing a file, quarantine. Everything blocks. In a store that cannot be written a changed
file is hashed once and remembered for as long as we run; a wrong one is no longer served.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from inference.models.cid import parse_cid
from inference.models.folders import Folders, stamp_of
from inference.models.hashing import Watch, count_wrong
from inference.models.index import FileRow, Index, Stamp
from inference.models.leaf_table import leaf_table
from inference.models.locks import in_use, locked
from inference.models.unixfs import Leaf
from inference.models.views import drop_dead_views
from market.errors import BlockInvalid, ContentUnavailable

_log = structlog.get_logger()


class Checker:
    def __init__(self, folders: Folders, index: Index) -> None:
        self._folders = folders
        self._index = index
        self._seen: dict[str, Stamp] = {}
        self._wrong: set[str] = set()

    def compare(self, root: str) -> tuple[FileRow, bool]:
        """What is known of a whole file, and whether it still looks the same. Raises ContentUnavailable."""
        row = None if root in self._wrong else self._index.file(root)
        try:
            now = stamp_of(self._folders.path_of(root).stat())
        except FileNotFoundError:
            row = None
        if row is None or not row.whole:
            raise not_here(root)
        return row, now == self._seen.get(root, row.stamp)

    def verify(self, root: str, watch: Watch) -> FileRow:
        """Hash every leaf, and the tree above them. Raises BlockInvalid, with the file in quarantine; Stopped."""
        row, same = self.compare(root)
        leaves = self.leaves_of(root)
        with self.opened(root) as descriptor:
            stamp = stamp_of(os.fstat(descriptor))
            wrong = count_wrong(descriptor, leaves, watch)
        if wrong or stamp.size_bytes != row.stamp.size_bytes:
            _log.error("model_file_wrong", cid=root, wrong_blocks=wrong, blocks=len(leaves))
            self._put_aside(root, stamp)
            raise BlockInvalid(
                f"The stored file {root} was damaged or changed: {wrong} of {len(leaves)} blocks do not hash.",
                next_step="It was moved to quarantine; pull or add the model again."
                if self._folders.writable
                else "The store is read-only: replace the file by hand, or pull the model into another store.",
            )
        row = replace(row, stamp=stamp)
        if not same:
            if self._folders.writable:
                self._index.save_file(row)
            else:
                self._seen[root] = stamp
            _log.warning("model_file_changed_but_intact", cid=root)
        return row

    @contextmanager
    def opened(self, root: str) -> Iterator[int]:
        """A descriptor that nobody takes away the file of. Raises ContentUnavailable."""
        try:
            holding = in_use(self._folders.path_of(root))
            descriptor = holding.__enter__()
        except FileNotFoundError:
            raise not_here(root) from None
        try:
            yield descriptor
        finally:
            holding.__exit__(None, None, None)

    def leaves_of(self, root: str) -> list[Leaf]:
        """Raises BlockInvalid if the index does not lead from the root to its leaves: then it was damaged."""
        try:
            return leaf_table(parse_cid(root), self._index.spans_of(root), self._index.nodes_of(root))
        except BlockInvalid as error:
            if self._folders.writable:
                self._index.drop_file(root)
            raise BlockInvalid(
                f"The index of the stored file {root} is damaged: {error.message}",
                next_step="Run `octo-node models gc`: the file is taken in again if it is what its name says.",
            ) from None

    def _put_aside(self, root: str, stamp: Stamp) -> None:
        if not self._folders.writable:
            self._wrong.add(root)
            return
        path = self._folders.path_of(root)
        with locked(self._folders.lock):
            if path.exists() and stamp_of(path.stat()).inode == stamp.inode:  # nobody has put a good one there
                path.replace(self._folders.quarantine / f"{root}.{secrets.token_hex(4)}")
                self._index.drop_file(root)
                drop_dead_views(self._folders)
                _log.warning("model_file_quarantined", cid=root)


def not_here(cid: str) -> ContentUnavailable:
    return ContentUnavailable(f"{cid[:80]} is not in this store.", next_step="Pull the model that it belongs to.")
