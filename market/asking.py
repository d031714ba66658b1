"""One ask of a buyer, ready to be put to providers: what is named in the call, what is sent after accept.

The half of `market.deal` that differs between a text and other work. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from market.caching import CacheKey
from market.message import PART_LIMIT_BYTES, Body, Input, TaskRequest
from market.ports import Meter, Tokenizer
from market.taking import PieceTaking, Taking, TokenTaking
from market.task import ChatTask, Mode, Privacy, prompt_digest
from market.work import NO_SAMPLING, Work, WorkRequest, WorkTask, input_digest, work_of


class Ask(Protocol):
    """`tokens_in` and `max_tokens` are units where the work is no text; `prompt` and `sampling` are the digests that
    quote and receipt name; `features` are those that the engine must have (`market.ports.EngineInfo`)."""

    work: Work
    model: str
    tokens_in: int
    max_tokens: int
    prompt: bytes
    sampling: bytes
    mode: Mode
    privacy: Privacy
    salt: bytes
    cache: CacheKey | None
    features: frozenset[str]

    def prompt_under(self, salt: bytes) -> bytes:
        """The prompt's digest under another salt."""

    def bodies(self) -> Iterator[Body]:
        """What follows accept."""

    def taking(self, peer: str) -> Taking:
        """Who receives what this peer delivers."""


class TextAsk:
    work = Work.CHAT

    def __init__(
        self, task: ChatTask, prompt: tuple[int, ...], tokenizer: Tokenizer, cache: CacheKey | None = None
    ) -> None:
        self.model = task.model
        self.tokens_in = len(prompt)
        self.max_tokens = task.max_tokens
        self.prompt = prompt_digest(task.salt, prompt)
        self.sampling = task.sampling_digest()
        self.mode = task.mode
        self.privacy = task.privacy
        self.salt = task.salt
        self.cache = cache
        self.features = features_of(task)
        self._task = task
        self._ids = prompt
        self._tokenizer = tokenizer

    def prompt_under(self, salt: bytes) -> bytes:
        return prompt_digest(salt, self._ids)

    def bodies(self) -> Iterator[Body]:
        yield TaskRequest(task=self._task)

    def taking(self, peer: str) -> Taking:
        return TokenTaking(peer, self._tokenizer, self._task.stop, logprobs=self._task.logprobs is not None)


def features_of(task: ChatTask) -> frozenset[str]:
    """What a text asks of an engine beyond the plain."""
    wanted = {"grammar": task.grammar, "logprobs": task.logprobs is not None, "bias": task.sampling.logit_bias}
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


class WorkAsk:
    sampling = NO_SAMPLING
    features: frozenset[str] = frozenset()

    def __init__(
        self,
        task: WorkTask,
        request: WorkRequest,
        *,
        blob: bytes,
        units_in: int,
        meter: Meter,
        cache: CacheKey | None = None,
    ) -> None:
        self.work = work_of(request)
        self.model = task.model
        self.tokens_in = units_in
        self.max_tokens = task.max_units
        self.prompt = input_digest(task.salt, task.request, blob)
        self.mode = task.mode
        self.privacy = task.privacy
        self.salt = task.salt
        self.cache = cache
        self._task = task
        self._request = request
        self._blob = blob
        self._meter = meter

    def prompt_under(self, salt: bytes) -> bytes:
        return input_digest(salt, self._task.request, self._blob)

    def bodies(self) -> Iterator[Body]:
        yield TaskRequest(task=self._task)
        for start in range(0, len(self._blob), PART_LIMIT_BYTES):
            yield Input(start=start, data=self._blob[start : start + PART_LIMIT_BYTES])

    def taking(self, peer: str) -> Taking:
        return PieceTaking(peer, self._request, self._meter)
