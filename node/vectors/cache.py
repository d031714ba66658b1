"""The vectors that this node bought and keeps: looked up before it buys, forgotten when their user says so.

Lives here: whose vectors may be told to whom, counting, and that a cache which fails is an empty one: a damaged file is
set aside (`vectors.db.damaged`), one that cannot be written keeps nothing. Knows no HTTP and no provider.

Each user (an API key, or the owner) finds only what it paid for itself, unless the owner has users share: else what a
request costs would tell what another one had embedded. Of private and confidential texts nothing is kept.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from market.errors import NodeMisconfigured
from market.task import Privacy
from market.work import EmbedInput
from node.vectors.file import VectorFile
from node.vectors.sealing import About, KeptVector, Seal, Sealer, user_mark

log = structlog.get_logger()
T = TypeVar("T")
R = TypeVar("R")

KEPT_PRIVACY = frozenset({Privacy.PUBLIC, Privacy.SHARED})
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})


@dataclass(slots=True)
class VectorCounts:
    """Since the start. `hits` + `misses` = inputs that were looked up, each once a request. `damaged`: vectors that
    were not what was sealed, and files that were set aside."""

    hits: int = 0
    misses: int = 0
    kept: int = 0
    evicted: int = 0
    damaged: int = 0
    forgotten: int = 0


class EmbeddingCache:
    """Use `open_embedding_cache`. `secret` is 32 bytes, the same each time: under another, nothing is found."""

    def __init__(self, path: Path, *, limit_bytes: int, shared: bool, secret: Callable[[], bytes]) -> None:
        self.limit_bytes = limit_bytes
        self.counts = VectorCounts()
        self.size_bytes = 0
        self.vectors = 0
        self.epoch = 0
        """Grows when something is forgotten: what was bought before is not kept after."""
        self._path = path
        self._shared = shared
        self._secret = secret
        self._file: VectorFile | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octo-vectors")

    async def find(
        self, whose: str, about: About, inputs: Sequence[EmbedInput], *, engines: Collection[str]
    ) -> Mapping[EmbedInput, KeptVector]:
        """What is kept of `inputs`, each of them once, for this user, made by one of these engine classes: others make
        other bits."""

        def read(file: VectorFile) -> tuple[dict[EmbedInput, KeptVector], int]:
            seals = self._seals(whose, about, inputs)
            found = file.read([seal.place for seal in seals.values()])
            opened = {given: seal.open(found[seal.place]) for given, seal in seals.items() if seal.place in found}
            wrong = [seals[given].place for given, kept in opened.items() if kept is None]
            if wrong:
                file.remove(wrong)
            return {given: kept for given, kept in opened.items() if kept is not None}, len(wrong)

        nothing: tuple[dict[EmbedInput, KeptVector], int] = ({}, 0)
        kept, wrong = await self._do(read, nothing)
        told = {given: vector for given, vector in kept.items() if vector.engine in engines}
        self.counts.hits += len(told)
        self.counts.misses += len(inputs) - len(told)
        self.counts.damaged += wrong
        return told

    async def keep(self, whose: str, about: About, vectors: Mapping[EmbedInput, KeptVector], *, epoch: int) -> None:
        """Keep what this user bought since `epoch`. A cache that cannot is no error."""

        def write(file: VectorFile) -> tuple[int, int]:
            if epoch != self.epoch:
                return 0, 0
            user = user_mark(self._secret(), whose)
            seals = self._seals(whose, about, vectors)
            return file.write([(seals[given].place, user, seals[given].close(kept)) for given, kept in vectors.items()])

        kept, evicted = await self._do(write, (0, 0))
        self.counts.kept += kept
        self.counts.evicted += evicted

    async def disown(self, whose: str, about: About, inputs: Collection[EmbedInput]) -> None:
        """These are not what they should be."""

        def remove(file: VectorFile) -> None:
            file.remove([seal.place for seal in self._seals(whose, about, inputs).values()])

        await self._do(remove, None)
        self.counts.damaged += len(inputs)

    async def forget(self, whose: str) -> int:
        """Throw away what this user bought; how many vectors that were. Raises NodeMisconfigured if they stay."""
        user = user_mark(self._secret(), whose)
        return await self._forget(lambda file: file.forget(user))

    async def clear(self) -> int:
        """Throw away everything; how many vectors that were. Raises NodeMisconfigured if they stay."""

        def remove(file: VectorFile) -> int:
            count = file.rows
            self._close()
            remove_vectors(self._path)
            return count

        return await self._forget(remove)

    def facts(self) -> Mapping[str, Any]:
        return {
            "vectors": self.vectors,
            "size_bytes": self.size_bytes,
            "limit_bytes": self.limit_bytes,
            "shared": self._shared,
            **asdict(self.counts),
        }

    async def load(self) -> None:
        """Find what an earlier run left."""
        await self._do(lambda _file: None, None)

    async def aclose(self) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown()

    def _seals(self, whose: str, about: About, inputs: Iterable[EmbedInput]) -> Mapping[EmbedInput, Seal]:
        sealer = Sealer(self._secret(), "" if self._shared else whose, about)
        return {given: sealer.seal(given) for given in inputs}

    async def _forget(self, job: Callable[[VectorFile], int]) -> int:
        self.epoch += 1
        before = self.vectors
        none: tuple[int, ...] = ()
        done = await self._do(lambda file: (job(file),), none)
        count = done[0] if done else before  # a disk that is full, or broken: then all of it goes
        await self._in_thread(self._sweep, not done)
        self.counts.forgotten += count
        return count

    def _sweep(self, everything: bool) -> None:
        try:
            _aside(self._path).unlink(missing_ok=True)
            if everything:
                with suppress(sqlite3.Error):
                    self._close()
                remove_vectors(self._path)
                self.vectors = self.size_bytes = 0
        except OSError as error:
            raise NodeMisconfigured(
                f"the kept vectors in {self._path.parent} cannot be removed ({error.strerror}).",
                next_step="Check the folder's owner and mode, or remove its files by hand.",
            ) from None

    # ---- in the one thread that knows the file ----

    async def _do(self, job: Callable[[VectorFile], T], otherwise: T) -> T:
        return await self._in_thread(self._guarded, job, otherwise)

    async def _in_thread(self, work: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _guarded(self, job: Callable[[VectorFile], T], otherwise: T) -> T:
        try:
            result = job(self._opened())
            file = self._opened()
            self.vectors, self.size_bytes = file.rows, file.size_bytes
        except sqlite3.Error as error:
            self._failed(error, getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _BROKEN)
        except OSError as error:
            self._failed(error, False)
        else:
            return result
        return otherwise

    def _opened(self) -> VectorFile:
        if self._file is None:
            self._file = VectorFile(self._path, limit_bytes=self.limit_bytes)
        return self._file

    def _failed(self, error: Exception, broken: bool) -> None:
        why = getattr(error, "sqlite_errorname", type(error).__name__)
        log.warning("vectors_not_usable", why=why, set_aside=broken)
        with suppress(sqlite3.Error):
            self._close()
        if broken:
            self.counts.damaged += 1
            self.vectors = self.size_bytes = 0
            with suppress(OSError):
                self._path.replace(_aside(self._path))
                remove_vectors(self._path)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def remove_vectors(path: Path) -> None:
    """The file and what SQLite keeps beside it. Raises OSError."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@asynccontextmanager
async def open_embedding_cache(
    path: Path, *, limit_bytes: int, shared: bool, secret: Callable[[], bytes]
) -> AsyncIterator[EmbeddingCache | None]:
    """What the settings ask for; None if that is nothing, and then what an earlier run kept is thrown away."""
    if not limit_bytes:
        with suppress(OSError):
            _aside(path).unlink(missing_ok=True)
            remove_vectors(path)
        yield None
        return
    cache = EmbeddingCache(path, limit_bytes=limit_bytes, shared=shared, secret=secret)
    await cache.load()
    try:
        yield cache
    finally:
        await cache.aclose()
