"""A Task: one unit of work, as the buyer asks for it. Sampling is integers only, because it is hashed and signed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, NewType

from pydantic import Field

from market.errors import RequestInvalid
from market.tools import CALLS_LIMIT, TOOLS_LIMIT, Tool, ToolCall
from market.values import Word, encode, value

TaskId = NewType("TaskId", bytes)
"""32 random bytes chosen by the buyer."""

MICRO = 1_000_000
MAX_TOKENS_LIMIT = 131_072
MESSAGES_LIMIT = 2_048
STOP_LIMIT = 8
LOGIT_BIAS_LIMIT = 1_024
GRAMMAR_LIMIT = 64 * 1024


class Mode(Word):
    REALTIME = "realtime"
    BATCH = "batch"
    ASYNC = "async"


class Privacy(Word):
    """Who may see the prompt; see DESIGN section 9. Inherited down a hiring tree, it can only rise."""

    PUBLIC = "public"
    SHARED = "shared"
    CONFIDENTIAL = "confidential"
    PRIVATE = "private"

    @property
    def rank(self) -> int:
        return list(Privacy).index(self)


@value
class ChatMessage:
    """`tool_calls`, and in a message of the role `tool` the `tool_call_id`: for templates that know of tools alone."""

    role: Annotated[str, Field(min_length=1, max_length=32)]
    content: Annotated[str, Field(max_length=4_000_000)]
    name: str | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(max_length=CALLS_LIMIT)] = ()
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None

    @property
    def size(self) -> int:
        """In characters."""
        return len(self.content) + sum(len(call.name) + len(call.arguments) for call in self.tool_calls)


@value
class LogitBias:
    token: Annotated[int, Field(ge=0, lt=2**31)]
    bias_micro: Annotated[int, Field(ge=-100 * MICRO, le=100 * MICRO)]


@value
class Sampling:
    """How tokens are drawn (DESIGN section 8). Fractions are millionths: temperature 0.7 is 700_000.

    `seed` is 32 bytes chosen by the buyer; `choice` is the index of the answer when several are
    asked for. top_k 0 means no limit below the sampler's own 256.
    """

    seed: Annotated[bytes, Field(min_length=32, max_length=32)]
    choice: Annotated[int, Field(ge=0, le=127)] = 0
    temperature_micro: Annotated[int, Field(ge=0, le=2 * MICRO)] = MICRO
    top_k: Annotated[int, Field(ge=0, le=256)] = 0
    top_p_micro: Annotated[int, Field(gt=0, le=MICRO)] = MICRO
    frequency_penalty_micro: Annotated[int, Field(ge=-2 * MICRO, le=2 * MICRO)] = 0
    presence_penalty_micro: Annotated[int, Field(ge=-2 * MICRO, le=2 * MICRO)] = 0
    logit_bias: Annotated[tuple[LogitBias, ...], Field(max_length=LOGIT_BIAS_LIMIT)] = ()

    def digest(self) -> bytes:
        return hashlib.sha256(encode(Sampling, self)).digest()


@value
class ChatTask:
    """What the buyer wants done: an answer to `messages`, or, without any, the continuation of `text`.

    `model` is a manifest CID; `salt` blinds the prompt's hash in the receipt. `grammar` is GBNF, or a JSON schema if
    it starts with "{": the answer must match. `logprobs` asks for so many alternatives beside each token. `tools` are
    told by the model's own chat template; a model whose template cannot is asked without.
    """

    model: Annotated[str, Field(max_length=128)]
    messages: Annotated[tuple[ChatMessage, ...], Field(max_length=MESSAGES_LIMIT)] = ()
    tools: Annotated[tuple[Tool, ...], Field(max_length=TOOLS_LIMIT)] = ()
    text: Annotated[str, Field(max_length=4_000_000)] = ""
    grammar: Annotated[str, Field(max_length=GRAMMAR_LIMIT)] = ""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    sampling: Sampling
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)]
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=STOP_LIMIT)] = ()
    mode: Mode = Mode.REALTIME
    privacy: Privacy = Privacy.SHARED
    salt: Annotated[bytes, Field(min_length=32, max_length=32)]

    def sampling_digest(self) -> bytes:
        """What quote and receipt name as the sampling: how tokens are drawn, and what they must match."""
        drawn = self.sampling.digest()
        if not self.grammar:
            return drawn
        return hashlib.sha256(b"octo/grammar/1" + drawn + hashlib.sha256(self.grammar.encode()).digest()).digest()


CHARACTERS_PER_TOKEN_LIMIT = 64


def may_fit(messages: Sequence[ChatMessage], text: str, context: int, tools: Sequence[Tool] = ()) -> bool:
    """Whether a chat or text could fit into `context` tokens at all, by its length alone.

    Asked before tokenizing, which takes a millisecond for 3,000 characters: megabytes would hold up
    every other stream. No text that people write has 64 characters to a token.
    """
    characters = len(text) + sum(message.size for message in messages)
    characters += sum(len(tool.description) + len(tool.parameters) for tool in tools)
    return characters <= context * CHARACTERS_PER_TOKEN_LIMIT


def user_seed(seed: int) -> bytes:
    """The sampler's 32 bytes for a request that carries OpenAI's integer `seed`."""
    if not -(2**63) <= seed < 2**63:
        raise RequestInvalid("seed must be a 64-bit integer.", param="seed")
    return hashlib.sha256(b"octo/seed/user/1" + seed.to_bytes(8, "big", signed=True)).digest()


def prompt_digest(salt: bytes, prompt: tuple[int, ...]) -> bytes:
    """Salted hash of a prompt's token ids: it binds the receipt to the prompt without leaking a short one."""
    ids = b"".join(token.to_bytes(4, "big") for token in prompt)
    return hashlib.sha256(b"octo/prompt/1" + salt + len(prompt).to_bytes(4, "big") + ids).digest()
