"""The node's books in one SQLite file: channels, receipts, and what it remembers of peers.

Implements `market.ports.Books`. A save is on the disk when it returns, and a channel never goes back.
Values lie there as the bytes of `market.values.encode`; the plain columns beside them only serve
questions. Amounts are 32-byte blobs: SQLite's integers end at 9.2 OCTO. Knows no network and no clock.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import sqlite_utils

from market.channel import Channel, ChannelState
from market.errors import NodeMisconfigured, StepNotAllowed
from market.record import ReceiptRecord
from market.task import TaskId
from market.values import decode, encode
from node.database import Lane, connect

STORE_LIMIT_BYTES = 32 << 30
RECORD_LIMIT_BYTES = 16 << 20  # a record of MAX_TOKENS_LIMIT tokens, twice over
_STATES = list(ChannelState)

Role = Literal["client", "provider"]


class Store:
    """Use `open_store`."""

    def __init__(self, writer: Lane, reader: Lane) -> None:
        self._writer = writer
        self._reader = reader

    async def save(self, channel: Channel | None, *, receipts: Iterable[ReceiptRecord] = ()) -> None:
        """Write all of it or nothing, durably, before returning; saving the same again changes nothing.

        Raises StepNotAllowed if the books hold a higher state of the channel, or another receipt for the
        same channel, task and seq; DiskFull when there is no room.
        """
        rows = [_receipt_row(record) for record in receipts]
        channel_row = _channel_row(channel) if channel is not None else None

        def write(connection: sqlite3.Connection) -> None:
            if channel_row is not None:
                _put_channel(connection, channel_row)
            for row in rows:
                _put_receipt(connection, row)

        await self._writer.run(write)

    async def channels(self) -> Sequence[Channel]:
        """Every channel ever saved, oldest first."""

        def read(connection: sqlite3.Connection) -> list[Channel]:
            rows = connection.execute("SELECT body FROM channels ORDER BY rowid")
            return [decode(Channel, body, limit_bytes=RECORD_LIMIT_BYTES) for (body,) in rows]

        return await self._reader.run(read)

    async def receipts(self, *, task: TaskId) -> Sequence[ReceiptRecord]:
        """All receipts of a task, in the order they were saved."""
        return await self._records("WHERE task = ? ORDER BY rowid", task)

    async def receipt_by_cid(self, cid: str) -> ReceiptRecord | None:
        records = await self._records("WHERE cid = ? LIMIT 1", cid)
        return records[0] if records else None

    async def latest_receipts(
        self, limit: int = 20, *, role: Role | None = None, final_only: bool = False
    ) -> Sequence[ReceiptRecord]:
        """The newest first, at most `limit` (and never over 1,000: records carry their tokens)."""
        return await self._records(
            "WHERE role = coalesce(?, role) AND final >= ? ORDER BY rowid DESC LIMIT ?",
            role,
            int(final_only),
            min(limit, 1000),
        )

    async def standing(self) -> Mapping[str, Mapping[str, float]]:
        """What was last kept of each peer; `node.standing` says what the facts mean."""
        rows = await self._reader.run(lambda c: c.execute("SELECT peer, facts FROM standing").fetchall())
        return {peer: json.loads(facts) for peer, facts in rows}

    async def keep_standing(self, facts: Mapping[str, Mapping[str, float] | None]) -> None:
        """Replace what is kept of these peers; None forgets one."""
        kept = [(peer, json.dumps(dict(known))) for peer, known in facts.items() if known is not None]
        gone = [(peer,) for peer, known in facts.items() if known is None]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO standing (peer, facts) VALUES (?, ?)", kept)
            connection.executemany("DELETE FROM standing WHERE peer = ?", gone)

        await self._writer.run(write)

    async def _records(self, clause: str, *arguments: object) -> list[ReceiptRecord]:
        query = f"SELECT record FROM receipts {clause}"  # noqa: S608 - clauses are ours, values are bound

        def read(connection: sqlite3.Connection) -> list[ReceiptRecord]:  # decoding too: off the event loop
            rows = connection.execute(query, arguments)
            return [decode(ReceiptRecord, record, limit_bytes=RECORD_LIMIT_BYTES) for (record,) in rows]

        return await self._reader.run(read)


@asynccontextmanager
async def open_store(path: Path, *, limit_bytes: int = STORE_LIMIT_BYTES) -> AsyncIterator[Store]:
    """Open or make the store; the folder around it must be held (`node.folder`): one process writes.

    Raises NodeMisconfigured for a file that is damaged, unwritable, or of a newer version than this.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # answers lie in receipts: nobody else reads them
    connection = connect(path, limit_bytes=limit_bytes)
    try:
        _migrate(connection, path)
        reading = connect(path, limit_bytes=limit_bytes, read_only=True)
    except BaseException:
        connection.close()
        raise
    writer = Lane(path, connection, grouped=True, name="octo-store-write")
    reader = Lane(path, reading, grouped=False, name="octo-store-read")
    try:
        yield Store(writer, reader)
    finally:
        await reader.aclose()
        await writer.aclose()  # last, so that SQLite folds the log into the file


def _version_1(database: sqlite_utils.Database) -> None:
    database.table("channels").create(
        {"role": str, "id": bytes, "state": str, "deposit": bytes, "paid": bytes, "leaves": int, "root": bytes,
         "body": bytes},
        if_not_exists=True,
    )  # fmt: skip
    database.table("channels").create_index(["role", "id"], unique=True, if_not_exists=True)
    database.table("receipts").create(
        {"role": str, "channel": bytes, "task": bytes, "seq": int, "cid": str, "final": int, "record": bytes},
        if_not_exists=True,
    )
    database.table("receipts").create_index(["role", "channel", "task", "seq"], unique=True, if_not_exists=True)
    database.table("receipts").create_index(["task"], if_not_exists=True)
    database.table("receipts").create_index(["cid"], if_not_exists=True)
    database.table("standing").create({"peer": str, "facts": str}, pk="peer", if_not_exists=True)


_MIGRATIONS: Sequence[Callable[[sqlite_utils.Database], None]] = (_version_1,)
"""Number n brings the file from version n to n+1. Each may run twice: a kill can fall before the number is written."""


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise NodeMisconfigured(
            f"{path} was written by a newer octo-node (schema {version}, this one knows {len(_MIGRATIONS)}).",
            next_step="Update octo-node, or use another OCTO_DATA_DIR.",
        )
    for number, migration in enumerate(_MIGRATIONS[version:], start=version + 1):
        migration(sqlite_utils.Database(connection))
        connection.execute(f"PRAGMA user_version = {number}")


_ChannelRow = tuple[str, bytes, str, bytes, bytes, int, bytes, bytes]


def _channel_row(channel: Channel) -> _ChannelRow:
    return (
        channel.role, channel.id, str(channel.state), channel.deposit.to_bytes(32, "big"),
        channel.paid.to_bytes(32, "big"), channel.receipts.size, channel.receipts.root(), encode(Channel, channel),
    )  # fmt: skip


def _put_channel(connection: sqlite3.Connection, row: _ChannelRow) -> None:
    role, channel_id, state, deposit, paid, leaves, root, _ = row
    before = connection.execute(
        "SELECT state, deposit, paid, leaves, root FROM channels WHERE role = ? AND id = ?", (role, channel_id)
    ).fetchone()
    if before is None:
        connection.execute(
            "INSERT INTO channels (role, id, state, deposit, paid, leaves, root, body) VALUES (?,?,?,?,?,?,?,?)", row
        )
        return
    lower = (
        "its state" if _STATES.index(ChannelState(state)) < _STATES.index(ChannelState(before[0]))
        else "its deposit" if deposit < before[1]  # big-endian blobs of one length order like their numbers
        else "what was paid" if paid < before[2]
        else "its receipts" if leaves < before[3] or (leaves == before[3] and root != before[4])
        else None
    )  # fmt: skip
    if lower is not None:
        raise StepNotAllowed(f"channel {channel_id.hex()} would go back on {lower}; the books keep the higher state.")
    connection.execute(
        "UPDATE channels SET state=?, deposit=?, paid=?, leaves=?, root=?, body=? WHERE role=? AND id=?",
        (*row[2:], role, channel_id),
    )


_ReceiptRow = tuple[str, bytes, bytes, int, str, int, bytes]


def _receipt_row(record: ReceiptRecord) -> _ReceiptRow:
    receipt = record.receipt.read()
    return (
        record.role, receipt.channel, receipt.task, receipt.seq, record.receipt.cid(), int(receipt.final),
        encode(ReceiptRecord, record),
    )  # fmt: skip


def _put_receipt(connection: sqlite3.Connection, row: _ReceiptRow) -> None:
    before = connection.execute(
        "SELECT cid FROM receipts WHERE role = ? AND channel = ? AND task = ? AND seq = ?", row[:4]
    ).fetchone()
    if before is None:
        connection.execute(
            "INSERT INTO receipts (role, channel, task, seq, cid, final, record) VALUES (?,?,?,?,?,?,?)", row
        )
    elif before[0] != row[4]:
        raise StepNotAllowed(
            f"receipt {row[3]} of task {row[2].hex()} exists already as {before[0]}; {row[4]} would be equivocation."
        )
