"""Processes for tests that kill them: forked from one that has everything imported and no thread yet, so that a start
takes a tenth of a second."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["node.wiring", "node.chain", "market.testing", "contracts.rails", "aiohttp.web"])


class Died(Exception):
    """The process is gone."""


class Forked:
    """`main(pipe, *arguments)` in a process of its own, which says ("ready", …) first; what it prints goes to `log`."""

    def __init__(self, main: Callable[..., None], *arguments: Any, log: Path) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(main, log, theirs, *arguments), daemon=True)
        self._process.start()
        self._log = log
        theirs.close()

    async def ready(self) -> Any:
        """What it says of itself. Fails with the end of its log if it does not come up."""
        try:
            return await self._answer()
        except Died:
            raise AssertionError(self._log.read_text(errors="replace")[-3000:]) from None

    async def call(self, name: str, *arguments: Any) -> Any:
        """Raises Died, once the process is gone for good."""
        try:
            self._pipe.send((name, arguments))
        except OSError:
            await self.kill()
            raise Died from None
        return await self._answer()

    async def _answer(self) -> Any:
        try:
            kind, answer = await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError):
            await self.kill()
            raise Died from None
        assert kind != "failed", answer
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    async def kill(self) -> None:
        """SIGKILL, if it is not gone yet."""
        if self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.join)
        self._pipe.close()


def _run(main: Callable[..., None], log: Path, pipe: Connection, *arguments: Any) -> None:
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(file))
    main(pipe, *arguments)


async def until(condition, timeout_s: float = 60.0, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        await asyncio.sleep(every_s)
