"""One file over HTTP, checked and resumable: how everything that has a hash but no CID yet comes in.

Lives here: who asks for which part, when to ask again, when to start over. Four ranges at once where the host gives
ranges, one stream where not; hashed in order while it comes; whole only if the hash is the promised one. Knows the
host by RemoteFile only and the disk by DownloadPart only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import structlog

from inference.models.download_part import SEGMENT_BYTES, DownloadPart, Expected, in_thread
from inference.models.locks import open_pull_lock
from inference.models.progress import Meter, OnProgress, Progress, Rate
from inference.models.remote import Patience, RangeAnswer, RemoteFile, Retries
from market.errors import BlockInvalid, ContentUnavailable, DiskFull

_log = structlog.get_logger()

FILE_LIMIT_BYTES = 1024**4
STREAMS = 4
"""One stream rarely fills a long, fat pipe; more than a few look like an attack to a CDN."""
_WRITE_BYTES = 1024 * 1024
_NOTE_EVERY_S = 0.25
_SAVE_EVERY_S = 2.0
_STARTS = 3


async def download_file(
    remote: RemoteFile,
    folder: Path,
    what: str,
    *,
    expected: Expected,
    progress: OnProgress,
    patience: Patience | None = None,
    limit_bytes: int = FILE_LIMIT_BYTES,
) -> Path:
    """Bring the file into `folder` and return its path, the same for the same `what` (a reference without secrets).

    What an earlier call left in `folder` is gone on from, if the host still has the same file (ETag and size).
    Raises ContentUnavailable, BlockInvalid for other bytes than `expected`, DiskFull.
    """
    key = hashlib.sha256(what.encode()).hexdigest()[:32]
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split("[#?]", what, maxsplit=1)[0].rsplit("/", 1)[-1])
    target = folder / f"{key}-{last[-100:]}"
    async with open_pull_lock(folder, key):
        if target.exists():  # a caller was stopped between this and its next step
            if not target.is_symlink() and not await in_thread(_differs, target, expected):
                return target
            await in_thread(target.unlink)
        part = await in_thread(DownloadPart, folder / f"{key}.download", expected)
        try:
            await _Download(remote, part, what, expected, progress, patience=patience, limit_bytes=limit_bytes).run()
            await in_thread(part.finish, target)
        finally:
            part.close()
    _log.info("file_downloaded", reference=what, bytes=part.done_bytes)
    return target


def _differs(path: Path, expected: Expected) -> bool:
    digests, size = expected.digests(), 0
    with path.open("rb") as file:
        while piece := file.read(_WRITE_BYTES):
            size += len(piece)
            for digest in digests.values():
                digest.update(piece)
    return bool(expected.wrong(size, digests))


class _ChangedError(Exception):
    """The host has another file there than when we began."""


class _Download:
    def __init__(
        self,
        remote: RemoteFile,
        part: DownloadPart,
        what: str,
        expected: Expected,
        progress: OnProgress,
        *,
        patience: Patience | None,
        limit_bytes: int,
    ) -> None:
        self._remote = remote
        self._part = part
        self._what = what
        self._expected = expected
        self._progress = progress
        self._patience = patience or Patience()
        self._limit_bytes = limit_bytes
        self._queue: deque[int] = deque()
        self._begun = asyncio.Event()
        self._not_before = 0.0
        self._stream_ended = False
        self._rates: dict[str, Rate] = {}
        self._meter = self._new_meter()

    async def run(self) -> None:
        """Raises BlockInvalid if the bytes are wrong, unless an older part may be to blame: then all comes anew."""
        for start in range(_STARTS):
            resumed = self._part.resumed
            try:
                await self._bring()
            except _ChangedError:
                _log.warning("download_started_over", reference=self._what, why="the file changed at its host")
            except BlockInvalid:
                await in_thread(self._part.discard)
                raise
            else:
                wrong = await in_thread(self._part.wrong)
                if not wrong:
                    self._meter.say(self._part.done_bytes)
                    return
                if not resumed or start == _STARTS - 1:
                    await in_thread(self._part.discard)
                    raise BlockInvalid(
                        f"{self._what} is not what was promised: {wrong}.",
                        next_step="Do not use this file; check the reference and the place that it comes from.",
                    )
                _log.warning("download_started_over", reference=self._what, why="what was there did not hash")
            await in_thread(self._part.clear)
        raise ContentUnavailable(
            f"{self._what} changes while it is downloaded.", next_step="Try again once its publisher has finished."
        )

    async def _bring(self) -> None:
        self._begun.clear()
        self._stream_ended = False
        self._queue = deque(number for number in range(len(self._part.filled)) if self._part.gap(number)[1])
        if self._part.pin is None:
            self._queue.append(0)
        tasks = [asyncio.create_task(self._save_and_hash()), asyncio.create_task(self._worker())]
        begun = asyncio.create_task(self._begun.wait())
        try:
            await asyncio.wait((begun, tasks[1]), return_when=asyncio.FIRST_COMPLETED)
            more = min(STREAMS - 1, len(self._queue))
            tasks += [asyncio.create_task(self._worker()) for _ in range(more)]
            await asyncio.gather(*tasks[1:])
        finally:
            for task in (begun, *tasks):
                task.cancel()
            await asyncio.gather(begun, *tasks, return_exceptions=True)
            with contextlib.suppress(DiskFull):  # it cannot hide why we stopped
                await in_thread(self._part.save)

    async def _worker(self) -> None:
        """The first one also learns what there is; the others begin after that."""
        while self._queue:
            number = self._queue.popleft()
            retries = Retries(self._patience)
            while not self._finished(number):
                before = self._filled(number)
                try:
                    await asyncio.sleep(self._not_before - asyncio.get_running_loop().time())
                    await self._fill(number)
                except ContentUnavailable as error:
                    if self._part.streamed:  # it begins at the first byte again
                        await in_thread(self._part.clear)
                    pause = retries.pause_after(error, self._filled(number) - before)
                    _log.info("download_waits", reference=self._what, why=error.message, seconds=round(pause, 1))
                    # one pause for all: a host that says 429 to one stream means us
                    self._not_before = asyncio.get_running_loop().time() + pause

    def _filled(self, number: int) -> int:
        return self._part.filled[number] if self._part.filled else 0

    def _finished(self, number: int) -> bool:
        if self._part.pin is None or self._part.streamed:
            return self._stream_ended
        return self._part.gap(number)[1] == 0

    async def _fill(self, number: int) -> None:
        start, length = (0, SEGMENT_BYTES) if self._part.size_bytes is None else self._part.gap(number)
        async with self._remote.open_range(start, length) as answer:
            await self._agree(answer)
            buffer = bytearray()
            try:
                async for piece in answer.body:
                    buffer += piece
                    if len(buffer) >= _WRITE_BYTES:
                        full, buffer = buffer, bytearray()
                        await self._write(number, full, answer.host)
            finally:
                if buffer:
                    await self._write(number, buffer, answer.host)
            self._stream_ended = answer.whole

    async def _agree(self, answer: RangeAnswer) -> None:
        """The first answer says which file this is; every other must say the same."""
        total = answer.total_bytes
        if total is not None:
            self._check_size(total)
        if self._part.pin is None:
            await in_thread(lambda: self._part.start(answer.pin, total, streamed=answer.whole))
            self._queue.extend(range(1, len(self._part.filled)))
            self._meter = self._new_meter()
        elif answer.whole or (answer.pin, total) != (self._part.pin, self._part.size_bytes):
            raise _ChangedError
        if not answer.whole:
            self._begun.set()

    def _check_size(self, size_bytes: int, *, at_least: bool = False) -> None:
        """Before the bytes come, and while they do: a stream without an end must not fill the disk."""
        expected = self._expected.size_bytes
        if size_bytes > self._limit_bytes:
            raise BlockInvalid(f"{self._what} is larger than the limit of {self._limit_bytes} bytes.")
        if expected is not None and (size_bytes > expected or (size_bytes < expected and not at_least)):
            raise BlockInvalid(f"{self._what} has {size_bytes} bytes or more where {expected} were promised.")

    async def _write(self, number: int, buffer: bytearray, host: str) -> None:
        await in_thread(self._part.write, number, buffer)
        self._check_size(self._part.done_bytes, at_least=True)
        now = asyncio.get_running_loop().time()
        self._rates.setdefault(host, Rate(now)).add(len(buffer), now)
        self._meter.moved(len(buffer), self._part.done_bytes)

    def _new_meter(self) -> Meter:
        """Once the size is known, or nobody will tell it."""
        total = self._part.size_bytes or self._expected.size_bytes or 0
        clock = asyncio.get_running_loop().time

        def tell(progress: Progress) -> None:
            self._progress(progress if total else replace(progress, eta_s=None))

        meter = Meter(self._what, total, tell, clock, lambda: {h: r.per_s(clock()) for h, r in self._rates.items()})
        meter.say(self._part.done_bytes)
        return meter

    async def _save_and_hash(self) -> None:
        """Hash what has come in, so that the end does not wait for it, and now and then note how far we are."""
        loop = asyncio.get_running_loop()
        noted = saved = loop.time()
        while True:
            if not await in_thread(self._part.hash_more):
                await asyncio.sleep(0.1)
            if loop.time() - noted > _NOTE_EVERY_S:
                await in_thread(self._part.note)
                noted = loop.time()
            if loop.time() - saved > _SAVE_EVERY_S:
                await in_thread(self._part.save)
                saved = loop.time()
