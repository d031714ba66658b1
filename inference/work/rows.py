"""Which texts go through the model together: dynamic batching as pure decisions.

Lives here: rows of all tasks by length, turns between tasks. Knows no model and no time.

A text is padded to the width of its bucket, whatever shares its batch: what the model makes of it then depends on the
batch in the number of rows alone. The task whose turn it is names the bucket, and rows of all tasks fill it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
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
    """All tasks that have rows to do. A call takes `rows_limit` of them, and about `tokens_limit` tokens, at most."""

    def __init__(self, *, rows_limit: int = ROWS_LIMIT, tokens_limit: int = TOKENS_LIMIT) -> None:
        self._rows_limit = rows_limit
        self._tokens_limit = tokens_limit
        self._works: dict[int, Pending] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._works)

    def add(self, task: Task, texts: Sequence[Encoded]) -> None:
        work = Pending(task, len(texts), {}, [bucket_of(len(tokens.ids)) for tokens in texts], served=self._now)
        for at, tokens in enumerate(texts):
            work.buckets.setdefault(work.order[at], deque()).append(Row(at, tokens))
        self._works[task.number] = work

    def drop_cancelled(self) -> None:
        for number in [number for number, work in self._works.items() if work.task.cancelled]:
            del self._works[number]

    def leave(self, work: Pending) -> None:
        self._works.pop(work.task.number, None)

    def batch(self) -> list[tuple[Pending, Row]]:
        """The next rows to compute, all of one bucket, one at least; they are taken out."""
        turns = sorted(
            (work for work in self._works.values() if any(work.buckets.values())),
            key=lambda work: (work.task.priority, work.served, work.task.number),
        )
        first = turns[0]
        self._now = max(self._now, first.served)
        bucket = first.order[min(rows[0].at for rows in first.buckets.values() if rows)]
        room = max(1, min(self._rows_limit, self._tokens_limit // bucket))
        taken = []
        for work, row in _in_turns(turns, bucket):
            taken.append((work, row))
            work.served += len(row.tokens.ids)
            if len(taken) == room:
                break
        return taken


def bucket_of(length: int) -> int:
    """The width for a text of so many tokens: at most 7 more, or an eighth."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def _in_turns(works: Sequence[Pending], bucket: int) -> Iterator[tuple[Pending, Row]]:
    """Rows of one bucket, a row of each task at a time."""
    left = [work for work in works if work.buckets.get(bucket)]
    while left:
        for work in left:
            yield work, work.buckets[bucket].popleft()
        left = [work for work in left if work.buckets[bucket]]
