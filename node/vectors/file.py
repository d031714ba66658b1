"""One SQLite file of sealed vectors: what is used least recently goes first when its size is reached.

Lives here: tables, sizes, eviction. Knows no seal: names and bytes alone. Blocks; one thread at a time. Raises
sqlite3.Error and OSError as they come; `node.vectors.cache` says what they mean.

A kill loses at most what was being written (WAL). A power cut may lose the last moments, too (synchronous=NORMAL):
a cache is not worth an fsync.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from inference.models.database import keep_log

PAGE_BYTES = 4096
LEAST_PAGES = 64
"""Tables and indexes alone take five, and a vector of 65,536 numbers takes 64."""
_SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS vectors (place BLOB PRIMARY KEY, user BLOB NOT NULL, used INTEGER NOT NULL,
    sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS vectors_by_user ON vectors (user);
CREATE INDEX IF NOT EXISTS vectors_by_use ON vectors (used);
"""
_ROW_BYTES = 192
"""A row's name, user and use, in the table and in three indexes."""
_BUSY_S = 5.0
_AT_ONCE = 500
_EVICTED_AT_ONCE = 16
_SPARE_PAGES = 16
"""To remove a row may take a page for a moment, and indexes grow."""

Row = tuple[bytes, bytes, bytes]
"""Name, user, sealed bytes."""


class VectorFile:
    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        """Raises sqlite3.DatabaseError for a file that is damaged, or of another schema."""
        self._most_pages = max(limit_bytes // PAGE_BYTES, LEAST_PAGES)
        self._limit_pages = self._most_pages - _SPARE_PAGES
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA page_size = 4096")
        keep_log(self._connection, busy_s=_BUSY_S)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA secure_delete = ON")
        version = self._ask("PRAGMA user_version")
        if version not in (0, _SCHEMA):
            raise sqlite3.DatabaseError("another schema")
        if not version:
            self._connection.executescript(_TABLES)
            self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._connection.execute("SELECT place, user, used, sealed FROM vectors LIMIT 1").fetchone()
        if self._ask("PRAGMA page_count") > self._limit_pages:  # the limit was lowered
            with self._all_or_nothing():
                self._make_room(0)
            self._connection.execute("VACUUM")
        self._connection.execute(f"PRAGMA max_page_count = {self._most_pages}")
        self.rows = self._ask("SELECT count(*) FROM vectors")

    @property
    def size_bytes(self) -> int:
        return self._used_pages() * PAGE_BYTES

    def read(self, places: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """What lies there, which counts as used now."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(places), _AT_ONCE):
            some = places[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT place, sealed FROM vectors WHERE place IN ({marks})"  # noqa: S608 - marks alone
            found.update(self._connection.execute(query, some))
        if found:
            with suppress(sqlite3.OperationalError), self._all_or_nothing():  # a full disk is no reason not to read
                now = self._now()
                self._connection.executemany(
                    "UPDATE vectors SET used = ? WHERE place = ?", [(now, place) for place in found]
                )
        return found

    def write(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Put rows in, in place of what had their names: how many, and how many others had to go.

        Rows beyond half of the whole size are left out: they would only push one another out.
        """
        fitting, pages = _fitting(rows, self._limit_pages // 2)
        with self._all_or_nothing():
            replaced = self._remove([place for place, _, _ in fitting])
            evicted = self._make_room(pages)
            now = self._now()
            self._connection.executemany(
                "INSERT INTO vectors (place, user, used, sealed) VALUES (?, ?, ?, ?)",
                [(place, user, now, sealed) for place, user, sealed in fitting],
            )
        self.rows += len(fitting) - replaced - evicted
        return len(fitting), evicted

    def remove(self, places: Sequence[bytes]) -> None:
        with self._all_or_nothing():
            removed = self._remove(places)
        self.rows -= removed

    def forget(self, user: bytes) -> int:
        """Remove all of a user's, so that their bytes are gone from the disk: how many there were."""
        with self._all_or_nothing():
            removed = self._connection.execute("DELETE FROM vectors WHERE user = ?", (user,)).rowcount
        self.rows -= removed
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # older pages lie in the log until then
        return removed

    def close(self) -> None:
        self._connection.close()

    def _remove(self, places: Sequence[bytes]) -> int:
        return self._connection.executemany(
            "DELETE FROM vectors WHERE place = ?", [(place,) for place in places]
        ).rowcount

    def _make_room(self, pages: int) -> int:
        """Evict until so many pages are free, or nothing is left to evict."""
        evicted = 0
        while self._used_pages() + pages > self._limit_pages:
            gone = self._connection.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY used, rowid LIMIT ?)",
                (_EVICTED_AT_ONCE,),
            ).rowcount
            if gone <= 0:
                break
            evicted += gone
        return evicted

    def _used_pages(self) -> int:
        return self._ask("PRAGMA page_count") - self._ask("PRAGMA freelist_count")

    def _now(self) -> int:
        """Each use comes after all before it, also after a restart and whatever the clock says."""
        return self._ask("SELECT coalesce(max(used), 0) + 1 FROM vectors")

    def _ask(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite rolls back by itself when a disk is full
                self._connection.execute("ROLLBACK")
            raise


def _fitting(rows: Sequence[Row], limit_pages: int) -> tuple[Sequence[Row], int]:
    """As many of the first rows as fit, and the pages that they take: more rows share a page, the longest take more."""
    spent = 0
    for at, (_, _, sealed) in enumerate(rows):
        size = len(sealed) + _ROW_BYTES
        size = size * 2 if PAGE_BYTES // 3 < size <= PAGE_BYTES else size  # what is left of its page stays empty
        if -(-(spent + size) // PAGE_BYTES) > limit_pages:
            return rows[:at], -(-spent // PAGE_BYTES)
        spent += size
    return rows, -(-spent // PAGE_BYTES)
