"""Model files on disk, each under its root CID, served and memory-mapped from the same bytes.

Lives here: adding, opening, verifying, publishing. `files/<cid>` are plain read-only files; the index says
which leaf lies where. A file that changed on disk (size, mtime, inode) is hashed again before it is served,
and put into quarantine if it is no longer what its CID says. Knows no network: `fetch` brings bytes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_CBOR, RAW, Cid, check_block, cid_of_block, parse_cid
from inference.models.index import FileRow, Index, Stamp
from inference.models.partial import Partial, disk_errors
from inference.models.unixfs import PROFILE_2025, Leaf, Profile, build_file
from market.errors import BlockInvalid, ContentUnavailable
from market.values import decode_plain, value

T = TypeVar("T")
_log = structlog.get_logger()
_DISK_THREADS = 4
_STALE_AFTER_S = 24 * 3600.0
"""No add takes a day, and another process may be in the middle of one."""


@value
class StoredFile:
    root: str
    size_bytes: int
    public: bool


class OpenFile:
    """A stored file that was as it should be when it was opened."""

    def __init__(self, store: Store, descriptor: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._store = store
        self._descriptor = descriptor

    async def read(self, offset: int, length: int) -> bytes:
        return await self._store.in_thread(os.pread, self._descriptor, length, offset)


class Store:
    """`root` is a folder that belongs to the store. Disk work runs on the store's own four threads."""

    def __init__(self, root: Path) -> None:
        self.parts = root / "parts"
        self._files = root / "files"
        self._quarantine = root / "quarantine"
        for folder in (root, self.parts, self._files, self._quarantine):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self.parts)
        self._index = Index(root / "index.db")
        self._threads = ThreadPoolExecutor(_DISK_THREADS, "octo-store")
        self._verifying = asyncio.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._index.close()

    # ---- in ------------------------------------------------------------------------------------

    async def add(
        self,
        source: Path,
        *,
        move: bool = False,
        public: bool = False,
        profile: Profile = PROFILE_2025,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        """Take a file in and return its root CID. `move`: the source goes away, without a copy if it can.

        `progress` is called from a thread with the bytes hashed so far. Raises DiskFull, OSError.
        """
        return await self.in_thread(self._add, source, move, public, profile, progress)

    async def add_block(self, data: bytes, *, public: bool = False) -> str:
        """Keep a small DAG-CBOR block (a signed manifest) and return its CID."""
        decode_plain(data, limit_bytes=BLOCK_LIMIT_BYTES)
        cid = cid_of_block(DAG_CBOR, data)
        await self.in_thread(lambda: self._index.save_block(cid, data, public=public))
        return str(cid)

    async def set_public(self, cid: str, public: bool = True) -> None:
        """Whether the content listener may serve a root and all below it, or a block."""
        parsed = parse_cid(cid)
        await self.in_thread(self._index.set_public, parsed, public)

    async def remove(self, root: str) -> None:
        await self.in_thread(self._remove, root)

    # ---- out -----------------------------------------------------------------------------------

    def has(self, root: str) -> bool:
        row = self._index.file(root)
        return row is not None and row.whole and self._path(root).exists()

    def list(self) -> Sequence[StoredFile]:
        return [
            StoredFile(root=row.root, size_bytes=row.stamp.size_bytes, public=row.public)
            for row in self._index.files()
            if row.whole and self._path(row.root).exists()
        ]

    def blocks(self) -> Mapping[str, bytes]:
        """The small blocks that lie in the index, by CID."""
        return {str(cid): data for cid, data in self._index.blocks()}

    def path_of(self, root: str) -> Path:
        """Where the file lies. Never write to it. Raises ContentUnavailable."""
        if not self.has(root):
            raise _not_here(root)
        return self._path(root)

    async def checked_path(self, root: str) -> Path:
        """As `path_of`, for a reader that trusts the bytes: a file that changed on disk is hashed first.

        Raises BlockInvalid if it is no longer what its CID says (it is in quarantine then).
        """
        await self._check_stamp(root)
        return self._path(root)

    def serves(self, cid: str) -> bool:
        """Blocking. Whether a block or root is here and public; its bytes are not read."""
        parsed = parse_cid(cid)
        row = self._index.file(cid)
        if row is not None and row.whole and row.public:
            return True
        return bool(self._index.inline(parsed, public_only=True) or self._index.places(parsed, public_only=True))

    async def read_block(self, cid: str, *, public_only: bool = False) -> bytes:
        """One block, hashed before it is handed out. Raises ContentUnavailable, EncodingInvalid."""
        parsed = parse_cid(cid)
        data = await self.in_thread(lambda: self._index.inline(parsed, public_only=public_only))
        if data is not None:
            return data
        if parsed.codec == RAW:
            for root, offset, length in self._index.places(parsed, public_only=public_only):
                with contextlib.suppress(BlockInvalid, ContentUnavailable):
                    async with self.open_file(root) as file:
                        data = await file.read(offset, length)
                    try:
                        check_block(parsed, data)
                    except BlockInvalid:
                        await self.verify(root)
                        raise
                    return data
        raise _not_here(cid)

    @asynccontextmanager
    async def open_file(self, root: str, *, public_only: bool = False) -> AsyncIterator[OpenFile]:
        """Read a file by its root. Raises ContentUnavailable (also if it is not public), BlockInvalid."""
        row = await self._check_stamp(root, public_only)
        descriptor = await self.in_thread(os.open, self._path(root), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield OpenFile(self, descriptor, row.stamp.size_bytes)
        finally:
            os.close(descriptor)

    async def verify(self, root: str) -> None:
        """Hash every leaf. Raises BlockInvalid, with the file in quarantine, if one is not what it was."""
        async with self._verifying:
            await self.in_thread(self._verify, root)

    # ---- for fetch -----------------------------------------------------------------------------

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run blocking work. A cancelled caller waits for its end: no thread may outlive the file it uses."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def known_nodes(self, root: str) -> dict[Cid, bytes]:
        """Inner nodes that an earlier, unfinished pull of `root` has verified."""
        return self._index.nodes_of(root)

    def save_nodes(self, root: str, size_bytes: int, nodes: Mapping[Cid, bytes]) -> None:
        """Blocking. Remember the tree of a file that is still being fetched."""
        stamp = Stamp(size_bytes=size_bytes, mtime_ns=0, inode=0)
        self._index.save_file(FileRow(root=root, whole=False, public=False, stamp=stamp), nodes=nodes.items())

    def commit(self, root: str, partial: Partial, *, public: bool) -> None:
        """Blocking. A partial file whose leaves are all there becomes the file."""
        # The row goes first: a crash in between leaves a row without a file, which `has` sees through,
        # and a whole part that the next pull only has to rename. mtime and inode outlive a rename.
        row = FileRow(root=root, whole=True, public=public, stamp=_stamp(partial.finish()))
        self._index.save_file(row, leaves=partial.leaves)
        partial.part.replace(self._path(root))
        _sync_folder(self._files)
        partial.forget()

    # ---- blocking insides ----------------------------------------------------------------------

    def _path(self, root: str) -> Path:
        return self._files / str(parse_cid(root))

    def _add(
        self, source: Path, move: bool, public: bool, profile: Profile, progress: Callable[[int], None] | None
    ) -> str:
        own = self.parts / f"add-{secrets.token_hex(8)}"
        try:
            with disk_errors(source.stat().st_size):
                _take(source, own, move=move)
            dag = build_file(own, profile, progress=progress)
            root = str(dag.root)
            own.chmod(0o444)
            row = FileRow(root=root, whole=True, public=public, stamp=_stamp(own.stat()))
            self._index.save_file(row, leaves=dag.leaves, nodes=dag.nodes)
            own.replace(self._path(root))
        except BaseException:
            if move and own.exists() and not source.exists():
                own.replace(source)  # what was moved in goes back: a failed add loses nothing
            raise
        finally:
            own.unlink(missing_ok=True)
        _sync_folder(self._files)
        if move:
            source.unlink(missing_ok=True)
        return root

    def _remove(self, root: str) -> None:
        self._index.drop_file(root)
        self._path(root).unlink(missing_ok=True)

    async def _check_stamp(self, root: str, public_only: bool = False) -> FileRow:
        row, same = await self.in_thread(self._compare, root)
        if public_only and not row.public:
            raise _not_here(root)
        if not same:
            async with self._verifying:  # many readers, one hashing
                row, same = await self.in_thread(self._compare, root)
                if not same:
                    row = await self.in_thread(self._verify, root)
        return row

    def _compare(self, root: str) -> tuple[FileRow, bool]:
        row = self._index.file(root)
        try:
            now = _stamp(self._path(root).stat())
        except FileNotFoundError:
            row = None
        if row is None or not row.whole:
            raise _not_here(root)
        return row, now == row.stamp

    def _verify(self, root: str) -> FileRow:
        row, same = self._compare(root)
        leaves = self._index.leaves_of(root)
        stamp = _stamp(self._path(root).stat())
        wrong = _wrong_leaves(self._path(root), leaves)
        if wrong or stamp.size_bytes != row.stamp.size_bytes:
            self._path(root).replace(self._quarantine / f"{root}.{secrets.token_hex(4)}")
            self._index.drop_file(root)
            _log.error("model_file_quarantined", cid=root, wrong_blocks=len(wrong))
            raise BlockInvalid(
                f"The stored file {root} was damaged or changed: {len(wrong)} of {len(leaves)} blocks do not hash.",
                next_step="It was moved to quarantine; pull or add the model again.",
            )
        row = FileRow(root=root, whole=True, public=row.public, stamp=stamp)
        if not same:
            self._index.save_file(row)
            _log.warning("model_file_changed_but_intact", cid=root)
        return row


def _sweep(parts: Path) -> None:
    """Remove what a killed process left in the middle of an `add`; unfinished pulls (`.part`) stay, to be resumed."""
    for left in (*parts.glob("add-*"), *parts.glob("default-*")):
        if time.time() - left.lstat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _take(source: Path, own: Path, *, move: bool) -> None:
    if move:
        with contextlib.suppress(OSError):  # another file system: copy, as below
            source.replace(own)
            return
    shutil.copyfile(source, own)
    with own.open("rb+") as file:
        os.fsync(file.fileno())


def _stamp(seen: os.stat_result) -> Stamp:
    return Stamp(size_bytes=seen.st_size, mtime_ns=seen.st_mtime_ns, inode=seen.st_ino)


def _wrong_leaves(path: Path, leaves: Sequence[Leaf]) -> list[Leaf]:
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()

        def wrong(leaf: Leaf) -> bool:
            return hashlib.sha256(os.pread(descriptor, leaf.length, leaf.offset)).digest() != leaf.digest

        with ThreadPoolExecutor(2, "octo-verify") as pool:
            return [leaf for leaf, bad in zip(leaves, pool.map(wrong, leaves), strict=True) if bad]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_here(cid: str) -> ContentUnavailable:
    return ContentUnavailable(f"{cid[:80]} is not in this store.", next_step="Pull the model that it belongs to.")
