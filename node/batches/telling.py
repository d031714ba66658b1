"""What a task tells while it runs: numbered events in memory, for readers who come, fall behind and come again.

Numbers only grow, over attempts and restarts: each attempt counts in a range of its own, which follows from how many
there were before. So a number says to which attempt it belongs, and nothing need be written down for it.
Knows no socket and no table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from node.batches.tasks import SEQ_PER_ATTEMPT

GATHER_S = 0.05
"""Text is gathered so long: 131,072 tokens at a hundred a second are 26,000 events then, some megabytes."""

Event = Mapping[str, Any]


class Story:
    """Of one task. Readers keep a number and ask what came after it, so that a slow one costs nothing."""

    def __init__(self) -> None:
        self.readers = 0
        self.progress = 0
        self.attempt = 0
        self._events: list[Event] = []
        self._texts: dict[int, tuple[str, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self.is_over = False

    def begin(self, attempt: int) -> None:
        """What an earlier attempt told no longer holds: its readers learn that from the first event of this one."""
        self._drop_texts()
        self.attempt, self._events = attempt, []
        self.progress = 0
        self.tell({"type": "begun", "attempt": attempt})

    def tell(self, event: Event) -> None:
        """`seq` and `progress` are added."""
        self._flush()
        self._add(event)

    def tell_text(self, index: int, text: str, tokens: int) -> None:
        before, count = self._texts.get(index, ("", 0))
        self._texts[index] = (before + text, count + tokens)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush)

    def last_seq(self, attempt: int) -> int:
        """The number of the event that says how it ended, in its so-manieth attempt; readers get that one from the
        books. Where that attempt was told of before a restart, a number that it cannot have used."""
        self._flush()
        return self._next_seq if attempt == self.attempt else (attempt + 1) * SEQ_PER_ATTEMPT

    def end(self) -> None:
        self.is_over = True
        self._news.set()

    @property
    def _base(self) -> int:
        return self.attempt * SEQ_PER_ATTEMPT

    @property
    def _next_seq(self) -> int:
        return self._base + len(self._events) + 1

    def since(self, seq: int) -> Sequence[Event]:
        return self._events[max(0, seq - self._base) :]

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Until there is something after that number, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_over and not self.since(seq):
                    await self._news.wait()

    def _add(self, event: Event) -> None:
        self._events.append({**event, "seq": self._next_seq, "progress": self.progress})
        self._news.set()
        self._news = asyncio.Event()  # whoever waits holds the old one

    def _flush(self) -> None:
        texts = self._texts
        self._drop_texts()
        for index, (text, tokens) in texts.items():
            self._add({"type": "delta", "index": index, "text": text, "tokens": tokens})

    def _drop_texts(self) -> None:
        self._texts = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
