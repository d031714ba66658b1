"""The index's SQLite file: its tables, the upgrade of older ones, opening it where nothing may be written.

Lives here: the schema and what SQLite's errors become. Knows no query.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.models.disk import read_only
from market.errors import DiskFull, NodeMisconfigured

Connection = sqlite3.Connection

BUSY_S = 30.0
"""How long one process waits for another's transaction; the longest there is writes 40,000 leaves in under a second."""
_AGAIN_S = 0.01
_VERSION = 2
_FILES = """
create table if not exists files(
  id integer primary key, root text unique not null, size integer not null, whole integer not null,
  public integer not null, mtime_ns integer not null, inode integer not null);
create table if not exists nodes(
  digest blob not null, file integer not null references files(id) on delete cascade,
  data blob not null, primary key(digest, file));
create table if not exists blocks(cid text primary key, public integer not null, data blob not null) without rowid;
create index if not exists nodes_by_file on nodes(file);
"""
_LEAVES = """
create table {name}(
  file integer not null references files(id) on delete cascade, offset integer not null, length integer not null,
  key integer not null, wrap integer not null, primary key(file, offset)) without rowid;
"""
# The inner nodes name every leaf's digest already. Eight bytes of it find a leaf as well as 32 do, since what is found
# is hashed before it is served.
_REST = """
alter table files add column used_ms integer not null default 0;
alter table blocks add column kept integer not null default 1;
create table wraps(id integer primary key, head blob not null, tail blob not null, unique(head, tail));
create table links(parent text not null, child text not null, primary key(parent, child)) without rowid;
create index links_by_child on links(child);
create index leaves_by_key on leaves(key);
"""


def leaf_key(digest: bytes) -> int:
    """The first eight bytes of a digest, as SQLite's signed integer."""
    return int.from_bytes(digest[:8], "big", signed=True)


class Database:
    """`writer` and `reader` are the same connection where nothing may be written."""

    def __init__(self, writer: Connection, reader: Connection, copy: Path | None = None) -> None:
        self.writer = writer
        self.reader = reader
        self._copy = copy

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)


def open_index(path: Path, *, writable: bool) -> Database:
    """Raises DiskFull; NodeMisconfigured for an index that is damaged, newer than we are, or read-only and not ours."""
    with index_errors(path):
        if not writable:
            return _open_read_only(path)
        writer = _connect(path)
        keep_log(writer, busy_s=BUSY_S)
        writer.executescript("pragma synchronous=full; pragma foreign_keys=on;")
        _upgrade(writer)
        return Database(writer, _connect(path))


def _connect(path: Path) -> Connection:
    return sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=BUSY_S)


def keep_log(db: Connection, *, busy_s: float) -> str:
    """Write ahead; the journal's mode that came of it. SQLite does not wait for whoever else opens a new file in this
    moment: it says at once that the file is busy (sqlite.org/wal.html, section 9). Raises sqlite3.Error."""
    ends_s = time.monotonic() + busy_s
    while True:
        try:
            return str(db.execute("pragma journal_mode=wal").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends_s:
                raise
            time.sleep(_AGAIN_S)


def _open_read_only(path: Path) -> Database:
    """A file that nobody can write cannot change: "immutable" spares SQLite its locks and its shared memory.

    What a killed node left in the write-ahead log would be passed over then, so such an index is read from a copy.
    """
    copy = None
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        copy = Path(tempfile.mkdtemp(prefix="octo-index-"))
        for part in (path, log):
            shutil.copyfile(part, copy / part.name)
        only = _connect(copy / path.name)
        only.execute("pragma query_only=on")
    else:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        only = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    _check_version(only)
    if only.execute("pragma user_version").fetchone()[0] != _VERSION:
        raise read_only(path)  # an older one would have to be upgraded first
    return Database(only, only, copy)


def _upgrade(db: Connection) -> None:
    """Make the tables, or bring those of an older node up to date; all or nothing, once among all processes."""
    _check_version(db)
    db.execute("begin immediate")
    try:
        if db.execute("pragma user_version").fetchone()[0] == 0:
            _run(db, _FILES)
            if db.execute("select 1 from sqlite_master where name='leaves'").fetchone():
                _run(db, _LEAVES.format(name="newer"))
                db.create_function("leaf_key", 1, leaf_key, deterministic=True)
                db.execute("insert into newer select file, offset, length, leaf_key(digest), 0 from leaves")
                _run(db, "drop table leaves; alter table newer rename to leaves")
            else:
                _run(db, _LEAVES.format(name="leaves"))
            _run(db, _REST)
            db.execute(f"pragma user_version={_VERSION}")
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _run(db: Connection, script: str) -> None:
    """`executescript` would commit first."""
    for statement in script.split(";"):
        db.execute(statement)


def _check_version(db: Connection) -> None:
    (found,) = db.execute("pragma user_version").fetchone()
    if found > _VERSION:
        raise NodeMisconfigured(
            f"The model index is of version {found}; this node knows versions up to {_VERSION}.",
            next_step="Start the newer node that made it, or set another folder for models.",
        )


@contextmanager
def index_errors(path: Path) -> Iterator[None]:
    """What SQLite says, as errors that name the cause and the next step."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE"):
            raise DiskFull(
                "The disk is full: the model index could not be written.",
                next_step="Free some space and start again; nothing was lost.",
            ) from None
        if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            raise NodeMisconfigured(
                f"The model index {path} is damaged.",
                next_step="Move it away and run `octo-node models gc`: whole files are taken in again by their names.",
            ) from None
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
            raise read_only(path) from None
        if name.startswith("SQLITE_BUSY"):
            raise NodeMisconfigured(
                f"Another process has held the model index {path} for {BUSY_S:g} s.",
                next_step="See which other octo-node uses this folder, and stop it if it hangs.",
            ) from None
        raise
