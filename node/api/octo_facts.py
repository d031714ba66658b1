"""What every answer tells beside OpenAI's own words: `octo` (the receipt, who served it, at what price), and usage.

Pure. Prices and amounts are integers of 10^-18 OCTO and may exceed 2^53.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from market.errors import PeerFailed
from market.reception import Outcome
from market.taking import Part
from node.api.answers import Answer

DONE = b"data: [DONE]\n\n"


def octo_of(outcome: Outcome) -> dict[str, Any]:
    return {
        "receipt": outcome.receipt,
        "provider": outcome.provider,
        "model": outcome.model,
        "task": outcome.task.hex(),
        "price_in": outcome.price_in,
        "price_out": outcome.price_out,
        "amount": outcome.amount,
        "cached": outcome.cached,
        "tokens_in": outcome.tokens_in,
        "tokens_out": outcome.tokens_out,
        "because": outcome.because,
        "not_chosen": dict(outcome.not_chosen),
        "failed": dict(outcome.failed),
        "first_token_ms": outcome.first_token_ms,
        "total_ms": outcome.total_ms,
    }


NO_OUTCOME: Mapping[str, Any] = {
    **dict.fromkeys(("receipt", "provider", "model", "task", "cached", "because"), ""),
    **dict.fromkeys(("price_in", "price_out", "amount", "tokens_in", "tokens_out", "first_token_ms", "total_ms"), 0),
    "not_chosen": {},
    "failed": {},
}
"""What `octo_of` says where nothing was bought."""


def octo_of_all(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one answer, all of it; of several, the receipts and the sums (each choice carries its own)."""
    if len(outcomes) == 1:
        return octo_of(outcomes[0])
    return {
        "receipts": [outcome.receipt for outcome in outcomes],
        "amount": sum(outcome.amount for outcome in outcomes),
        "tokens_in": sum(outcome.tokens_in for outcome in outcomes),
        "tokens_out": sum(outcome.tokens_out for outcome in outcomes),
    }


def usage_of(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """What was paid for: each choice pays for its input."""
    tokens_in = sum(outcome.tokens_in for outcome in outcomes)
    tokens_out = sum(outcome.tokens_out for outcome in outcomes)
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def usage_in(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The same of work that comes back in pieces."""
    tokens_in = sum(outcome.tokens_in for outcome in outcomes)
    return {"prompt_tokens": tokens_in, "total_tokens": tokens_in}


def pieces_of(answer: Answer, count: int) -> list[bytes]:
    """As many as were asked for. Raises PeerFailed: fewer are no answer, though they are paid."""
    pieces = [part.data for part in answer.shown if isinstance(part, Part)]
    if len(pieces) != count:
        outcome = answer.outcome
        raise PeerFailed(
            f"the provider delivered {len(pieces)} of {count}; receipt {outcome.receipt}.", peer=outcome.provider
        )
    return pieces


def to_json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def event(content: object) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(content) + b"\n\n"
