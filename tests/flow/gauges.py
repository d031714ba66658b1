"""What a run that should leave nothing behind does leave: readings over work done, and the line through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import median

Points = Sequence[tuple[float, float]]


def slope(points: Points) -> float:
    """The median of the slopes between any two points: a third of them may be anything without moving it far.
    Source: Theil-Sen estimator; Sen, Journal of the American Statistical Association 63 (1968)."""
    steps = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 != x1]
    return median(steps) if steps else 0.0


def settled(points: Points) -> Points:
    """Without the first third, in which caches fill and pools grow to what the load needs."""
    return points[len(points) // 3 :]


def more(after: Counter[str], before: Counter[str], by: int = 0) -> dict[str, int]:
    """What there is more of, by more than `by`."""
    return {name: count - before[name] for name, count in after.most_common() if count - before[name] > by}
