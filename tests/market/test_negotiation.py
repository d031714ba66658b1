"""Who may say what, when: the table of the conversation, and that nothing outside it passes."""

import dataclasses
from typing import Any

import pytest

from market.errors import StepNotAllowed
from market.message import TYPE_OF, Reject
from market.negotiation import ROUNDS_LIMIT, Dialogue, Side, Stage

ALLOWED = {
    (Stage.START, "buyer", "cfp"): Stage.CALLED,
    (Stage.CALLED, "seller", "propose"): Stage.PROPOSED,
    (Stage.CALLED, "seller", "refuse"): Stage.ENDED,
    (Stage.PROPOSED, "buyer", "counter"): Stage.CALLED,
    (Stage.PROPOSED, "buyer", "reject"): Stage.CALLED,
    (Stage.PROPOSED, "buyer", "reject, finally"): Stage.ENDED,
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


def body(kind: str) -> Any:
    """A body of that kind. The dialogue reads its kind alone (and `is_final`), so other fields stay empty."""
    if kind.startswith("reject"):
        return Reject(reason="too dear", is_final=kind != "reject")
    made = next(k for k in TYPE_OF if k.__dataclass_fields__["kind"].default == kind)  # type: ignore[attr-defined]
    item = object.__new__(made)
    object.__setattr__(item, "kind", kind)
    return item


KINDS = sorted([k.__dataclass_fields__["kind"].default for k in TYPE_OF] + ["reject, finally"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["buyer", "seller"])
@pytest.mark.parametrize("stage", list(Stage))
def test_a_step_is_in_the_table_or_refused(stage: Stage, side: Side, kind: str) -> None:
    here = Dialogue(stage=stage)
    if kind == "error":
        assert here.after(side, body(kind)).stage is Stage.ENDED
    elif (stage, side, kind) in ALLOWED:
        assert here.after(side, body(kind)).stage is ALLOWED[stage, side, kind]
    else:
        with pytest.raises(StepNotAllowed, match=f"{side} may not say"):
            here.after(side, body(kind))


def test_haggling_ends_after_a_bounded_number_of_rounds() -> None:
    here = Dialogue().after("buyer", body("cfp"))
    for round_ in range(ROUNDS_LIMIT - 1):
        here = here.after("seller", body("propose")).after("buyer", body("counter" if round_ % 2 else "reject"))
    here = here.after("seller", body("propose"))
    for kind in ("counter", "reject"):
        with pytest.raises(StepNotAllowed, match=f"{ROUNDS_LIMIT} rounds"):
            here.after("buyer", body(kind))
    assert here.after("buyer", body("accept")).stage is Stage.ACCEPTED
    assert here.after("buyer", body("reject, finally")).stage is Stage.ENDED


def test_a_whole_task_in_order() -> None:
    here = Dialogue()
    for side, kind in (
        ("buyer", "cfp"), ("seller", "propose"), ("buyer", "accept"), ("buyer", "task"), ("seller", "queued"),
        ("seller", "tokens"), ("seller", "receipt"), ("buyer", "payment"), ("seller", "response"), ("buyer", "payment"),
    ):  # fmt: skip
        here = here.after(side, body(kind))  # type: ignore[arg-type]
    assert here == Dialogue(stage=Stage.SETTLING, rounds=0)


def test_every_message_body_has_a_place_in_the_table() -> None:
    spoken = {kind.split(",")[0] for _, _, kind in ALLOWED} | {"error"}
    assert spoken == {kind.split(",")[0] for kind in KINDS}
    assert all(dataclasses.is_dataclass(kind) for kind in TYPE_OF)
