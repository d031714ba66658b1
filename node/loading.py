"""The models of a node that are loaded when they are needed: brought, reckoned, offered, and what became of them told.

Lives here: what stands between the settings' words and the model cache, and the faces that are offered for models
whether they are loaded or not. When one is loaded is `node.model_cache`'s to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from inference.engines.llama_text import is_llama_text
from inference.engines.on_demand import OnDemandEngine, OnDemandWork
from inference.hardware import Hardware, detect_hardware
from inference.models.compatibility import EngineKind
from inference.models.library import model_of, models_in, weights_path
from inference.models.manifest import Manifest
from inference.models.references import parse_reference
from inference.models.store import Store
from inference.residency import load_first
from inference.speed import Speed
from market.errors import (
    BlockInvalid,
    ContentError,
    ContentUnavailable,
    EncodingInvalid,
    ModelUnknown,
    ModelUntrusted,
    NodeMisconfigured,
    OctoError,
    RequestInvalid,
)
from market.parts import Served, ServedWork, Serving
from market.ports import Engine
from node.absent import Absent
from node.figures import Figures, FiguresBook, expected_bytes, figures_key, figures_of
from node.measurements import remembered, setup_for
from node.model_cache import RETRY_FIRST_S, RETRY_PRIORITY, ModelCache
from node.offered import Providing
from node.room import check_room, memory_budget, weigh
from node.serving import Reader, choose_engine, make_offer, open_reader, open_serving
from node.settings import Settings
from node.shaping import Shape, shape_in_vllm, shape_of, usable

MODELS_LIMIT: Final = 16
"""An offer has at most 16 KiB: a model takes 0.5 of them, the files that are only kept 4 in all."""

_MISTAKES: Final = (EncodingInvalid, ModelUnknown, ModelUntrusted, NodeMisconfigured, RequestInvalid)
"""Waiting mends none of these: they are for the owner of the settings, who is there at a start."""

log = structlog.get_logger()

Bring = Callable[[str, bool], Awaitable[str]]
"""What the settings name, whole in the store; its manifest's CID. With True, somebody who has it is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model that the settings name, in the store; `size_bytes` is what it is known, or expected, to take."""

    cid: str
    reference: str
    manifest: Manifest
    kind: EngineKind
    shape: Shape
    reader: Reader
    key: str
    size_bytes: int
    pinned: bool


class Loading:
    """Implements `node.model_cache.Listener`. `engine` stands in for the one that every model would get; `changed` is
    called when another offer should go out at once."""

    def __init__(
        self,
        *,
        providing: Providing,
        settings: Settings,
        store: Store,
        bring: Bring,
        book: FiguresBook,
        hardware: Hardware,
        changed: Callable[[], None],
        engine: Engine | None,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._providing = providing
        self._settings = settings
        self._store = store
        self._bring = bring
        self._book = book
        self._hardware = hardware
        self._changed = changed
        self._engine = engine
        self._named: Sequence[str] = ()
        self._models: dict[str, _Model] = {}
        self._speeds: dict[str, Speed] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._budget = memory_budget(settings, hardware.ram_bytes)
        self._absent = Absent(self._come, first_s=retry_first_s)
        self.cache = ModelCache(budget=self._budget, weigh=weigh, listener=self, retry_first_s=retry_first_s)

    async def start(self, references: Sequence[str]) -> None:
        """Load what fits, in the order of the settings; of the rest what is not known of it yet is found out first.

        One that cannot be brought or loaded now is in `troubles`, and tried again. Raises a mistake in the settings
        (ModelUnknown, ModelUntrusted, RequestInvalid, EncodingInvalid; NodeMisconfigured for too many, for one that no
        engine here can run, or that is over engine.memory), and why the first one failed if none can be served.
        """
        if len(references) > MODELS_LIMIT:
            raise NodeMisconfigured(
                f"{len(references)} models are more than an offer has room for.",
                next_step=f"Name {MODELS_LIMIT} in `model` and `serve`; another node on this machine can serve more.",
            )
        self._named = tuple(references)
        absent: dict[str, OctoError] = {}
        for reference in self._named:
            try:
                await self._prepare(reference)
            except _MISTAKES:
                raise
            except OctoError as why:
                absent[reference] = why
        models = list(self._models.values())
        first = load_first([(model.cid, model.size_bytes) for model in models], self._budget(0))
        unknown = [model.cid for model in models if model.cid not in first and self._book.get(model.key) is None]
        tried = [*unknown, *reversed(first)]
        for cid in tried:
            await self._load(cid)
        rest = [model.cid for model in models if model.cid not in tried]
        while tried and rest and self.cache.failing().keys() >= set(tried):  # a figure of yesterday serves nobody
            tried.append(rest.pop(0))
            await self._load(tried[-1])
        for reference, error in absent.items():
            self._absent.expect(reference, error)
        failing = self.cache.failing()
        if (failing or absent) and not self._models.keys() - failing.keys() and not self._providing.loaded():
            raise next(iter(self._failures().values()))
        for model in models:
            figures = self._book.get(model.key)
            if figures is not None and model.cid not in failing:
                self._show(model, figures)

    def troubles(self) -> Sequence[str]:
        """What the settings name and is not served now, why, and what to do; in the order of the settings."""
        names = {model.reference: model.manifest.name for model in self._models.values()}
        return [
            f"{names.get(reference) or parse_reference(reference).text} is not served: {error}"
            " The node tries again by itself."
            for reference, error in self._failures().items()
        ]

    async def aclose(self) -> None:
        await self._absent.aclose()
        await self.cache.aclose()
        await asyncio.gather(*self._writing)

    # ---- what the cache tells ----

    def loaded(self, model: str, serving: Serving, size_bytes: int) -> None:
        known = self._models[model]
        figures = figures_of(known.key, serving, size_bytes)
        self._speeds[model] = figures.speed()
        self._keep(figures)
        self._show(known, figures)
        self._providing.arrived(model, serving)
        log.info(
            "model_loaded",
            model=model,
            name=serving.model.name,
            engine=figures.engine,
            works=[str(work) for work in figures.works],
            tokens_per_s=figures.tokens_per_s,
            size_bytes=size_bytes,
        )

    def unloaded(self, model: str, size_bytes: int) -> None:
        self._providing.left(model)
        figures = self._book.get(self._models[model].key)
        if figures is not None:
            self._keep(replace(figures, size_bytes=max(figures.size_bytes, size_bytes)))

    def failed(self, model: str, error: OctoError) -> None:
        self._providing.withdraw(model)
        self._changed()
        log.info("offer_withdrawn", model=model, why=error.message)

    # ---- a model ----

    async def _load(self, cid: str, priority: int = 0) -> None:
        """Why it cannot be loaded, and when it is tried again, is the cache's to tell."""
        with suppress(OctoError):
            await self.cache.load(cid, priority)

    async def _come(self, reference: str) -> None:
        """One that was absent at the start: what is not known of it is found out behind everybody's tasks."""
        model = await self._prepare(reference, patient=False)
        if model is None:
            return
        figures = self._book.get(model.key)
        if figures is not None:
            self._show(model, figures)
        if figures is None or model.pinned:
            await self._load(model.cid, RETRY_PRIORITY)

    def _failures(self) -> Mapping[str, OctoError]:
        failing = self.cache.failing()
        found = {model.reference: failing[cid] for cid, model in self._models.items() if cid in failing}
        found |= self._absent.errors()
        return {reference: found[reference] for reference in self._named if reference in found}

    async def _prepare(self, reference: str, *, patient: bool = True) -> _Model | None:
        """None for one that is known under another reference."""
        cid = await self._bring(reference, patient)
        if cid in self._models:
            return None
        settings, manifest = self._settings, await model_of(self._store, cid)
        kind = EngineKind.LLAMA_CPP
        able = await usable(settings.engine, manifest, self._hardware)
        if self._engine is None:
            kind = choose_engine(manifest, settings, able, await models_in(self._store))
        measured = await asyncio.to_thread(remembered, settings.data_dir, hardware=self._hardware, model=cid)
        wanted = setup_for(settings.engine, measured, model=cid, cores=self._hardware.cores)

        async def look() -> tuple[Reader, Shape]:
            reader = await open_reader(self._store, manifest)
            if kind is EngineKind.VLLM:
                return reader, shape_in_vllm(wanted, self._hardware)
            if self._engine is not None or kind is not EngineKind.LLAMA_CPP or is_llama_text(manifest):
                return reader, Shape(setup=wanted)
            path, free = await weights_path(self._store, manifest), self._budget(0)
            return reader, await shape_of(wanted, settings.engine, able, manifest, weights=path, ram_bytes=free)

        try:
            reader, shape = await look()
        except BlockInvalid as error:
            await self._bring_again(cid, reference, error)
            reader, shape = await look()
        setup = shape.setup
        key = figures_key(self._hardware, setup, settings)
        figures = self._book.get(key)
        expected = shape.in_ram(expected_bytes(manifest, kind, setup, settings))
        size_bytes = expected
        if figures is not None:  # what is mapped and copied counts twice in it; what ran here once fits here
            size_bytes = min(figures.size_bytes, max(expected, self._budget(0)))
        model = _Model(
            cid=cid,
            reference=reference,
            manifest=manifest,
            kind=kind,
            shape=shape,
            reader=reader,
            key=key,
            size_bytes=0 if self._engine is not None else size_bytes,
            pinned=self._engine is not None or reference in settings.engine.warm,
        )
        if not shape.gpu_layers:  # what lies on cards takes no memory here, and is reckoned where that is decided
            here = (await models_in(self._store)).values()
            check_room(manifest, kind, setup, settings, size_bytes=model.size_bytes, budget=self._budget(0), here=here)
        if cid in self._models:  # two that were absent came at once
            return None
        self._models[cid] = model
        self.cache.add(
            cid,
            lambda: self._open(model),
            size_bytes=model.size_bytes,
            measured=figures is not None,
            pinned=model.pinned,
        )
        return model

    @asynccontextmanager
    async def _open(self, model: _Model) -> AsyncIterator[Serving]:
        """Loaded from the files in the store; one that was damaged, or is gone, is brought again, once."""
        async with AsyncExitStack() as stack:
            try:
                serving = await stack.enter_async_context(self._serving(model))
            except (BlockInvalid, ContentUnavailable) as error:
                await self._bring_again(model.cid, model.reference, error)
                serving = await stack.enter_async_context(self._serving(model))
            yield serving

    def _serving(self, model: _Model) -> AbstractAsyncContextManager[Serving]:
        return open_serving(
            model.cid,
            model.manifest,
            store=self._store,
            settings=self._settings,
            engine=self._engine,
            reader=model.reader,
            speed=self._speeds.get(model.cid),
            shape=model.shape,
        )

    async def _bring_again(self, cid: str, reference: str, error: ContentError) -> None:
        """A file that changed on disk is in quarantine now. Tasks wait: whoever has it must be there."""
        log.warning("model_damaged", model=cid, why=error.message)
        if await self._bring(reference, False) != cid:
            raise ContentUnavailable(f"{reference} is another model by now.", next_step="Start the node again.")

    # ---- a face ----

    def _show(self, model: _Model, figures: Figures) -> None:
        """On offer, as it was when it was last loaded."""
        offer = make_offer(
            model.cid,
            model.manifest,
            self._settings,
            engine=figures.info(),
            speed=figures.speed(),
            memory_bytes=figures.size_bytes,
            works=figures.works,
        )
        self._providing.restore(model.cid)
        known = self._providing.face(model.cid)
        if known is not None:
            known.model = offer
            return
        facts: dict[str, Any] = {
            "info": figures.info(),
            "isolation": figures.isolation,
            "leaves_host": figures.leaves_host,
        }
        if model.reader.tokenizer is not None:
            engine = OnDemandEngine(self._use(model.cid), **facts)
            self._providing.put(Served(offer, engine, model.reader.tokenizer), model.reader)
        elif model.reader.meter is not None:
            work = OnDemandWork(self._use(model.cid), works=frozenset(figures.works), **facts)
            self._providing.put(ServedWork(offer, work, model.reader.meter), model.reader)
        there = {known.reference: cid for cid, known in self._models.items()}
        self._providing.arrange([there[reference] for reference in self._named if reference in there])
        self._changed()

    def _use(self, model: str) -> Callable[[int], AbstractAsyncContextManager[Any]]:
        @asynccontextmanager
        async def use(priority: int) -> AsyncIterator[Any]:
            async with self.cache.use(model, priority) as serving:
                yield serving.engine

        return use

    def _keep(self, figures: Figures) -> None:
        task = asyncio.create_task(self._book.keep(figures))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


@asynccontextmanager
async def open_loading(
    providing: Providing,
    *,
    settings: Settings,
    store: Store,
    bring: Bring,
    changed: Callable[[], None],
    engine: Engine | None,
) -> AsyncIterator[Loading]:
    """Everything that is loaded is unloaded at the end."""
    hardware = await asyncio.to_thread(detect_hardware)
    loading = Loading(
        providing=providing,
        settings=settings,
        store=store,
        bring=bring,
        book=await asyncio.to_thread(FiguresBook, settings.data_dir),
        hardware=hardware,
        changed=changed,
        engine=engine,
    )
    try:
        yield loading
    finally:
        await loading.aclose()
