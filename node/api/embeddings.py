"""POST /v1/embeddings: texts to vectors. Source: OpenAI's API reference, "Create embeddings".

Each input is bought once: what stands twice in a request, or is kept from an earlier one (`node.vectors`), is not asked
for again. What is told of a kept vector is the receipt that it was bought with.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from market.caching import Caching
from market.errors import PeerFailed
from market.work import EMBED_TOKENS_LIMIT, INPUTS_LIMIT, EmbedInput, EmbedRequest
from node.api.answering import Prepared, Whole, WholeOnly
from node.api.answers import Answer
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions
from node.api.octo_facts import NO_OUTCOME, octo_of, pieces_of, to_json, usage_in
from node.node import Node
from node.vectors.cache import KEPT_PRIVACY, EmbeddingCache
from node.vectors.sealing import About, KeptVector, is_vector

TEXT_LIMIT = 200_000


def _inputs(raw: object) -> object:
    """OpenAI's four forms: a text, texts, token ids, lists of token ids."""
    return [raw] if isinstance(raw, str) or (isinstance(raw, list) and raw and _is_id(raw[0])) else raw


def _is_id(raw: object) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool)


def _input(raw: object) -> EmbedInput:
    # By hand: of a union pydantic would say for each half why it is not that.
    if isinstance(raw, str):
        if not 1 <= len(raw) <= TEXT_LIMIT:
            raise PydanticCustomError("text", "a text has at least 1 and at most 200000 characters")
        return raw
    if isinstance(raw, list):
        if not 1 <= len(raw) <= EMBED_TOKENS_LIMIT:
            raise PydanticCustomError("tokens", "a list of token ids holds at least 1 and at most 131072")
        if not all(_is_id(item) and 0 <= item < 2**31 for item in raw):
            raise PydanticCustomError("tokens", "token ids are integers of at least 0 and below 2^31")
        return tuple(raw)
    raise PydanticCustomError("input", "should be a text, or a list of token ids")


class EmbeddingsBody(Shape):
    model: ModelName
    input: Annotated[
        list[Annotated[Any, PlainValidator(_input)]],
        Field(min_length=1, max_length=INPUTS_LIMIT),
        BeforeValidator(_inputs),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    octo: OctoOptions | None = None

    user: Ignored = None


class Memory:
    """What the node keeps of vectors about one model, for whoever asks now; of a node that keeps none, nothing."""

    def __init__(self, cache: EmbeddingCache | None, *, whose: str, about: About) -> None:
        self._cache = cache
        self._whose = whose
        self._about = about
        self._epoch = cache.epoch if cache is not None else 0

    async def find(self, inputs: Sequence[EmbedInput], engines: frozenset[str]) -> Mapping[EmbedInput, KeptVector]:
        """All by one class of engines and of one length, those of most of them: others make other bits."""
        if self._cache is None:
            return {}
        found = await self._cache.find(self._whose, self._about, inputs, engines=engines)
        ranked = Counter(map(_kind, found.values())).most_common(1)
        return {given: kept for given, kept in found.items() if _kind(kept) == ranked[0][0]}

    async def keep(self, vectors: Mapping[EmbedInput, KeptVector]) -> None:
        if self._cache is not None and vectors:
            await self._cache.keep(self._whose, self._about, vectors, epoch=self._epoch)

    async def disown(self, inputs: Sequence[EmbedInput]) -> None:
        if self._cache is not None:
            await self._cache.disown(self._whose, self._about, inputs)


def _kind(kept: KeptVector) -> tuple[str, int]:
    return kept.engine, len(kept.vector)


class Embeddings:
    def __init__(self, clerk: Clerk, node: Node) -> None:
        self._clerk = clerk
        self._node = node

    async def prepare(self, data: bytes, whose: str) -> Prepared:
        """`whose` is `node.api.guard.CALLER`; nothing is kept for nobody ("")."""
        asked = parse_body(EmbeddingsBody, data)
        terms = self._clerk.terms(asked.octo)
        model = self._clerk.resolve(asked.model)
        about = About(model=model, dimensions=asked.dimensions or 0, privacy=terms["privacy"])
        may_keep = whose and terms["cache"] is not Caching.OFF and about.privacy in KEPT_PRIVACY
        memory = Memory(self._node.answers.vectors if may_keep else None, whose=whose, about=about)
        inputs: tuple[EmbedInput, ...] = tuple(asked.input)
        known = await memory.find(tuple(dict.fromkeys(inputs)), self._engines(model))
        missing = tuple(given for given in dict.fromkeys(inputs) if given not in known)
        form = EmbeddingsForm(
            name=asked.model, about=about, inputs=inputs, known=known, missing=missing, memory=memory,
            encoding=asked.encoding_format,
        )  # fmt: skip
        if not missing:
            return Prepared(orders=[], form=form)
        request = EmbedRequest(inputs=missing, dimensions=about.dimensions)
        order = self._clerk.work_order(asked.model, request, asked.octo, param="input")
        return Prepared(orders=[order], form=form, settle=form.settle)

    def _engines(self, model: str) -> frozenset[str]:
        """The classes that would make the vectors today: what others made is not what would be said."""
        return frozenset(m.engine for offered in self._node.offers() for m in offered.offer.models if m.model == model)


class Told(TypedDict):
    """`octo.kept`: how many of the vectors were not bought now. `receipts` has for each receipt that proves some of
    them pairs of the index here and the place in the answer that the receipt is for."""

    vectors: int
    receipts: dict[str, list[tuple[int, int]]]


class EmbeddingsForm(WholeOnly):
    def __init__(
        self,
        *,
        name: str,
        about: About,
        inputs: Sequence[EmbedInput],
        known: Mapping[EmbedInput, KeptVector],
        missing: Sequence[EmbedInput],
        memory: Memory,
        encoding: Literal["float", "base64"],
    ) -> None:
        self._name = name
        self._about = about
        self._inputs = inputs
        self._known = known
        self._missing = missing
        self._memory = memory
        self._encoding = encoding

    async def settle(self, answers: Sequence[Answer]) -> None:
        """Keep what was bought, once it is what was asked for. Raises PeerFailed."""
        bought = self._bought(answers)
        widths = Counter(len(kept.vector) for kept in (*bought.values(), *self._known.values()))
        if len(widths) > 1:
            await self._memory.disown(tuple(self._known))
            (answer,) = answers
            raise PeerFailed(
                f"vectors of different lengths came for one model; receipt {answer.outcome.receipt}. Asked again, all"
                " of them are bought anew.",
                peer=answer.outcome.provider,
            )
        await self._memory.keep(bought)

    def whole(self, answers: Sequence[Answer]) -> Whole:
        vectors = dict(self._known) | dict(self._bought(answers))
        outcomes = [answer.outcome for answer in answers]
        octo = octo_of(outcomes[0]) if outcomes else dict(NO_OUTCOME) | {"model": self._about.model}
        return Whole(
            to_json(
                {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": index, "embedding": self._shown(vectors[given].vector)}
                        for index, given in enumerate(self._inputs)
                    ],
                    "model": self._name,
                    "usage": usage_in(outcomes),
                    "octo": octo | {"kept": self._kept()},
                }
            )
        )

    def _bought(self, answers: Sequence[Answer]) -> Mapping[EmbedInput, KeptVector]:
        bought = {}
        for answer in answers:
            outcome = answer.outcome
            for at, (given, piece) in enumerate(zip(self._missing, pieces_of(answer, len(self._missing)), strict=True)):
                if not is_vector(piece, self._about.dimensions):  # no JSON holds NaN, and no one can use it
                    raise PeerFailed(f"a vector is none; receipt {outcome.receipt}.", peer=outcome.provider)
                bought[given] = KeptVector(vector=piece, receipt=outcome.receipt, piece=at, engine=outcome.engine)
        return bought

    def _kept(self) -> Told:
        receipts: dict[str, list[tuple[int, int]]] = {}
        for index, given in enumerate(self._inputs):
            if given in self._known:
                kept = self._known[given]
                receipts.setdefault(kept.receipt, []).append((index, kept.piece))
        return Told(vectors=sum(map(len, receipts.values())), receipts=receipts)

    def _shown(self, vector: bytes) -> str | list[float]:
        if self._encoding == "base64":
            return base64.b64encode(vector).decode()
        numbers: list[float] = np.frombuffer(vector, "<f4").tolist()
        return numbers
