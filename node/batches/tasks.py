"""A single task in the queue: what is kept of it, the states it goes through, and how much is taken. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from market.errors import StepNotAllowed
from market.task import Mode


class TaskStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TASK_STEPS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.QUEUED: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED, TaskStatus.EXPIRED}),
    TaskStatus.RUNNING: frozenset(
        {TaskStatus.QUEUED, TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED}
    ),
}
"""A status that is not in here is final."""

RANK: Mapping[Mode, int] = {Mode.REALTIME: 0, Mode.BATCH: 1, Mode.ASYNC: 2}
"""Lower ones are taken from the queue first."""

SEQ_PER_ATTEMPT = 1 << 24
"""Numbers of events that one attempt can use: 131,072 tokens of each of 8 answers stay far below."""


def check_task_step(before: TaskStatus, after: TaskStatus) -> None:
    """Raises StepNotAllowed."""
    if after not in TASK_STEPS.get(before, ()):
        raise StepNotAllowed(f"a task that is {before} cannot become {after}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Times are Unix seconds; `times` maps statuses to when they were reached last, `due_s` is when it may run next.

    `whose` tells who handed it in from others. `seq` is the number of its last event. `input_bytes` and `result_bytes`
    are what lies on the disk for it, `blob` of the first audio or an image. `error` is OpenAI's error object: why it
    failed, or why its last attempt did. `amount` is 10^-18 OCTO.
    """

    id: str
    work: str
    model: str
    mode: Mode
    status: TaskStatus
    created_s: int
    expires_s: int
    due_s: float
    times: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    whose: str = ""
    input_bytes: int = 0
    blob: int = 0
    attempts: int = 0
    deaths: int = 0
    seq: int = 0
    error: Mapping[str, Any] | None = None
    result_type: str = ""
    result_bytes: int = 0
    receipts: Sequence[str] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    amount: int = 0

    @property
    def is_over(self) -> bool:
        return self.status not in TASK_STEPS

    @property
    def ended_s(self) -> int | None:
        return self.times[str(self.status)] if self.is_over else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """`waiting` tasks that are not over, with `waiting_bytes` of input together; `kept` that are, with `kept_bytes` of
    results, each for `keep_s`: beyond that the oldest go. `hurried`: realtime tasks that are bought at once; those of
    the other modes share the places of batches. `deaths`: a task under which this node died so often may be the cause,
    and is not begun again.

    `pauses_s`: how long a task that may go better later waits before each next try; the last pause is repeated in the
    mode async, until the task expires; the others then fail. Realtime is not tried again: somebody waits. `again_s`: as
    in BatchLimits. `sweep_s`: how often expired ones are looked for.
    """

    waiting: int = 1_000
    waiting_bytes: int = 1024**3
    kept: int = 10_000
    kept_bytes: int = 1024**3
    keep_s: int = 7 * 24 * 60 * 60
    hurried: int = 8
    deaths: int = 5
    pauses_s: Sequence[float] = (1.0, 5.0, 20.0, 60.0, 300.0)
    again_s: float = 30.0
    sweep_s: float = 5.0
