"""POST /v1/rerank: documents to an order, in the shape that Cohere and Jina share."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from market.errors import PeerFailed
from market.reception import Outcome
from market.work import INPUTS_LIMIT, RerankRequest
from node.api.answering import Prepared, Whole, WholeOnly
from node.api.answers import Answer
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions, Refused, unsupported
from node.api.octo_facts import octo_of, pieces_of, to_json, usage_in

_Text = Annotated[str, Field(min_length=1, max_length=200_000)]
_RANKED = struct.Struct("<If")


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
            raise PeerFailed(
                f"a document was ranked twice; receipt {answer.outcome.receipt}.", peer=answer.outcome.provider
            )
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
                    "usage": usage_in([answer.outcome]),
                    "octo": octo_of(answer.outcome),
                }
            )
        )

    def _ranked(self, piece: bytes, outcome: Outcome) -> tuple[int, float]:
        index, score = _RANKED.unpack(piece) if len(piece) == _RANKED.size else (len(self._asked.documents), 0.0)
        if index >= len(self._asked.documents) or not math.isfinite(score):
            raise PeerFailed(f"a document's rank is none; receipt {outcome.receipt}.", peer=outcome.provider)
        return index, score
