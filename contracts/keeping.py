"""A few bytes that outlive the process: the port, and a file that is whole or as it was before.

What is kept here could be read from the chain again; it saves time, and remembers what was about to be sent.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

from market.errors import NodeMisconfigured

KEPT_LIMIT_BYTES = 16 * 1024 * 1024


class Keeper(Protocol):
    async def load(self) -> bytes | None: ...

    async def save(self, data: bytes) -> None:
        """On the disk when it returns."""


class MemoryKeeper:
    def __init__(self) -> None:
        self.data: bytes | None = None

    async def load(self) -> bytes | None:
        return self.data

    async def save(self, data: bytes) -> None:
        self.data = data


class FileKeeper:
    """One writer per file. Raises NodeMisconfigured when the disk does not do its part."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = asyncio.Lock()

    async def load(self) -> bytes | None:
        return await asyncio.to_thread(self._read)

    async def save(self, data: bytes) -> None:
        async with self._writing:
            await asyncio.to_thread(self._write, data)

    def _read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                data = file.read(KEPT_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._misfit(error) from None
        if len(data) > KEPT_LIMIT_BYTES:
            raise NodeMisconfigured(f"{self._path} is over {KEPT_LIMIT_BYTES >> 20} MiB.", next_step="Move it away.")
        return data

    def _write(self, data: bytes) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.fchmod(descriptor, 0o600)  # one that a kill left behind may have other rights
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # else the rename itself may not survive a power cut
            finally:
                os.close(folder)
        except OSError as error:
            raise self._misfit(error) from None

    def _misfit(self, error: OSError) -> NodeMisconfigured:
        return NodeMisconfigured(
            f"{self._path} cannot be read and written ({error.strerror}).", next_step="Check the disk and its rights."
        )
