"""The node's own models, for its owner: bring, add, push, list, check, remove, search, sign, trust, follow.

What takes long answers with events (see `long_work`); a caller that hangs up cancels, and what has arrived is kept.
What changes something wants the token of the data folder (see `guard`). Knows HTTP and shapes; what is done is
`node.models.desk`'s.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from inference.models.draft import Wishes
from inference.models.manifest import Format
from inference.models.search import Filters
from market.errors import RequestInvalid
from node.api.bodies import Shape, parse_body
from node.api.limits import ApiLimits, read_body
from node.api.long_work import answer_with_progress
from node.models.choices import Choices
from node.models.desk import ModelDesk
from node.node import Node

_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Name = Annotated[str, Field(min_length=1, max_length=128)]


class _Drafted(Shape):
    name: _Name | None = None
    version: _Name | None = None
    licence: _Name | None = None
    modality: _Name | None = None
    public: bool | None = None
    allow_pickled: bool = False

    def wishes(self) -> Wishes:
        return Wishes(
            name=self.name or "",
            version=self.version or "",
            licence=self.licence or "",
            modality=self.modality or "",
            allow_pickled=self.allow_pickled,
        )


class Pull(_Drafted):
    """`sources`: addresses to pull from, and no others. `trust`: this once, believe an unknown creator."""

    reference: _Text
    sources: Annotated[tuple[_Text, ...], Field(max_length=64, strict=False)] = ()
    trust: bool = False


class Add(_Drafted):
    """`path` on the node's machine, a file or a folder."""

    path: _Text
    profile: Literal["unixfs-v1-2025", "raw-256k-174"] = "unixfs-v1-2025"


class Push(Shape):
    """`to`: peer ids to ask to pin it, or `kubo`; nobody: publish only."""

    model: _Text
    to: Annotated[tuple[_Text, ...], Field(max_length=64, strict=False)] = ()


class One(Shape):
    model: _Text | None = None


class Change(Shape):
    """One entry of a list of the owner's: `add` or `remove` it."""

    action: Literal["add", "remove"]
    entry: _Text


class Publish(Shape):
    name: _Name
    models: Annotated[list[_Text], Field(max_length=1024)]


class ModelsApi:
    def __init__(self, node: Node, *, limits: ApiLimits) -> None:
        self._node = node
        self._limits = limits

    @property
    def _desk(self) -> ModelDesk:
        return self._node.desk

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/models/stored", self.stored),
            web.get("/api/v1/models/stored/{model}", self.show),
            web.delete("/api/v1/models/stored/{model}", self.remove),
            web.get("/api/v1/models/search", self.search),
            web.post("/api/v1/models/pull", self.pull),
            web.post("/api/v1/models/add", self.add),
            web.post("/api/v1/models/push", self.push),
            web.post("/api/v1/models/verify", self.verify),
            web.post("/api/v1/models/sign", self.sign),
            web.post("/api/v1/models/gc", self.gc),
            web.get("/api/v1/models/{kind:trust|pins|catalogs}", self.choices),
            web.post("/api/v1/models/{kind:trust|pins|catalogs}", self.choose),
            web.post("/api/v1/models/publish", self.publish),
        ]

    # ---- looking ----

    async def stored(self, _request: web.Request) -> web.Response:
        view = self._desk.view
        return _json({"models": await view.stored(), "store": await view.store_facts()})

    async def show(self, request: web.Request) -> web.Response:
        return _json(await self._desk.view.show(request.match_info["model"]))

    async def search(self, request: web.Request) -> web.Response:
        known = {"q", "format", "modality", "max_bytes", "fits"}
        for name in request.query:
            if name not in known:
                raise RequestInvalid(f"search knows no {name[:64]!r}.", param=name[:64])
        size = request.query.get("max_bytes", "")
        if size and not (size.isascii() and size.isdigit() and len(size) < 20):
            raise RequestInvalid("max_bytes should be a number of bytes.", param="max_bytes")
        form = request.query.get("format")
        if form is not None and form not in set(Format):
            raise RequestInvalid(f"format should be one of {', '.join(Format)}.", param="format")
        filters = Filters(
            format=Format(form) if form else None,
            modality=request.query.get("modality"),
            max_size_bytes=int(size) if size else None,
        )
        fits = request.query.get("fits", "") in ("1", "true")
        return _json({"models": await self._desk.view.search(request.query.get("q", "")[:512], filters, fits=fits)})

    async def choices(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        return _json({kind: await self._desk.choices_told(kind)})

    # ---- doing ----

    async def pull(self, request: web.Request) -> web.StreamResponse:
        asked = parse_body(Pull, await read_body(request, self._limits))
        return await answer_with_progress(
            request,
            self._limits,
            lambda progress: self._desk.pull(
                asked.reference,
                given=asked.sources,
                trust=asked.trust,
                public=asked.public,
                wishes=asked.wishes(),
                progress=progress,
            ),
        )

    async def add(self, request: web.Request) -> web.StreamResponse:
        asked = parse_body(Add, await read_body(request, self._limits))
        return await answer_with_progress(
            request,
            self._limits,
            lambda progress: self._desk.add(
                asked.path, public=asked.public, wishes=asked.wishes(), profile=asked.profile, progress=progress
            ),
        )

    async def push(self, request: web.Request) -> web.StreamResponse:
        asked = parse_body(Push, await read_body(request, self._limits))
        return await answer_with_progress(
            request, self._limits, lambda progress: self._desk.push(asked.model, to=asked.to, progress=progress)
        )

    async def verify(self, request: web.Request) -> web.StreamResponse:
        asked = parse_body(One, await read_body(request, self._limits))
        return await answer_with_progress(
            request, self._limits, lambda progress: self._desk.verify(asked.model, progress=progress)
        )

    async def sign(self, request: web.Request) -> web.Response:
        asked = parse_body(One, await read_body(request, self._limits))
        if asked.model is None:
            raise RequestInvalid("model: which one?", param="model")
        return _json(await self._desk.sign(asked.model))

    async def gc(self, _request: web.Request) -> web.Response:
        return _json(await self._desk.gc())

    async def remove(self, request: web.Request) -> web.Response:
        return _json(await self._desk.remove(request.match_info["model"]))

    async def choose(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        assert kind in Choices.KINDS
        change = parse_body(Change, await read_body(request, self._limits))
        if change.action == "add":
            changed = await self._desk.choose(kind, change.entry)
        else:
            changed = await self._desk.unchoose(kind, change.entry)
        return _json({"changed": changed, kind: await self._desk.choices_told(kind)})

    async def publish(self, request: web.Request) -> web.Response:
        asked = parse_body(Publish, await read_body(request, self._limits))
        return _json(await self._desk.publish_catalog(asked.name, asked.models))


def _json(told: Any) -> web.Response:
    return web.json_response(told, dumps=lambda facts: json.dumps(facts, separators=(",", ":")))
