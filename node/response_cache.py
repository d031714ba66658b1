"""The answers that this node tells again: files in its data folder, an index of them in memory.

    cache/answers/<place>.<whose>      32 bytes of sha-256, then the answer as DAG-CBOR (`market.kept`)

`place` is where a buyer's key leads, `whose` a hash of the peer that asked first. A file that was torn by a kill, or
moved, is thrown away when it is met; one that is too old at the latest with the next sweep. Whether what a whole file
says is true is not decided here: the seller compares it with the receipt it was signed for. Least recently used answers
go first when the size is reached.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from market.errors import EncodingInvalid, NodeMisconfigured, OctoError
from market.kept import KEPT_LIMIT_BYTES, Kept, decode_kept, encode_kept
from market.ports import Clock
from node.folder import write_whole

log = structlog.get_logger()

SWEEP_S = 600.0
_HASH_BYTES = 32
_WHOSE_BYTES = 8
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{16})")
_BLOCK_BYTES = 4096
"""A file takes whole blocks of its disk: ten thousand short answers are 40 MB there."""


@dataclass(slots=True)
class CacheCounts:
    """Since the start. `hits` + `misses` = look-ups; `damaged` files were torn or did not say what was signed."""

    hits: int = 0
    misses: int = 0
    kept: int = 0
    evicted: int = 0
    expired: int = 0
    damaged: int = 0
    forgotten: int = 0


@dataclass(slots=True)
class _File:
    name: str
    whose: str
    size: int
    kept_ms: int


class ResponseCacheFolder:
    """A `market.ports.ResponseCache` on disk. Use `open_response_cache`."""

    def __init__(self, folder: Path, *, limit_bytes: int, ttl_s: float, clock: Clock) -> None:
        self._folder = folder
        self.limit_bytes = limit_bytes
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        self._files: OrderedDict[bytes, _File] = OrderedDict()
        self._bytes = 0
        self._turn = asyncio.Lock()
        self.counts = CacheCounts()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._files)

    async def find(self, place: bytes) -> Kept | None:
        async with self._turn:
            file = self._files.get(place)
            kept = await self._whole(place, file.name) if file is not None else None
            if kept is None:
                self.counts.misses += 1
                return None
            self._files.move_to_end(place)
            self.counts.hits += 1
            return kept

    async def _whole(self, place: bytes, name: str) -> Kept | None:
        kept = await asyncio.to_thread(self._read, name)
        if kept is None or kept.place() != place:
            self.counts.damaged += 1
        elif not 0 <= self._clock.now_ms() - kept.kept_ms < self._ttl_ms:
            self.counts.expired += 1
        else:
            return kept
        await self._throw_away(place)
        return None

    async def keep(self, kept: Kept) -> None:
        data = await asyncio.to_thread(encode_kept, kept)
        size = _on_disk(_HASH_BYTES + len(data))
        if len(data) > KEPT_LIMIT_BYTES or size > self.limit_bytes:
            return
        place, whose = kept.place(), _whose(kept.owner)
        name = f"{place.hex()}.{whose}"
        async with self._turn:
            await self._throw_away(place)
            while self._files and self._bytes + size > self.limit_bytes:
                await self._throw_away(next(iter(self._files)))
                self.counts.evicted += 1
            try:
                await asyncio.to_thread(write_whole, self._folder / name, hashlib.sha256(data).digest() + data)
            except OctoError as error:  # a full disk is no reason not to serve
                log.warning("answer_not_kept", why=error.message)
                return
            self._files[place] = _File(name=name, whose=whose, size=size, kept_ms=kept.kept_ms)
            self._bytes += size
            self.counts.kept += 1

    async def wrong(self, place: bytes) -> None:
        async with self._turn:
            self.counts.hits -= 1  # `find` could not know
            self.counts.misses += 1
            self.counts.damaged += 1
            await self._throw_away(place)
        log.warning("kept_answer_wrong", place=place.hex())

    async def forget(self, owner: str) -> int:
        return await self._forget(lambda file: file.whose == _whose(owner))

    async def run(self) -> None:
        """Sweep out what is too old, again and again, until cancelled."""
        while True:
            await self.sweep()
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        oldest_ms = self._clock.now_ms() - self._ttl_ms
        async with self._turn:
            for place in [place for place, file in self._files.items() if file.kept_ms <= oldest_ms]:
                await self._throw_away(place)
                self.counts.expired += 1

    async def clear(self) -> int:
        """Throw away everything; how many answers that were."""
        return await self._forget(lambda _file: True)

    async def _forget(self, is_meant: Callable[[_File], bool]) -> int:
        async with self._turn:
            places = [place for place, file in self._files.items() if is_meant(file)]
            for place in places:
                await self._throw_away(place)
            self.counts.forgotten += len(places)
            return len(places)

    def load(self) -> None:
        """Find what an earlier run left, the least recently written first. Blocks; called once."""
        found: list[tuple[float, Path, int]] = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                facts = path.lstat()
                if _FILE_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    found.append((facts.st_mtime, path, facts.st_size))
                else:
                    path.unlink()  # what a kill left half written, and what was never ours
        for written_s, path, size in sorted(found):
            place, whose = path.name.split(".")
            self._bytes += _on_disk(size)
            self._files[bytes.fromhex(place)] = _File(
                name=path.name, whose=whose, size=_on_disk(size), kept_ms=int(written_s * 1000)
            )
        while self._files and self._bytes > self.limit_bytes:  # the limit was lowered
            _, file = self._files.popitem(last=False)
            self._bytes -= file.size
            with suppress(OSError):
                (self._folder / file.name).unlink()

    def _read(self, name: str) -> Kept | None:
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(_HASH_BYTES + KEPT_LIMIT_BYTES + 1)
            if hashlib.sha256(data[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
                return None
            return decode_kept(data[_HASH_BYTES:])
        except (OSError, EncodingInvalid):
            return None

    async def _throw_away(self, place: bytes) -> None:
        file = self._files.pop(place, None)
        if file is not None:
            self._bytes -= file.size
            with suppress(OSError):
                await asyncio.to_thread((self._folder / file.name).unlink)


async def open_response_cache(
    folder: Path, *, limit_bytes: int, ttl_s: float, clock: Clock
) -> ResponseCacheFolder | None:
    """What the settings ask for; None if that is nothing, and then what an earlier run kept is thrown away.

    Raises NodeMisconfigured if the folder cannot be used.
    """
    cache = ResponseCacheFolder(folder, limit_bytes=limit_bytes, ttl_s=ttl_s, clock=clock)

    def load() -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.load()

    try:
        await asyncio.to_thread(load)
    except OSError as error:
        raise NodeMisconfigured(
            f"the folder of kept answers {folder} cannot be used: {error.strerror}.",
            next_step="Make it readable, or remove it.",
        ) from None
    return cache if limit_bytes else None


def _whose(owner: str) -> str:
    return hashlib.sha256(b"octo/cache/owner/1" + owner.encode()).digest()[:_WHOSE_BYTES].hex()


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
