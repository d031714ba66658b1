"""What POST /v1/chat/completions takes: OpenAI's request, parsed once, within limits, into orders for the buyer.

A parameter that would change the answer and that we cannot honour is refused by name; one that would not is
taken and ignored. Knows no HTTP. Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from market.buyer import Order
from market.task import (
    LOGIT_BIAS_LIMIT,
    MAX_TOKENS_LIMIT,
    MESSAGES_LIMIT,
    MICRO,
    ChatMessage,
    LogitBias,
    Mode,
    Privacy,
    Sampling,
    user_seed,
)
from node.api.bodies import Shape, parse_body

CHOICES_LIMIT = 8
STOPS_LIMIT = 4
PARTS_LIMIT = 1024
_UNSUPPORTED = "unsupported"
_MEANS_NOTHING: tuple[object, ...] = (None, False, "", [], {}, "auto", "none", {"type": "text"}, ["text"])


def _unsupported(what: str) -> PydanticCustomError:
    return PydanticCustomError(_UNSUPPORTED, "{what} not supported yet by this node", {"what": what})


def _refuse(raw: object) -> None:
    """Values that ask for nothing pass: clients send `tools: []` and `logprobs: false` as a matter of course."""
    if raw not in _MEANS_NOTHING:
        raise _unsupported("it is")


def _text(raw: object) -> object:
    """Text parts, joined. Source: OpenAI's content parts."""
    if not isinstance(raw, list):
        return raw
    if len(raw) > PARTS_LIMIT:
        raise PydanticCustomError("too_long", "at most {limit} parts are allowed", {"limit": PARTS_LIMIT})
    texts = []
    for part in raw:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError("part", "each part should be an object with a type")
        if kind != "text":
            raise _unsupported(f"{kind[:32]!r} parts are")
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("part", "a text part should have a text")
        texts.append(part["text"])
    return "".join(texts)


def _role(raw: object) -> object:
    if raw in ("tool", "function"):
        raise _unsupported(f"{raw!r} messages are")
    return "system" if raw == "developer" else raw


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


Ignored = Annotated[Any, AfterValidator(lambda _: None)]
Refused = Annotated[Any, AfterValidator(_refuse)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)]


class Message(BaseModel):
    """Unknown fields are ignored: clients send back the answers that they got, with all that was in them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_role)]
    content: Annotated[str, BeforeValidator(_text)]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Refused = None
    function_call: Refused = None
    audio: Refused = None


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class OctoOptions(Shape):
    """What OpenAI's API has no word for, as `extra_body={"octo": {…}}`."""

    privacy: Privacy | None = None
    mode: Mode = Mode.REALTIME


class ChatRequest(Shape):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MESSAGES_LIMIT)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=256)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    stop: Annotated[list[Stop], Field(max_length=STOPS_LIMIT), BeforeValidator(_stops)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_biases)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    octo: OctoOptions | None = None

    tools: Refused = None
    tool_choice: Refused = None
    functions: Refused = None
    function_call: Refused = None
    response_format: Refused = None
    logprobs: Refused = None
    top_logprobs: Refused = None
    modalities: Refused = None
    audio: Refused = None
    web_search_options: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("options", "only a request with stream has them", {"param": "stream_options"})
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def orders(self, model: str, *, privacy: Privacy, random: Callable[[int], bytes]) -> tuple[Order, ...]:
        """One order a choice, for manifest CID `model`. `privacy` holds where the request names none; `random`
        gives the sampler's seed where it names none."""
        octo = self.octo or OctoOptions()
        order = Order(
            model=model,
            messages=tuple(ChatMessage(role=m.role, content=m.content, name=m.name) for m in self.messages),
            sampling=self._sampling(user_seed(self.seed) if self.seed is not None else random(32)),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=tuple(self.stop or ()),
            mode=octo.mode,
            privacy=octo.privacy or privacy,
        )
        return tuple(replace(order, sampling=replace(order.sampling, choice=i)) for i in range(self.n or 1))

    def _sampling(self, seed: bytes) -> Sampling:
        biases = sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items())
        return Sampling(
            seed=seed,
            temperature_micro=MICRO if self.temperature is None else _micro(self.temperature),
            top_k=self.top_k or 0,
            top_p_micro=MICRO if self.top_p is None else max(1, _micro(self.top_p)),
            frequency_penalty_micro=_micro(self.frequency_penalty or 0),
            presence_penalty_micro=_micro(self.presence_penalty or 0),
            logit_bias=tuple(LogitBias(token=token, bias_micro=_micro(bias)) for token, bias in biases),
        )


def parse_chat(data: bytes) -> ChatRequest:
    """The request in a JSON body; raises RequestInvalid naming the first parameter that is wrong."""
    return parse_body(ChatRequest, data)


def _micro(number: float) -> int:
    return round(number * MICRO)
