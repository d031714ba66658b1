"""What is asked of an OpenAI-compatible server for a job, and what its events mean: two ways of speaking.

Lives here: request bodies and the reading of events; pure. Knows no connection.
`Chat` speaks text (`/chat/completions`) and counts units of three bytes: any server, a tokenizer nobody knows. `Tokens`
speaks token ids (`/completions` of vLLM): prompt, answer and log probabilities are exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from inference.engines.openai_client import REFUSALS, UpstreamFailed, error_word, refusal
from inference.models.plain_tokenizer import UnitCutter, messages_of
from market.errors import PromptTooLong, RequestInvalid
from market.ports import EngineInfo, Generated, Job, TokenLogprobs
from market.task import MICRO, Sampling
from market.values import value

LOGPROBS_LIMIT: Final = 20
_BYTES_BESIDE: Final = 4 * 1024 * 1024
_BYTES_A_TOKEN: Final = 4096
"""A delta of any server is a tenth of it; with 20 log probabilities, a half."""

Finish = Literal["", "stop", "length"]
_FINISHES: Final[Mapping[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "content_filter": "stop",  # the answer is over, and what came of it stands
}


@value
class Heard:
    """What an event brought. `alive`: the server works, though it says nothing that counts (it thinks)."""

    generated: Generated
    alive: bool = True


class Reader(Protocol):
    def hear(self, event: Any) -> Heard:
        """Raises UpstreamFailed for an event that makes no sense, RequestInvalid if the server refuses only now."""

    def end(self) -> Generated:
        """The stream's [DONE] came without a reason."""


class Dialect(Protocol):
    path: str
    features: frozenset[str]

    def body(self, job: Job) -> dict[str, Any]:
        """Raises RequestInvalid for what a job asks and this way of speaking cannot say."""

    def reader(self, job: Job) -> Reader: ...


def check_job(job: Job, info: EngineInfo) -> None:
    """What holds for every dialect. Raises RequestInvalid."""
    if not job.prompt:
        raise RequestInvalid("the prompt is empty.", param="messages")
    if len(job.prompt) >= info.context:
        raise PromptTooLong(
            f"the prompt has {len(job.prompt)} tokens; {info.context} is the context, answer included.",
            next_step="Shorten the messages, or choose an offer with a longer context.",
            param="messages",
        )
    if job.max_tokens < 1:
        raise RequestInvalid("max_tokens must be at least 1.", param="max_tokens")
    if job.logprobs is not None and "logprobs" not in info.features:
        raise RequestInvalid("this engine has no log probabilities.", param="logprobs")
    if job.grammar and "grammar" not in info.features:
        raise RequestInvalid("this engine cannot keep an answer to a grammar or schema.", param="response_format")


def limit_bytes(job: Job) -> int:
    """More than any honest answer to `job` takes on the wire."""
    return _BYTES_BESIDE + (min(job.max_tokens, 1 << 20) + len(job.prompt)) * _BYTES_A_TOKEN


class Chat:
    """`logit_bias`, log probabilities and grammars are refused: they name tokens, or cannot be relied on. `top_k` is
    sent where a job has one, and servers that do not know it refuse or ignore it. `max_tokens` is sent as it is: a
    server's token has about as many bytes as a unit or more, so it ends at the units' count or earlier."""

    path = "chat/completions"
    features: frozenset[str] = frozenset()

    def __init__(self, model: str) -> None:
        self._model = model

    def body(self, job: Job) -> dict[str, Any]:
        if job.sampling.logit_bias:
            raise RequestInvalid("this engine's tokens are unknown, so none can be biased.", param="logit_bias")
        messages = [
            {"role": m.role, "content": m.content, **({} if m.name is None else {"name": m.name})}
            for m in messages_of(job.prompt)
        ]
        return {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "max_tokens": job.max_tokens,
            **_sampling(job.sampling),
        }

    def reader(self, job: Job) -> Reader:
        return ChatReader(job.max_tokens)


class ChatReader:
    def __init__(self, max_tokens: int) -> None:
        self._cutter = UnitCutter(max_tokens)

    def hear(self, event: Any) -> Heard:
        choice = _choice(event)
        if choice is None:
            return Heard(generated=Generated(tokens=()), alive=False)
        delta = choice.get("delta")
        delta = {} if delta is None else delta
        text = delta.get("content") if isinstance(delta, dict) else 0
        if not isinstance(text, str | None):
            raise UpstreamFailed("the server behind this engine sent a delta that is no text.")
        if delta.get("tool_calls") or delta.get("function_call"):
            raise UpstreamFailed("the server behind this engine called a tool, and none was offered.")
        units = self._cutter.feed(text) if text else ()
        if self._cutter.full:
            return Heard(generated=Generated(tokens=units + self._cutter.finish(), finish="length"))
        finish = _finish(choice)
        if finish:
            return Heard(generated=Generated(tokens=units + self._cutter.finish(), finish=finish))
        thinks = any(isinstance(delta.get(name), str) and delta[name] for name in ("reasoning_content", "reasoning"))
        return Heard(generated=Generated(tokens=units), alive=bool(text) or thinks)

    def end(self) -> Generated:
        return Generated(tokens=self._cutter.finish(), finish="stop")


class Tokens:
    """`features` as `market.ports.EngineInfo` names them. Each job's prefix cache would be reported only at its end,
    so servers that we start have none."""

    path = "completions"
    features = frozenset({"logprobs", "grammar", "bias"})

    def __init__(self, model: str, vocabulary: int) -> None:
        self._model = model
        self._vocabulary = vocabulary

    def body(self, job: Job) -> dict[str, Any]:
        biases = job.sampling.logit_bias
        if not all(0 <= token < self._vocabulary for token in job.prompt):
            raise RequestInvalid("the prompt holds a token id that this model does not have.", param="messages")
        if not all(0 <= bias.token < self._vocabulary for bias in biases):
            raise RequestInvalid("logit_bias names a token id that this model does not have.", param="logit_bias")
        if job.logprobs is not None and not 0 <= job.logprobs <= LOGPROBS_LIMIT:
            raise RequestInvalid(f"logprobs must be 0 to {LOGPROBS_LIMIT}.", param="logprobs")
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(job.prompt),
            "stream": True,
            "max_tokens": job.max_tokens,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "ignore_eos": True,  # what ends an answer is the job's to say
            "stop_token_ids": sorted(job.end_tokens),
            **_sampling(job.sampling),
        }
        if biases:
            body["logit_bias"] = {str(bias.token): bias.bias_micro / MICRO for bias in biases}
        if job.logprobs is not None:
            body |= {"logprobs": job.logprobs, "return_tokens_as_token_ids": True}
        if job.grammar:
            kind = "json" if job.grammar.startswith("{") else "grammar"
            body["structured_outputs"] = {kind: job.grammar}
        return body

    def reader(self, job: Job) -> Reader:
        return TokensReader(job, self._vocabulary)


class TokensReader:
    def __init__(self, job: Job, vocabulary: int) -> None:
        self._job = job
        self._vocabulary = vocabulary
        self._left = job.max_tokens

    def hear(self, event: Any) -> Heard:
        choice = _choice(event)
        if choice is None:
            return Heard(generated=Generated(tokens=()), alive=False)
        prompt = choice.get("prompt_token_ids")
        if prompt is not None and prompt != list(self._job.prompt):
            raise UpstreamFailed("the server behind this engine changed the prompt.")
        ids = choice.get("token_ids")
        ids = [] if ids is None else ids
        if not isinstance(ids, list) or not all(self._is_token(token) for token in ids):
            raise UpstreamFailed("the server behind this engine sent a token id that this model does not have.")
        ended = next((at for at, token in enumerate(ids) if token in self._job.end_tokens), None)
        kept = ids[: ended if ended is not None else self._left][: self._left]
        self._left -= len(kept)
        logprobs = () if self._job.logprobs is None else _logprobs(choice, ids, self._job.logprobs)[: len(kept)]
        finish: Finish = "stop" if ended is not None else _finish(choice)
        if not finish and not self._left:
            finish = "length"
        return Heard(generated=Generated(tokens=tuple(kept), finish=finish, logprobs=logprobs), alive=bool(kept))

    def end(self) -> Generated:
        return Generated(tokens=(), finish="stop")

    def _is_token(self, token: object) -> bool:
        return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < self._vocabulary


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The seed of the API is a number: 31 bits of ours, which every server takes."""
    digest = hashlib.sha256(b"octo/seed/upstream/1" + sampling.seed + bytes((sampling.choice,))).digest()
    said: dict[str, Any] = {
        "temperature": sampling.temperature_micro / MICRO,
        "top_p": sampling.top_p_micro / MICRO,
        "seed": int.from_bytes(digest[:4], "big") >> 1,
    }
    if sampling.frequency_penalty_micro:
        said["frequency_penalty"] = sampling.frequency_penalty_micro / MICRO
    if sampling.presence_penalty_micro:
        said["presence_penalty"] = sampling.presence_penalty_micro / MICRO
    if sampling.top_k:
        said["top_k"] = sampling.top_k
    return said


def _choice(event: Any) -> dict[str, Any] | None:
    """The one choice of an event; None where it has none (counts, time)."""
    if isinstance(event, dict) and event.get("error"):
        said, error = error_word(event), event["error"]
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and code in REFUSALS:  # vLLM finds out that a grammar is none when it has begun
            raise refusal(code, said)
        raise UpstreamFailed(f"the server behind this engine failed in its answer{f': {said}' if said else ''}.")
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list) or (choices and not isinstance(choices[0], dict)):
        raise UpstreamFailed("the server behind this engine sent an event that is none of the API.")
    return choices[0] if choices else None


def _finish(choice: Mapping[str, Any]) -> Finish:
    reason = choice.get("finish_reason")
    if reason is None or reason == "":
        return ""
    if not isinstance(reason, str) or reason not in _FINISHES:
        raise UpstreamFailed("the server behind this engine ended its answer for a reason that is none of the API's.")
    return _FINISHES[reason]


def _logprobs(choice: Mapping[str, Any], ids: list[int], count: int) -> tuple[TokenLogprobs, ...]:
    """vLLM: `tokens` and the keys of `top_logprobs` are `token_id:N`; the drawn token is among these in any case."""
    try:
        said = choice["logprobs"]
        drawn, tops = said["token_logprobs"], said["top_logprobs"]
        if not len(drawn) == len(tops) == len(ids):
            raise ValueError("lengths")
        found = []
        for logprob, top in zip(drawn, tops, strict=True):
            ranked = sorted(((int(name.removeprefix("token_id:")), float(p)) for name, p in top.items()), key=_best)
            found.append(TokenLogprobs(logprob=_finite(logprob), top=tuple(ranked[:count])))
        return tuple(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        if not ids:
            return ()
        raise UpstreamFailed("the server behind this engine sent no log probabilities that make sense.") from None


def _best(pair: tuple[int, float]) -> tuple[float, int]:
    return -_finite(pair[1]), pair[0]


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not finite")
    return float(number)
