"""What chat and plain completions take alike: sampling, ends, choices, streaming. Knows no HTTP.

A parameter that would change the answer and that we cannot honour is refused by name; one that would not is
taken and ignored.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from market.task import LOGIT_BIAS_LIMIT, MAX_TOKENS_LIMIT, MICRO, LogitBias, Sampling, user_seed
from node.api.bodies import Shape
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions, micro

CHOICES_LIMIT = 8
STOPS_LIMIT = 4
LOGPROBS_LIMIT = 20


def _stops(raw: object) -> object:
    return [raw] if isinstance(raw, str) else raw


def _biases(raw: object) -> object:
    """`{"123": -100}` with keys that are token ids, written in one way only."""
    if not isinstance(raw, dict):
        return raw
    if len(raw) > LOGIT_BIAS_LIMIT:  # here, before each of them could become an error message
        raise PydanticCustomError("too_long", "at most {limit} tokens are allowed", {"limit": LOGIT_BIAS_LIMIT})
    for key in raw:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key and int(key) < 2**31):
            raise PydanticCustomError("token_id", "keys should be token ids")
    return raw


Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)]


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class TextRequest(Shape):
    model: ModelName
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=256)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] | None = None
    max_tokens: TokenCount | None = None
    stop: Annotated[list[Stop], Field(max_length=STOPS_LIMIT), BeforeValidator(_stops)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_biases)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    octo: OctoOptions | None = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("options", "only a request with stream has them", {"param": "stream_options"})
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, clerk: Clerk) -> Sampling:
        """The same `seed` gives the same sampler seed at every node; without one it is random."""
        biases = sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items())
        return Sampling(
            seed=user_seed(self.seed) if self.seed is not None else clerk.random(32),
            temperature_micro=MICRO if self.temperature is None else micro(self.temperature),
            top_k=max(0, self.top_k or 0),  # -1 is vLLM's word for no limit
            top_p_micro=MICRO if self.top_p is None else max(1, micro(self.top_p)),
            frequency_penalty_micro=micro(self.frequency_penalty or 0),
            presence_penalty_micro=micro(self.presence_penalty or 0),
            logit_bias=tuple(LogitBias(token=token, bias_micro=micro(bias)) for token, bias in biases),
        )
