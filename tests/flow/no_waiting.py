"""An event loop for tests that live in memory alone: its clock stands still while anything is to be done, and jumps to
the next timer when nothing is. So no machine is too slow for a time limit, or too fast for a pause, and waiting takes
no time. What other processes or sockets do has no place here: for them no time would pass.
"""

from __future__ import annotations

import asyncio
import selectors


class NoWaitingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now_s = 0.0
        self.threads = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor, func, *args):
        self.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _future) -> None:
        self.threads -= 1


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: NoWaitingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        """Asked with a time above 0 only if nothing is ready: then the next timer's turn has come."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self._loop.threads:
            return super().select(None)  # a thread's work is something to be done
        found = super().select(0)
        if not found:
            self._loop.now_s += timeout
        return found


NO_WAITING = ("asyncio", {"loop_factory": NoWaitingLoop})
"""What a module's `anyio_backend` returns that wants it."""
