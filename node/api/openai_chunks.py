"""What /v1 answers: OpenAI's objects and stream chunks, each with `octo`: the receipt, who served it, at what price.

Pure: dictionaries and bytes from outcomes. Prices and amounts are integers of 10^-18 OCTO and may exceed 2^53.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from market.reception import Outcome
from market.values import value
from node.node import ModelOnOffer

DONE = b"data: [DONE]\n\n"


@value
class Answer:
    text: str
    outcome: Outcome


def octo_of(outcome: Outcome) -> dict[str, Any]:
    return {
        "receipt": outcome.receipt,
        "provider": outcome.provider,
        "model": outcome.model,
        "task": outcome.task.hex(),
        "price_in": outcome.price_in,
        "price_out": outcome.price_out,
        "amount": outcome.amount,
        "tokens_in": outcome.tokens_in,
        "tokens_out": outcome.tokens_out,
        "because": outcome.because,
        "not_chosen": dict(outcome.not_chosen),
        "failed": dict(outcome.failed),
        "first_token_ms": outcome.first_token_ms,
        "total_ms": outcome.total_ms,
    }


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


def model_object(model: ModelOnOffer, *, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,  # nobody signs when a model was made
        "owned_by": "octo",
        "octo": {
            "model": model.model,
            "weights": model.weights,
            "context": model.context,
            "price_in": model.price_in,
            "price_out": model.price_out,
            "providers": list(model.providers),
        },
    }


def model_objects(models: Sequence[ModelOnOffer]) -> list[dict[str, Any]]:
    """Two models of one name are told apart by CID: the first keeps the name."""
    named: set[str] = set()
    objects = []
    for model in models:
        objects.append(model_object(model, name=model.model if model.name in named else model.name))
        named.add(model.name)
    return objects


class Form:
    """One request's answer on paper. `model` is the name that was asked for."""

    def __init__(self, *, id: str, created: int, model: str, choices: int, include_usage: bool) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._choices = choices
        self._include_usage = include_usage

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.outcome.finish,
                **({"octo": octo_of(answer.outcome)} if self._choices > 1 else {}),
            }
            for index, answer in enumerate(answers)
        ]
        outcomes = [answer.outcome for answer in answers]
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "usage": usage_of(outcomes),
            "octo": octo_of_all(outcomes),
        }

    # ---- in chunks ----

    def opening(self) -> bytes:
        """Who speaks, for each choice."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk([_choice(index, delta)]) for index in range(self._choices))

    def delta(self, index: int, text: str) -> bytes:
        return self._chunk([_choice(index, {"content": text})])

    def finish(self, index: int, outcome: Outcome) -> bytes:
        """How a choice ended, with its receipt."""
        return self._chunk([_choice(index, {}, outcome.finish)], octo=octo_of(outcome))

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:
        """The end of the stream. A chunk without choices comes only if usage was asked for: others stumble on it."""
        if not self._include_usage:
            return DONE
        return self._chunk([], usage=usage_of(outcomes), octo=octo_of_all(outcomes)) + DONE

    def _chunk(self, choices: Sequence[Mapping[str, Any]], **more: object) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **({"usage": None} if self._include_usage else {}),
            **more,
        }
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _choice(index: int, delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
