"""What may follow what between buyer and seller of one task: FIPA contract net, then the task itself.

buyer   cfp             accept  task   input|payment|cancel …                  payment
seller       propose                   queued|progress|tokens|piece|receipt …  response
             refuse
or, instead of all this: buyer forget, seller forgotten.
either side may end it with ERROR. `counter` and a non-final `reject` ask for another proposal,
a bounded number of times. What is not in the table is a broken protocol.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from market.errors import StepNotAllowed
from market.message import Body, Reject
from market.values import Word, value

ROUNDS_LIMIT = 4

Side = Literal["buyer", "seller"]


class Stage(Word):
    START = "start"
    CALLED = "called"
    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    RUNNING = "running"
    SETTLING = "settling"
    FORGETTING = "forgetting"
    ENDED = "ended"


_STEPS: dict[tuple[Stage, Side, str], Stage] = {
    (Stage.START, "buyer", "cfp"): Stage.CALLED,
    (Stage.CALLED, "seller", "propose"): Stage.PROPOSED,
    (Stage.CALLED, "seller", "refuse"): Stage.ENDED,
    (Stage.PROPOSED, "buyer", "counter"): Stage.CALLED,
    (Stage.PROPOSED, "buyer", "reject"): Stage.CALLED,
    (Stage.PROPOSED, "buyer", "accept"): Stage.ACCEPTED,
    (Stage.ACCEPTED, "buyer", "task"): Stage.RUNNING,
    (Stage.RUNNING, "buyer", "input"): Stage.RUNNING,
    (Stage.RUNNING, "buyer", "payment"): Stage.RUNNING,
    (Stage.RUNNING, "buyer", "cancel"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "queued"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "progress"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "tokens"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "piece"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "receipt"): Stage.RUNNING,
    (Stage.RUNNING, "seller", "response"): Stage.SETTLING,
    (Stage.SETTLING, "buyer", "payment"): Stage.SETTLING,
    (Stage.SETTLING, "buyer", "cancel"): Stage.SETTLING,
    (Stage.START, "buyer", "forget"): Stage.FORGETTING,
    (Stage.FORGETTING, "seller", "forgotten"): Stage.ENDED,
}


@value
class Dialogue:
    """Where a task's conversation stands, seen from either side."""

    stage: Stage = Stage.START
    rounds: int = 0

    def after(self, side: Side, body: Body) -> Dialogue:
        """The dialogue after `side` said `body`; raises StepNotAllowed for what may not follow."""
        kind = body.kind
        ended_by_buyer = side == "buyer" and isinstance(body, Reject) and body.is_final
        if kind == "error" or (ended_by_buyer and self.stage is Stage.PROPOSED):
            return replace(self, stage=Stage.ENDED)
        stage = _STEPS.get((self.stage, side, kind))
        if stage is None:
            raise StepNotAllowed(f"{side} may not say {kind!r} while the task is {self.stage}.")
        again = kind in ("counter", "reject")
        if again and self.rounds + 1 >= ROUNDS_LIMIT:
            raise StepNotAllowed(f"{ROUNDS_LIMIT} rounds of negotiation are enough.")
        return Dialogue(stage=stage, rounds=self.rounds + again)
