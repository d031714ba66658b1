"""Ctrl-C and SIGTERM, for the commands that run until they are told to end."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from node.cli.exits import INTERRUPTED


class Signals:
    """The first SIGINT or SIGTERM asks for an end, while starting or later; the second does not ask."""

    def __enter__(self) -> Signals:
        self._asked = asyncio.Event()
        self._starting: asyncio.Task[Any] | None = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def started(self) -> None:
        self._starting = None

    async def wait(self) -> None:
        await self._asked.wait()

    def _ask(self) -> None:
        if self._asked.is_set():
            os._exit(INTERRUPTED)  # engines end with us: each asked the kernel for that
        self._asked.set()
        if self._starting is not None:
            self._starting.cancel()
