"""Which texts go through the model together: dynamic batching as pure decisions.

Lives here: rows of all tasks by length, turns between tasks. Knows no model and no time.

Where a call is a rectangle, a text is padded to the width of its bucket, whatever shares its batch: what the model
makes of it then depends on the batch in the number of rows alone. The task whose turn it is names the bucket, and rows
of all tasks fill it. Where a call is a list of tokens, texts of all lengths share it, as long as they fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from inference.models.plain_encoder import Encoded
from inference.work.runner import Task

TOKENS_LIMIT: Final = 512
"""In one call on a CPU: more gains nothing, and a newcomer waits for the call. Texts a second (MiniLM, one core) of 1,
4, 16 and 64 rows: of 8 tokens 358, 696, 1053, 1111; of 24 207, 349, 386, 352; of 64 116, 141, 134, 113."""
TOKENS_LIMIT_GPU: Final = 16_384
ROWS_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Row:
    """Input `at` of a task."""

    at: int
    tokens: Encoded


@dataclass(slots=True, eq=False)
class Pending:
    """A task's rows: those to do, by bucket; what came of others and waits for its turn in the order of inputs."""

    task: Task
    count: int
    buckets: dict[int, deque[Row]]
    order: list[int]
    done: dict[int, bytes] = field(default_factory=dict)
    sent: int = 0
    served: float = 0.0

    def ready(self) -> list[bytes]:
        """Pieces that can go out now."""
        out = []
        while self.sent in self.done:
            out.append(self.done.pop(self.sent))
            self.sent += 1
        return out


class Rows:
    """All tasks that have rows to do. A call takes `rows_limit` of them, and `tokens_limit` tokens (padding counts), at
    most; a row that is longer has a call to itself. `padded`: calls are rectangles."""

    def __init__(self, *, rows_limit: int = ROWS_LIMIT, tokens_limit: int = TOKENS_LIMIT, padded: bool = True) -> None:
        self._rows_limit = rows_limit
        self._tokens_limit = tokens_limit
        self._padded = padded
        self._works: dict[int, Pending] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._works)

    def add(self, task: Task, texts: Sequence[Encoded]) -> None:
        order = [bucket_of(len(tokens.ids)) if self._padded else 0 for tokens in texts]
        work = Pending(task, len(texts), {}, order, served=self._now)
        for at, tokens in enumerate(texts):
            work.buckets.setdefault(work.order[at], deque()).append(Row(at, tokens))
        self._works[task.number] = work

    def drop_cancelled(self) -> None:
        for number in [number for number, work in self._works.items() if work.task.cancelled]:
            del self._works[number]

    def leave(self, work: Pending) -> None:
        self._works.pop(work.task.number, None)

    def batch(self) -> list[tuple[Pending, Row]]:
        """The next rows to compute, all of one bucket if calls are padded, one at least; they are taken out."""
        turns = sorted(
            (work for work in self._works.values() if any(work.buckets.values())),
            key=lambda work: (work.task.priority, work.served, work.task.number),
        )
        first = turns[0]
        self._now = max(self._now, first.served)
        bucket = first.order[min(rows[0].at for rows in first.buckets.values() if rows)]
        room = self._tokens_limit
        taken: list[tuple[Pending, Row]] = []
        left = [work for work in turns if work.buckets.get(bucket)]
        while left and len(taken) < self._rows_limit:
            for work in left[: self._rows_limit - len(taken)]:
                row = work.buckets[bucket][0]
                width = bucket or len(row.tokens.ids)
                if taken and width > room:
                    left.remove(work)
                    continue
                work.buckets[bucket].popleft()
                taken.append((work, row))
                work.served += len(row.tokens.ids)
                room -= width
            left = [work for work in left if work.buckets[bucket]]
        return taken


def bucket_of(length: int) -> int:
    """The width for a text of so many tokens: at most 7 more, or an eighth."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step
