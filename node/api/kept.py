"""Answers that are told again: how often, and having them forgotten. What is done is `node.kept_answers`'s."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from node.node import Node


class KeptApi:
    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/api/v1/answers", self.answers), web.post("/api/v1/answers/forget", self.forget)]

    async def answers(self, _request: web.Request) -> web.Response:
        return _json(self._node.answers.facts(self._node.buyer))

    async def forget(self, _request: web.Request) -> web.Response:
        ends = await self._node.answers.forget(self._node.buyer)
        return _json({"forgotten": {who: count for who, count in ends.items() if isinstance(count, int)},
                      "not_reached": {who: why for who, why in ends.items() if isinstance(why, str)}})  # fmt: skip


def _json(plain: Any) -> web.Response:
    return web.json_response(plain, dumps=json.dumps)
