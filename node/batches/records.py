"""A file that was uploaded, a batch of requests, one line of it, and the states a batch goes through. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from market.errors import StepNotAllowed


class Status(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


STEPS: Mapping[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset({Status.FAILED, Status.IN_PROGRESS, Status.CANCELLING}),
    Status.IN_PROGRESS: frozenset({Status.FINALIZING, Status.CANCELLING}),
    Status.FINALIZING: frozenset({Status.COMPLETED, Status.EXPIRED}),
    Status.CANCELLING: frozenset({Status.CANCELLED}),
}
"""A status that is not in here is final."""


def check_step(before: Status, after: Status) -> None:
    """Raises StepNotAllowed."""
    if after not in STEPS.get(before, frozenset()):
        raise StepNotAllowed(f"a batch that is {before} cannot become {after}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Times are Unix seconds. `purpose` is OpenAI's: `batch`, or `batch_output` for what we wrote."""

    id: str
    name: str
    purpose: str
    size: int
    created_s: int
    expires_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`times` maps statuses to when they were reached; `output` and `error` are ids of files, empty if there are none;
    `problems` are what is wrong with its input. `amount` is 10^-18 OCTO. `whose` tells who handed it in from others,
    empty if nobody knows."""

    id: str
    endpoint: str
    input: str
    status: Status
    expires_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    amount: int = 0
    output: str = ""
    error: str = ""
    problems: Sequence[Mapping[str, Any]] = ()
    whose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request: `number` counts from 0, `body` is its JSON."""

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a line or a task: an HTTP status and a body, of JSON if it is a line's or not 200. `retry`: it may
    go better later."""

    status: int
    body: bytes
    tokens_in: int = 0
    tokens_out: int = 0
    amount: int = 0
    retry: bool = False
    content_type: str = "application/json"
    receipts: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A line as the output files tell it; `reply` is None for one that was never answered."""

    number: int
    custom_id: str
    reply: Reply | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """`under_way`: lines of all batches that are bought at once; few, since people wait for other answers. `pauses_s`:
    how long a line that may go better later waits before each next try; together a provider's restart. `again_s`: when
    a batch is taken up again that failed for a reason of ours (a full disk, say)."""

    file_bytes: int = 100 * 1024 * 1024
    files: int = 1_000
    files_bytes: int = 2 * 1024**3
    lines: int = 50_000
    line_bytes: int = 1024 * 1024
    open_batches: int = 100
    under_way: int = 4
    window_s: int = 24 * 60 * 60
    pauses_s: Sequence[float] = (1.0, 5.0, 20.0, 60.0)
    again_s: float = 30.0
