"""The no-copy index: which file, offset and length holds the bytes of a CID.

Lives here: the SQLite tables and every query. Knows no model file's content and no network. Leaves stay in the model
file that the engine maps; only inner nodes and small blocks (manifests, directories) lie inline: 0.16 MB of index for
1 GiB of model in 1 MiB leaves, 0.47 MB in 256 KiB ones (measured). The digests of leaves stand in the inner nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.models.cid import DAG_PB, Cid, parse_cid
from inference.models.database import Connection, index_errors, leaf_key, open_index
from inference.models.leaf_table import Span
from inference.models.unixfs import Leaf
from market.values import value

_UP = (
    "with recursive up(cid) as (select ? union select l.parent from links l join up on l.child=up.cid) "
    "select exists(select 1 from up join files f on f.root=up.cid where f.public) "
    "or exists(select 1 from up join blocks b on b.cid=up.cid where b.public)"
)
_DOWN = (
    "with recursive down(cid) as (select ? union select l.child from links l join down on l.parent=down.cid) "
    "select down.cid from down join files f on f.root=down.cid where f.whole"
)
_ORPHANS = (
    "with recursive kept(cid) as (select cid from blocks where kept "
    "union select l.child from links l join kept on l.parent=kept.cid) "
    "select cid from blocks where cid not in (select cid from kept)"
)


@value
class Stamp:
    """What the file system said of a file when its bytes were last hashed; a difference means "hash it again"."""

    size_bytes: int
    mtime_ns: int
    inode: int


@value
class FileRow:
    """`public` is the file's own mark; a public directory above it opens it too (`Index.is_public`)."""

    root: str
    whole: bool
    public: bool
    stamp: Stamp
    used_ms: int = 0


@value
class Place:
    """Where the bytes of a leaf lie, and the protobuf around them in its block."""

    root: str
    leaf: Leaf


class Index:
    """One connection that writes, one that reads: a query never waits for a write's fsync. Threads share both."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._path = path
        self._database = open_index(path, writable=writable)

    def close(self) -> None:
        with self._writing, self._reading:
            self._database.close()

    # ---- files ---------------------------------------------------------------------------------

    def save_file(self, row: FileRow, *, leaves: Iterable[Leaf] = (), nodes: Iterable[tuple[Cid, bytes]] = ()) -> None:
        """Replace what is known of a root, all or nothing. A root that was public stays public."""
        stamp = row.stamp
        with self._write() as db:
            db.execute(
                "insert into files(root, size, whole, public, mtime_ns, inode, used_ms) values(?,?,?,?,?,?,?) "
                "on conflict(root) do update set size=excluded.size, whole=excluded.whole, "
                "public=max(public, excluded.public), mtime_ns=excluded.mtime_ns, inode=excluded.inode, "
                "used_ms=max(used_ms, excluded.used_ms)",
                (row.root, stamp.size_bytes, row.whole, row.public, stamp.mtime_ns, stamp.inode, row.used_ms),
            )
            (file,) = db.execute("select id from files where root=?", (row.root,)).fetchone()
            wraps: dict[tuple[bytes, bytes], int] = {(b"", b""): 0}
            for leaf in leaves:
                around = (leaf.head, leaf.tail)
                if around not in wraps:
                    wraps[around] = _wrap_id(db, around)
                values = (file, leaf.offset, leaf.length, leaf_key(leaf.digest), wraps[around])
                db.execute("insert or replace into leaves values(?,?,?,?,?)", values)
            db.executemany(
                "insert or ignore into nodes values(?,?,?)", ((cid.digest, file, data) for cid, data in nodes)
            )

    def file(self, root: str) -> FileRow | None:
        rows = self._rows("select root, whole, public, size, mtime_ns, inode, used_ms from files where root=?", root)
        return _file_row(rows[0]) if rows else None

    def files(self) -> list[FileRow]:
        rows = self._rows("select root, whole, public, size, mtime_ns, inode, used_ms from files order by id")
        return [_file_row(row) for row in rows]

    def drop_file(self, root: str) -> None:
        with self._write() as db:
            db.execute("delete from files where root=?", (root,))

    def touch(self, used_ms: Mapping[str, int]) -> None:
        """When files were last used. Not synced: a power loss may forget it, and nothing else."""
        with self._write(durable=False) as db:
            db.executemany(
                "update files set used_ms=max(used_ms, ?) where root=?", [(ms, r) for r, ms in used_ms.items()]
            )

    def nodes_of(self, root: str) -> dict[Cid, bytes]:
        """Inner nodes known for a root, whole or still being fetched."""
        rows = self._rows("select digest, data from nodes where file=(select id from files where root=?)", root)
        return {Cid(codec=DAG_PB, digest=digest): data for digest, data in rows}

    def spans_of(self, root: str) -> list[Span]:
        """Where the leaves of a root lie, in file order; the inner nodes say what they hash to (`leaf_table`)."""
        rows = self._rows(
            "select l.offset, l.length, ifnull(w.head, x''), ifnull(w.tail, x'') from leaves l "
            "left join wraps w on w.id=l.wrap where l.file=(select id from files where root=?) order by l.offset",
            root,
        )
        return [Span(*row) for row in rows]

    def places(self, cid: Cid, *, public_only: bool) -> list[Place]:
        """Where whole files may hold a leaf with this digest, whatever the codec that it was asked for under."""
        rows = self._rows(
            "select f.root, f.public, l.offset, l.length, ifnull(w.head, x''), ifnull(w.tail, x'') "
            "from leaves l join files f on f.id=l.file left join wraps w on w.id=l.wrap "
            "where l.key=? and f.whole order by l.file limit 64",
            leaf_key(cid.digest),
        )
        return [
            Place(root=root, leaf=Leaf(offset, length, cid.digest, head, tail))
            for root, public, offset, length, head, tail in rows
            if not public_only or public or self.is_public(root)
        ]

    # ---- blocks in the index itself --------------------------------------------------------------

    def inline(self, cid: Cid, *, public_only: bool) -> bytes | None:
        """An inner node of a whole file, or a block that was kept by itself."""
        name = str(cid)
        for (data,) in self._rows("select data from blocks where cid=?", name):
            if not public_only or self.is_public(name):
                return bytes(data)
        rows = self._rows(
            "select f.root, f.public, n.data from nodes n join files f on f.id=n.file where n.digest=? and f.whole",
            cid.digest,
        )
        for root, public, data in rows:
            if not public_only or public or self.is_public(root):
                return bytes(data)
        return None

    def save_blocks(
        self,
        root: Cid,
        blocks: Iterable[tuple[Cid, bytes]],
        links: Iterable[tuple[Cid, Cid]] = (),
        *,
        public: bool = False,
    ) -> None:
        """Keep a block, or a directory's nodes: `root` for itself, the others as long as `links` lead to them."""
        with self._write() as db:
            for cid, data in blocks:
                own = cid == root
                db.execute(
                    "insert into blocks(cid, public, kept, data) values(?,?,?,?) on conflict(cid) do update "
                    "set public=max(public, excluded.public), kept=max(kept, excluded.kept)",
                    (str(cid), own and public, own, data),
                )
            db.executemany("insert or ignore into links values(?,?)", ((str(a), str(b)) for a, b in links))

    def blocks(self, codec: int) -> list[tuple[Cid, bytes]]:
        """Blocks that are kept for their own sake."""
        rows = self._rows("select cid, data from blocks where kept order by cid")
        return [(cid, data) for cid, data in ((parse_cid(text), data) for text, data in rows) if cid.codec == codec]

    def drop_blocks(self, root: str | None = None) -> int:
        """Forget `root`, and every block that nothing kept leads to any more; the bytes that were dropped."""
        with self._write() as db:
            if root is not None:
                db.execute("update blocks set kept=0, public=0 where cid=?", (root,))
            gone = db.execute(_ORPHANS).fetchall()
            (size,) = db.execute(
                f"select ifnull(sum(length(data)), 0) from blocks where cid in ({_ORPHANS})"  # noqa: S608 - a literal
            ).fetchone()
            db.executemany("delete from blocks where cid=?", gone)
            db.execute("delete from links where parent not in (select cid from blocks)")
            db.execute("delete from wraps where id not in (select wrap from leaves)")
        return int(size)

    def files_below(self, directory: str) -> list[str]:
        """Roots of the whole files that a directory leads to (or itself, if it is a file)."""
        return [root for (root,) in self._rows(_DOWN, directory)]

    def is_linked(self, cid: str) -> bool:
        """Whether a directory that is here names it."""
        return bool(self._rows("select 1 from links where child=? limit 1", cid))

    # ---- public marks ----------------------------------------------------------------------------

    def is_public(self, cid: str) -> bool:
        """Whether a root, or a block kept in the index, is public: by its own mark or a directory's above it."""
        return bool(self._rows(_UP, cid)[0][0])

    def set_public(self, cid: Cid, public: bool) -> None:
        """Mark a file's root or a block of the index; what is not there is left alone."""
        with self._write() as db:
            db.execute("update files set public=? where root=?", (public, str(cid)))
            db.execute("update blocks set public=? where cid=?", (public, str(cid)))

    # ---- how -------------------------------------------------------------------------------------

    def _rows(self, query: str, *arguments: object) -> list[Any]:
        with self._reading, index_errors(self._path):
            return self._database.reader.execute(query, arguments).fetchall()

    @contextmanager
    def _write(self, *, durable: bool = True) -> Iterator[Connection]:
        with self._writing, index_errors(self._path):
            db = self._database.writer
            if not durable:
                db.execute("pragma synchronous=normal")
            try:
                db.execute("begin immediate")
                try:
                    yield db
                    db.execute("commit")
                except BaseException:
                    if db.in_transaction:
                        db.execute("rollback")
                    raise
            finally:
                if not durable:
                    db.execute("pragma synchronous=full")


def _wrap_id(db: Connection, around: tuple[bytes, bytes]) -> int:
    db.execute("insert or ignore into wraps(head, tail) values(?,?)", around)
    (found,) = db.execute("select id from wraps where head=? and tail=?", around).fetchone()
    return int(found)


def _file_row(row: Sequence[Any]) -> FileRow:
    root, whole, public, size, mtime_ns, inode, used_ms = row
    stamp = Stamp(size_bytes=size, mtime_ns=mtime_ns, inode=inode)
    return FileRow(root=root, whole=bool(whole), public=bool(public), stamp=stamp, used_ms=used_ms)
