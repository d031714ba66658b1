"""Model files on disk, each under its root CID, served and memory-mapped from the same bytes.

Lives here: the store's face, in the order in, out, care; and the threads that do its work. `files/<cid>` are plain
read-only files; the index says which leaf lies where, directories and manifests lie in it whole. A file that changed
on disk is hashed again before it is served. Any number of processes may use one store. Knows no network: `fetch`
brings bytes in.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from inference.models.checking import Checker, not_here
from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_CBOR, DAG_PB, Cid, cid_of_block, parse_cid
from inference.models.directory import DirectoryDag
from inference.models.disk import Disk
from inference.models.eviction import Room, StoredFile
from inference.models.folders import Folders
from inference.models.hashing import Watch
from inference.models.holdings import Holdings
from inference.models.index import FileRow, Index, Stamp
from inference.models.intake import Intake, Order
from inference.models.leaf_table import Span, leaf_table
from inference.models.locks import locked
from inference.models.partial import Partial
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.unixfs import PROFILE_2025, Leaf, Profile
from inference.models.views import make_view
from inference.models.waste import Collected, collect, drop_dead_copies
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured
from market.values import decode_plain, value

T = TypeVar("T")
_DISK_THREADS = 4
_TOUCH_EVERY_MS = 60_000
"""A use is written down once a minute a file: a model served at 1,000 requests a second costs what an idle one does."""


@value
class Verdict:
    """What `verify_all` found of one file; `error` is empty if every byte is right."""

    root: str
    size_bytes: int
    error: str


class OpenFile:
    """A stored file that was as it should be when it was opened; nobody evicts it meanwhile."""

    def __init__(self, store: Store, descriptor: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._store = store
        self._descriptor = descriptor

    def fileno(self) -> int:
        """For sendfile(2), with an offset: the descriptor's own position is nobody's. Never close it."""
        return self._descriptor

    async def read(self, offset: int, length: int) -> bytes:
        return await self._store.in_thread(os.pread, self._descriptor, length, offset)


class Store:
    """`root` is a folder that belongs to the store. Disk work runs on the store's own four threads.

    `quota_bytes`: models and downloads may take so much; beyond it the least recently used go. None: nothing ever goes
    by itself. A store that cannot be written is open for reading; what writes raises NodeMisconfigured. Raises
    NodeMisconfigured, DiskFull. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        *,
        quota_bytes: int | None = None,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = Folders(root)
        self._disk = disk or Disk()
        self._clock = clock
        self.parts = self._folders.parts
        if self._folders.writable:
            drop_dead_copies(self._folders, clock())
            with locked(self._folders.lock):
                self._index = Index(self._folders.index)
        else:
            self._index = Index(self._folders.index, writable=False)
        self._checker = Checker(self._folders, self._index)
        self._room = Room(self._folders, self._index, self._disk, quota_bytes, clock=clock)
        self._intake = Intake(self._folders, self._index, self._room, self._disk, clock)
        self._holdings = Holdings(self._folders, self._index, self._disk)
        self._threads = ThreadPoolExecutor(_DISK_THREADS, "octo-store")
        self._verifying = asyncio.Lock()
        self._touched: dict[str, int] = {}

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._index.close()

    @property
    def writable(self) -> bool:
        return self._folders.writable

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

        A file that is here already is not stored again. `progress` is called from a thread with the bytes hashed so
        far. Raises DiskFull, RequestInvalid (no plain file, or one that is being written), OSError.
        """
        order = Order(source=source, move=move, public=public, profile=profile)
        return await self._watched(self._intake.add, order, heard=progress)

    async def add_block(self, data: bytes, *, public: bool = False) -> str:
        """Keep a small DAG-CBOR block (a signed manifest) and return its CID."""
        decode_plain(data, limit_bytes=BLOCK_LIMIT_BYTES)
        cid = cid_of_block(DAG_CBOR, data)
        self._folders.need_write()
        await self.in_thread(lambda: self._index.save_blocks(cid, [(cid, data)], public=public))
        return str(cid)

    async def add_directory(self, dag: DirectoryDag, *, public: bool = False) -> str:
        """Keep a directory's own nodes, verified, and return its root; the files may come before or after it.

        Raises BlockInvalid.
        """
        self._folders.need_write()
        await self.in_thread(self._holdings.add_directory, dag, public)
        return str(dag.root)

    async def set_public(self, cid: str, public: bool = True) -> None:
        """Whether the content listener may serve a root (a file, a directory with all below it) or a block.

        A file stays public for as long as any public directory leads to it, whatever its own mark says.
        """
        parsed = parse_cid(cid)
        self._folders.need_write()
        await self.in_thread(self._index.set_public, parsed, public)

    async def remove(self, root: str, *, below: bool = False, keep: Collection[str] = ()) -> None:
        """Forget a file, directory or block. `below`: with a directory's files, but those that another directory
        leads to, that are public by themselves, or that `keep` names (what manifests need)."""
        self._folders.need_write()
        await self.in_thread(self._holdings.remove, str(parse_cid(root)), below, frozenset(keep))

    async def make_room(self, new_bytes: int) -> None:
        """Evict what was not used for the longest time until `new_bytes` more fit under the quota. Raises DiskFull."""
        await self.in_thread(self._room.make, new_bytes)

    # ---- out -----------------------------------------------------------------------------------

    def has(self, root: str) -> bool:
        row = self._index.file(root)
        return row is not None and row.whole and self._folders.path_of(root).exists()

    def list(self) -> Sequence[StoredFile]:
        """Blocking."""
        return self._room.files()

    def blocks(self) -> Mapping[str, bytes]:
        """The small blocks (manifests) that lie in the index, by CID."""
        return {str(cid): data for cid, data in self._index.blocks(DAG_CBOR)}

    def directories(self) -> Sequence[str]:
        """Blocking. The roots that `add_directory` was given."""
        return [str(cid) for cid, _ in self._index.blocks(DAG_PB)]

    def path_of(self, root: str) -> Path:
        """Where the file lies. Never write to it. Raises ContentUnavailable."""
        if not self.has(root):
            raise not_here(root)
        return self._folders.path_of(root)

    async def checked_path(self, root: str) -> Path:
        """As `path_of`, for a reader that trusts the bytes: a file that changed on disk is hashed first.

        Raises BlockInvalid if it is no longer what its CID says (it is in quarantine then).
        """
        await self._check_stamp(root)
        return self._folders.path_of(root)

    @contextmanager
    def using(self, root: str) -> Iterator[None]:
        """While the block runs, no process evicts a file (of a directory: any file below it).

        Blocks for moments. Raises ContentUnavailable.
        """
        with ExitStack() as stack:
            roots = self._index.files_below(root)
            if not roots:
                raise not_here(root)
            for one in roots:
                stack.enter_context(self._checker.opened(one))
            yield

    async def folder_of(self, files: Mapping[str, str]) -> Path:
        """A folder of hard links (relative path -> root CID), for engines that want one; it takes no room.

        It lasts until one of its files is removed. Raises ContentUnavailable, EncodingInvalid for an unsafe path.
        """
        paths = {name: await self.checked_path(root) for name, root in files.items()}
        return await self.in_thread(make_view, self._folders, paths)

    def serves(self, cid: str) -> bool:
        """Blocking. Whether a block or root is here and public; its bytes are not read."""
        parsed = parse_cid(cid)
        row = self._index.file(cid)
        if row is not None and row.whole and (row.public or self._index.is_public(cid)):
            return True
        return bool(self._index.inline(parsed, public_only=True) or self._index.places(parsed, public_only=True))

    async def resolve(self, root: str, path: str, *, public_only: bool = False) -> str:
        """The CID at the end of a path ("a/b.gguf") below a directory, or `root` if the path is empty.

        Raises ContentUnavailable if there is none, or it may not be told; EncodingInvalid for an unsafe path.
        """
        return await self.in_thread(self._holdings.resolve, root, path, public_only)

    async def read_block(self, cid: str, *, public_only: bool = False) -> bytes:
        """One block, hashed before it is handed out. Raises ContentUnavailable, EncodingInvalid."""
        parsed = parse_cid(cid)
        data = await self.in_thread(lambda: self._index.inline(parsed, public_only=public_only))
        if data is not None:
            return data
        for place in await self.in_thread(lambda: self._index.places(parsed, public_only=public_only)):
            with suppress(BlockInvalid, ContentUnavailable):
                async with self.open_file(place.root) as file:
                    data = await file.read(place.leaf.offset, place.leaf.length)
                if place.leaf.matches(data):
                    return place.leaf.block(data)
                await self.verify(place.root)
        raise not_here(cid)

    @asynccontextmanager
    async def open_file(self, root: str, *, public_only: bool = False) -> AsyncIterator[OpenFile]:
        """Read a file by its root. Raises ContentUnavailable (also if it is not public), BlockInvalid."""
        row = await self._check_stamp(root, public_only)
        await self.touch([root])
        with ExitStack() as stack:
            descriptor = await self.in_thread(stack.enter_context, self._checker.opened(root))
            yield OpenFile(self, descriptor, row.stamp.size_bytes)

    # ---- care ----------------------------------------------------------------------------------

    async def touch(self, roots: Iterable[str]) -> None:
        """These were used just now. Written at most once a minute a file, and not synced."""
        now = int(self._clock() * 1000)
        late = {root: now for root in roots if now - self._touched.get(root, 0) >= _TOUCH_EVERY_MS}
        if late and self.writable:
            self._touched.update(late)
            with suppress(NodeMisconfigured):  # a store that became read-only is read on
                await self.in_thread(self._index.touch, late)

    async def verify(self, root: str) -> None:
        """Hash every leaf. Raises BlockInvalid, with the file in quarantine, if one is not what it was."""
        async with self._verifying:
            await self._watched(self._checker.verify, root)

    async def verify_all(self, progress: OnProgress = quiet) -> Sequence[Verdict]:
        """Hash all that is stored; what is wrong goes to quarantine. Cancel it at any time."""
        files = await self.in_thread(self.list)
        total, before = sum(file.size_bytes for file in files), 0
        loop = asyncio.get_running_loop()
        verdicts = []
        for file in files:

            def heard(done: int, root: str = file.root, start: int = before) -> None:
                told = Progress(what=root, done_bytes=start + done, total_bytes=total)
                loop.call_soon_threadsafe(progress, told)

            error = ""
            try:
                async with self._verifying:
                    await self._watched(self._checker.verify, file.root, heard=heard)
            except ContentUnavailable:
                continue  # removed meanwhile
            except BlockInvalid as wrong:
                error = str(wrong)
            before += file.size_bytes
            verdicts.append(Verdict(root=file.root, size_bytes=file.size_bytes, error=error))
        return verdicts

    async def gc(self) -> Collected:
        """Free what nothing needs: dead parts, quarantine, rows and files that lost each other, old views.

        A file without a row whose bytes are what its name says is taken in again: its index was lost, not it.
        """
        return await self._watched(lambda watch: collect(self._folders, self._index, self._disk, self._clock(), watch))

    # ---- for fetch -----------------------------------------------------------------------------

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run blocking work. A cancelled caller waits for its end: no thread may outlive the file it uses."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # nobody else will ask
            raise

    async def open_partial(self, root: str, leaves: Sequence[Leaf], size_bytes: int) -> Partial:
        """The part of a pull, new or taken up again, with room for all of it under the quota. Raises DiskFull.

        The caller holds `open_pull_lock(store.parts, root)`, and closes the part.
        """
        return await self.in_thread(self._room.open_partial, root, leaves, size_bytes)

    def known_nodes(self, root: str) -> dict[Cid, bytes]:
        """Inner nodes that an earlier, unfinished pull of `root` has verified."""
        return self._index.nodes_of(root)

    def save_nodes(self, root: str, size_bytes: int, nodes: Mapping[Cid, bytes]) -> None:
        """Blocking. Remember the tree of a file that is still being fetched."""
        self._folders.need_write()
        stamp = Stamp(size_bytes=size_bytes, mtime_ns=0, inode=0)
        self._index.save_file(FileRow(root=root, whole=False, public=False, stamp=stamp), nodes=nodes.items())

    def commit(self, root: str, partial: Partial, *, public: bool) -> None:
        """Blocking. A partial file whose leaves are all there becomes the file.

        Raises BlockInvalid if the nodes that `save_nodes` was given are not those of these leaves.
        """
        spans = [Span(leaf.offset, leaf.length, leaf.head, leaf.tail) for leaf in partial.leaves]
        if leaf_table(parse_cid(root), spans, self._index.nodes_of(root)) != list(partial.leaves):
            raise BlockInvalid(f"the nodes kept of {root} are not those of the leaves that were fetched.")
        row = FileRow(root=root, whole=True, public=public, stamp=partial.finish())
        self._intake.put_away(partial.part, row, leaves=partial.leaves)
        partial.forget()

    # ---- blocking insides ----------------------------------------------------------------------

    async def _watched(
        self, work: Callable[..., T], *arguments: object, heard: Callable[[int], None] | None = None
    ) -> T:
        """Blocking work whose last argument is a `Watch`; it stops soon after its caller is cancelled."""
        watch = Watch(heard)
        running = asyncio.ensure_future(self.in_thread(work, *arguments, watch))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            watch.stop.set()
            running.cancel()
            await asyncio.wait([running])
            raise

    async def _check_stamp(self, root: str, public_only: bool = False) -> FileRow:
        row, same, public = await self.in_thread(self._look, root)
        if public_only and not public:
            raise not_here(root)
        if not same:
            async with self._verifying:  # many readers, one hashing
                row, same = await self.in_thread(self._checker.compare, root)
                if not same:
                    row = await self._watched(self._checker.verify, root)
        return row

    def _look(self, root: str) -> tuple[FileRow, bool, bool]:
        row, same = self._checker.compare(root)
        return row, same, row.public or self._index.is_public(root)
