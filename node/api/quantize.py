"""Quantising a model of the node's store, for its owner; answers with progress. What is done is `node.models`'s."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field

from node.api.bodies import Shape, parse_body
from node.api.limits import ApiLimits, read_body
from node.api.long_work import answer_with_progress
from node.node import Node

_Name = Annotated[str, Field(min_length=1, max_length=128)]


class Quantize(Shape):
    """`to` is a word like `Q4_K_M`; `again`: though the model is quantised already."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    to: Annotated[str, Field(min_length=1, max_length=32)]
    name: _Name | None = None
    version: _Name | None = None
    again: bool = False
    public: bool | None = None


class QuantizeApi:
    def __init__(self, node: Node, *, limits: ApiLimits) -> None:
        self._node = node
        self._limits = limits

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/api/v1/models/quantize", self.quantize)]

    async def quantize(self, request: web.Request) -> web.StreamResponse:
        asked = parse_body(Quantize, await read_body(request, self._limits))
        return await answer_with_progress(
            request,
            self._limits,
            lambda progress: self._node.desk.quantizing.quantize(
                asked.model,
                asked.to,
                name=asked.name or "",
                version=asked.version or "",
                again=asked.again,
                public=asked.public,
                progress=progress,
            ),
        )
