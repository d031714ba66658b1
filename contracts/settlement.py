"""When a payee turns vouchers into money: a pure choice. Knows amounts and times, no chain.

Only the last voucher of a channel counts, so waiting costs nothing but risk, and a batch of a hundred costs a
third for each. What is closing cannot wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from market.money import OCTO
from market.values import value


@value
class SettlePolicy:
    """Settle when `worth` (10^-18 OCTO) is due over all channels, or something has been due for `age_s`; then take
    the largest `batch`, and of them none below `dust`, which costs more gas than it brings. `period_s`: how often
    to look."""

    worth: int = OCTO
    age_s: float = 6 * 3600
    dust: int = OCTO // 1000
    batch: int = 100
    period_s: float = 60.0


@value
class Due:
    """A channel with a voucher that adds `amount` to what was redeemed. `closes_at` is 0 while open, in seconds."""

    channel: bytes
    amount: int
    closes_at: int
    since_ms: int


def choose(dues: Sequence[Due], policy: SettlePolicy, *, now_ms: int, everything: bool = False) -> list[Due]:
    """What to redeem now, the most urgent first; at most `policy.batch`. `everything` leaves only nothing out."""
    closing = sorted((due for due in dues if due.closes_at), key=lambda due: (due.closes_at, -due.amount))
    rest = sorted((due for due in dues if not due.closes_at), key=lambda due: -due.amount)
    if not everything:
        worth = sum(due.amount for due in rest) >= policy.worth
        old = any(now_ms - due.since_ms >= policy.age_s * 1000 for due in rest if due.amount >= policy.dust)
        rest = [due for due in rest if due.amount >= policy.dust] if worth or old else []
    return [*closing, *rest][: policy.batch]
