"""How far a long step has come, for whoever shows a bar. Knows nobody who shows one."""

from __future__ import annotations

from collections.abc import Callable

from market.values import value


@value
class Progress:
    """`what` is a CID or a reference; `total_bytes` 0 if nobody knows. `source` is who sent the bytes that moved
    `done_bytes`, empty for what was on disk already."""

    what: str
    done_bytes: int
    total_bytes: int
    source: str


OnProgress = Callable[[Progress], None]


def quiet(progress: Progress) -> None:
    """For callers that show nothing."""
