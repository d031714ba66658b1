"""What /v1/chat/completions and /v1/models answer: OpenAI's objects and stream chunks, each with `octo`.

Pure: dictionaries and bytes from what was bought. Reading calls out of text is `tool_calls`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from market.errors import OctoError
from market.ports import Tokenizer
from market.reception import Outcome
from market.taking import Delta, Shown
from node.api.answering import EVENT_STREAM, Whole, told_as_event
from node.api.answers import Answer
from node.api.octo_facts import DONE, event, octo_of, octo_of_all, to_json, usage_of
from node.api.openai_logprobs import chat_logprobs
from node.api.openai_tools import Toolbox
from node.api.tool_calls import Arguments, CallReader, Head, Said
from node.node import ModelOnOffer

NewId = Callable[[str], str]
"""A fresh id that begins with the given letters."""


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


class ChatForm:
    """One request's answer on paper. `model` is the name that was asked for; `tokenizer` is there if logprobs are
    wanted, `toolbox` if tools may be called."""

    stream_headers = EVENT_STREAM

    def __init__(
        self,
        *,
        new_id: NewId,
        created: int,
        model: str,
        choices: int,
        include_usage: bool,
        tokenizer: Tokenizer | None = None,
        toolbox: Toolbox | None = None,
    ) -> None:
        self._id = new_id("chatcmpl-")
        self._new_id = new_id
        self._created = created
        self._model = model
        self._choices = choices
        self._include_usage = include_usage
        self._tokenizer = tokenizer
        self._readers = [CallReader(toolbox) for _ in range(choices)] if toolbox else None
        self._unseen: list[list[Delta]] = [[] for _ in range(choices)]

    def whole(self, answers: Sequence[Answer]) -> Whole:
        outcomes = [answer.outcome for answer in answers]
        return Whole(
            to_json(
                {
                    "id": self._id,
                    "object": "chat.completion",
                    "created": self._created,
                    "model": self._model,
                    "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
                    "usage": usage_of(outcomes),
                    "octo": octo_of_all(outcomes),
                }
            )
        )

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        deltas = [item for item in answer.shown if isinstance(item, Delta)]
        content: str | None = "".join(delta.text for delta in deltas)
        calls: list[dict[str, Any]] = []
        if self._readers is not None:
            reader = self._readers[index]
            said = [*reader.feed(content or ""), *reader.end()]
            content = "".join(item for item in said if isinstance(item, str))
            calls = self._calls(said)
            content = None if calls and not content.strip() else content
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": content,
                "refusal": None,
                **({"tool_calls": calls} if calls else {}),
            },
            "logprobs": self._logprobs(deltas),
            "finish_reason": _finish(answer.outcome, called=bool(calls)),
            **({"octo": octo_of(answer.outcome)} if self._choices > 1 else {}),
        }

    def _calls(self, said: Sequence[Said]) -> list[dict[str, Any]]:
        calls = [
            {"id": self._new_id("call_"), "type": "function", "function": {"name": item.name, "arguments": ""}}
            for item in said
            if isinstance(item, Head)
        ]
        for item in said:
            if isinstance(item, Arguments):
                calls[item.number]["function"]["arguments"] += item.text  # type: ignore[index]  # a dict of dicts
        return calls

    def _logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        if self._tokenizer is None:
            return None
        return {"content": chat_logprobs(self._tokenizer, deltas), "refusal": None}

    # ---- in chunks ----

    def opening(self) -> bytes:
        """Who speaks, for each choice."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk([_part(index, delta)]) for index in range(self._choices))

    def piece(self, index: int, shown: Shown) -> bytes:
        assert isinstance(shown, Delta)
        if self._tokenizer is not None:
            self._unseen[index].append(shown)
        said: Sequence[Said] = self._readers[index].feed(shown.text) if self._readers else [shown.text]
        return self._told(index, said)

    def finish(self, index: int, outcome: Outcome) -> bytes:
        """What was held back; then how a choice ended, with its receipt."""
        reader = self._readers[index] if self._readers else None
        rest = self._told(index, reader.end()) if reader else b""
        finish = _finish(outcome, called=bool(reader and reader.calls))
        logprobs = self._seen(index)
        last = _part(index, {}, finish, logprobs if logprobs and logprobs["content"] else None)
        return rest + self._chunk([last], octo=octo_of(outcome))

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:
        """The end of the stream. A chunk without choices comes only if usage was asked for: others stumble on it."""
        if not self._include_usage:
            return DONE
        return self._chunk([], usage=usage_of(outcomes), octo=octo_of_all(outcomes)) + DONE

    def broken(self, error: OctoError) -> bytes:
        return told_as_event(error)

    def _told(self, index: int, said: Sequence[Said]) -> bytes:
        out = b""
        for item in said:
            if isinstance(item, str):
                if item:  # a token whose text is still held back says nothing
                    out += self._chunk([_part(index, {"content": item}, None, self._seen(index))])
                continue
            call: dict[str, Any] = {"index": item.number}
            if isinstance(item, Head):
                call |= {"id": self._new_id("call_"), "type": "function"}
                call["function"] = {"name": item.name, "arguments": ""}
            else:
                call["function"] = {"arguments": item.text}
            out += self._chunk([_part(index, {"tool_calls": [call]}, None, self._seen(index))])
        return out

    def _seen(self, index: int) -> dict[str, Any] | None:
        """Log probabilities of the tokens since the last chunk."""
        unseen, self._unseen[index] = self._unseen[index], []
        return self._logprobs(unseen)

    def _chunk(self, choices: Sequence[Mapping[str, Any]], **more: object) -> bytes:
        return event(
            {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._model,
                "choices": choices,
                **({"usage": None} if self._include_usage else {}),
                **more,
            }
        )


def _part(
    index: int, delta: Mapping[str, Any], finish: str | None = None, logprobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _finish(outcome: Outcome, *, called: bool) -> str:
    return "tool_calls" if called and outcome.finish == "stop" else outcome.finish
