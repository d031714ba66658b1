"""POST /v1/embeddings and POST /v1/rerank: texts to vectors, documents to an order.

Sources: OpenAI's API reference, "Create embeddings"; for reranking, the shape that Cohere and Jina share.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from market.errors import PeerFailed
from market.reception import Outcome
from market.taking import Part
from market.work import INPUTS_LIMIT, EmbedRequest, RerankRequest
from node.api.answering import Prepared, Whole, WholeOnly
from node.api.answers import Answer
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions, Refused, unsupported
from node.api.octo_facts import octo_of, to_json

_Text = Annotated[str, Field(min_length=1, max_length=200_000)]
_RANKED = struct.Struct("<If")


def _inputs(raw: object) -> object:
    if isinstance(raw, list) and raw and isinstance(raw[0], (int, list)):
        raise PydanticCustomError(
            "tokens", "token ids are not taken: they differ from model to model; send the text itself"
        )
    return [raw] if isinstance(raw, str) else raw


class EmbeddingsBody(Shape):
    model: ModelName
    input: Annotated[list[_Text], Field(min_length=1, max_length=INPUTS_LIMIT), BeforeValidator(_inputs)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    octo: OctoOptions | None = None

    user: Ignored = None


class Embeddings:
    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def prepare(self, data: bytes) -> Prepared:
        asked = parse_body(EmbeddingsBody, data)
        request = EmbedRequest(inputs=tuple(asked.input), dimensions=asked.dimensions or 0)
        order = self._clerk.work_order(asked.model, request, asked.octo, param="input")
        form = EmbeddingsForm(model=asked.model, inputs=len(asked.input), encoding=asked.encoding_format)
        return Prepared(orders=[order], form=form)


class EmbeddingsForm(WholeOnly):
    def __init__(self, *, model: str, inputs: int, encoding: Literal["float", "base64"]) -> None:
        self._model = model
        self._inputs = inputs
        self._encoding = encoding

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        pieces = pieces_of(answer, self._inputs)
        return Whole(
            to_json(
                {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": index, "embedding": self._vector(piece, answer.outcome)}
                        for index, piece in enumerate(pieces)
                    ],
                    "model": self._model,
                    "usage": _usage(answer.outcome),
                    "octo": octo_of(answer.outcome),
                }
            )
        )

    def _vector(self, piece: bytes, outcome: Outcome) -> str | list[float]:
        whole = len(piece) % 4 == 0
        numbers = struct.unpack(f"<{len(piece) // 4}f", piece) if whole else ()
        if not numbers or not all(map(math.isfinite, numbers)):  # no JSON holds NaN, and no one can use it
            raise PeerFailed(f"a vector is none; receipt {outcome.receipt}.", peer=outcome.provider)
        return base64.b64encode(piece).decode() if self._encoding == "base64" else list(numbers)


def _document(raw: object) -> object:
    """A text, or an object with one, as both of the shape's authors allow."""
    if isinstance(raw, dict):
        if "text" not in raw or len(raw) > 1:
            raise unsupported("documents that are no texts are")
        return raw["text"]
    return raw


class RerankBody(Shape):
    model: ModelName
    query: _Text
    documents: Annotated[
        list[Annotated[_Text, BeforeValidator(_document)]], Field(min_length=1, max_length=INPUTS_LIMIT)
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    octo: OctoOptions | None = None

    rank_fields: Refused = None
    max_chunks_per_doc: Refused = None
    max_tokens_per_doc: Refused = None
    user: Ignored = None


class Rerank:
    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def prepare(self, data: bytes) -> Prepared:
        asked = parse_body(RerankBody, data)
        request = RerankRequest(query=asked.query, documents=tuple(asked.documents))
        order = self._clerk.work_order(asked.model, request, asked.octo, param="documents")
        return Prepared(orders=[order], form=RerankForm(id=self._clerk.new_id("rerank-"), asked=asked))


class RerankForm(WholeOnly):
    def __init__(self, *, id: str, asked: RerankBody) -> None:
        self._id = id
        self._asked = asked

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        documents = self._asked.documents
        ranked = [self._ranked(piece, answer.outcome) for piece in pieces_of(answer, len(documents))]
        if len({index for index, _ in ranked}) != len(documents):
            raise PeerFailed(f"a document was ranked twice; receipt {answer.outcome.receipt}.", peer=_peer(answer))
        ranked.sort(key=lambda pair: (-pair[1], pair[0]))
        results = [
            {
                "index": index,
                "relevance_score": score,
                **({"document": {"text": documents[index]}} if self._asked.return_documents else {}),
            }
            for index, score in ranked[: self._asked.top_n]
        ]
        return Whole(
            to_json(
                {
                    "id": self._id,
                    "object": "list",
                    "model": self._asked.model,
                    "results": results,
                    "usage": _usage(answer.outcome),
                    "octo": octo_of(answer.outcome),
                }
            )
        )

    def _ranked(self, piece: bytes, outcome: Outcome) -> tuple[int, float]:
        index, score = _RANKED.unpack(piece) if len(piece) == _RANKED.size else (len(self._asked.documents), 0.0)
        if index >= len(self._asked.documents) or not math.isfinite(score):
            raise PeerFailed(f"a document's rank is none; receipt {outcome.receipt}.", peer=outcome.provider)
        return index, score


def pieces_of(answer: Answer, count: int) -> list[bytes]:
    """As many as were asked for. Raises PeerFailed: fewer are no answer, though they are paid."""
    pieces = [part.data for part in answer.shown if isinstance(part, Part)]
    if len(pieces) != count:
        raise PeerFailed(
            f"the provider delivered {len(pieces)} of {count}; receipt {answer.outcome.receipt}.", peer=_peer(answer)
        )
    return pieces


def _peer(answer: Answer) -> str:
    return answer.outcome.provider


def _usage(outcome: Outcome) -> dict[str, Any]:
    return {"prompt_tokens": outcome.tokens_in, "total_tokens": outcome.tokens_in}
