"""POST /v1/completions: a text and how it goes on. OpenAI's older way of asking; what base models understand.

Source: OpenAI's API reference, "Create completion".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from market.buyer import Order
from market.errors import OctoError
from market.ports import Tokenizer
from market.reception import Outcome
from market.taking import Delta, Shown
from node.api.answering import EVENT_STREAM, Prepared, Whole, told_as_event
from node.api.answers import Answer
from node.api.bodies import parse_body
from node.api.clerk import Clerk, Refused
from node.api.octo_facts import DONE, event, octo_of, octo_of_all, to_json, usage_of
from node.api.openai_logprobs import Columns
from node.api.openai_text import LOGPROBS_LIMIT, TextRequest

ANSWERS_LIMIT = 32
DEFAULT_TOKENS = 16
"""OpenAI's own default."""


def _prompts(raw: object) -> object:
    if isinstance(raw, list) and raw and isinstance(raw[0], (int, list)):
        raise PydanticCustomError(
            "tokens", "token ids are not taken: they differ from model to model; send the text itself"
        )
    return [raw] if isinstance(raw, str) else raw


def _best_of(raw: object) -> object:
    if raw not in (None, 1):
        raise PydanticCustomError("best_of", "not supported yet by this node; ask for n answers and choose")
    return None


class CompletionRequest(TextRequest):
    prompt: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1, max_length=ANSWERS_LIMIT),
        BeforeValidator(_prompts),
    ]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_LIMIT)] | None = None
    best_of: Annotated[int | None, BeforeValidator(_best_of)] = None
    suffix: Refused = None

    @model_validator(mode="after")
    def _within_reason(self) -> Self:
        if len(self.prompt) * (self.n or 1) > ANSWERS_LIMIT:
            raise PydanticCustomError(
                "too_many", "at most {limit} answers to one request", {"limit": ANSWERS_LIMIT, "param": "prompt"}
            )
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "echo", "not together with logprobs: a prompt's tokens have none here", {"param": "echo"}
            )
        return self


class Completions:
    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def prepare(self, data: bytes) -> Prepared:
        asked = parse_body(CompletionRequest, data)
        clerk = self._clerk
        model = clerk.resolve(asked.model)
        sampling = asked.sampling(clerk)
        orders = [
            Order(
                model=model,
                text=prompt,
                sampling=replace(sampling, choice=choice),
                max_tokens=asked.max_tokens or DEFAULT_TOKENS,
                stop=tuple(asked.stop or ()),
                logprobs=asked.logprobs,
                seeded=asked.seed is not None,
                **clerk.terms(asked.octo),
            )
            for prompt in asked.prompt
            for choice in range(asked.n or 1)
        ]
        form = CompletionForm(
            id=clerk.new_id("cmpl-"),
            created=clerk.now(),
            model=asked.model,
            echoes=[order.text if asked.echo else "" for order in orders],
            include_usage=asked.include_usage,
            tokenizer=await clerk.tokenizer(model) if asked.logprobs is not None else None,
            top=asked.logprobs or 0,
        )
        return Prepared(orders=orders, form=form, stream=bool(asked.stream))


class CompletionForm:
    """`echoes` is what stands before each answer."""

    stream_headers = EVENT_STREAM

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        echoes: Sequence[str],
        include_usage: bool,
        tokenizer: Tokenizer | None,
        top: int,
    ) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._echoes = echoes
        self._include_usage = include_usage
        self._columns = [Columns(tokenizer, top=top) for _ in echoes] if tokenizer is not None else None

    def whole(self, answers: Sequence[Answer]) -> Whole:
        outcomes = [answer.outcome for answer in answers]
        choices = []
        for index, answer in enumerate(answers):
            deltas = [item for item in answer.shown if isinstance(item, Delta)]
            text = self._echoes[index] + "".join(delta.text for delta in deltas)
            choice = self._choice(index, text, deltas, answer.outcome.finish)
            choices.append({**choice, **({"octo": octo_of(answer.outcome)} if len(answers) > 1 else {})})
        return Whole(to_json({**self._head(), "choices": choices, **_sums(outcomes)}))

    # ---- in chunks ----

    def opening(self) -> bytes:
        return b"".join(self._chunk([self._choice(i, text, [])]) for i, text in enumerate(self._echoes) if text)

    def piece(self, index: int, shown: Shown) -> bytes:
        assert isinstance(shown, Delta)
        if not shown.text and not shown.logprobs:
            return b""
        return self._chunk([self._choice(index, shown.text, [shown])])

    def finish(self, index: int, outcome: Outcome) -> bytes:
        return self._chunk([self._choice(index, "", [], outcome.finish)], octo=octo_of(outcome))

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:
        return (self._chunk([], **_sums(outcomes)) if self._include_usage else b"") + DONE

    def broken(self, error: OctoError) -> bytes:
        return told_as_event(error)

    def _choice(self, index: int, text: str, deltas: Sequence[Delta], finish: str | None = None) -> dict[str, Any]:
        told = self._columns[index].take(deltas) if self._columns is not None and deltas else None
        return {"text": text, "index": index, "logprobs": told, "finish_reason": finish}

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}

    def _chunk(self, choices: Sequence[Mapping[str, Any]], **more: object) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return event({**self._head(), "choices": choices, **usage, **more})


def _sums(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {"usage": usage_of(outcomes), "octo": octo_of_all(outcomes)}
