"""What is not made twice: how often, and having it forgotten. What is done is `node.kept_answers`'s."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from market.errors import RequestInvalid
from node.node import Node


class KeptApi:
    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/api/v1/answers", self.answers), web.post("/api/v1/answers/forget", self.forget)]

    async def answers(self, _request: web.Request) -> web.Response:
        return _json(self._node.answers.facts(self._node.buyer))

    async def forget(self, request: web.Request) -> web.Response:
        only = request.query.get("only", "")
        if only not in ("", "vectors"):
            raise RequestInvalid("only: it can be vectors.", param="only")
        kept = self._node.answers
        ends = {"vectors": await kept.forget_vectors()} if only else await kept.forget(self._node.buyer)
        return _json({"forgotten": {who: count for who, count in ends.items() if isinstance(count, int)},
                      "not_reached": {who: why for who, why in ends.items() if isinstance(why, str)}})  # fmt: skip


def _json(plain: Any) -> web.Response:
    return web.json_response(plain, dumps=json.dumps)
