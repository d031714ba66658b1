"""The models of a node that are loaded when they are needed: brought, reckoned, offered, and what became of them told.

Lives here: what stands between the settings' words and the model cache, and the faces that are offered for models
whether they are loaded or not. When one is loaded is `node.model_cache`'s to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil
import structlog

from inference.engines.llama_text import is_llama_text
from inference.engines.on_demand import OnDemandEngine, OnDemandWork
from inference.hardware import Hardware, available_ram, detect_hardware
from inference.measuring import memory_of
from inference.models.compatibility import EngineKind, Machine
from inference.models.library import model_of, models_in, weights_path
from inference.models.manifest import Manifest
from inference.models.store import Store
from inference.quantization.fitting import what_would_fit
from inference.residency import load_first
from inference.speed import Speed
from market.errors import BlockInvalid, ContentError, ContentUnavailable, EngineFailed, NodeMisconfigured, OctoError
from market.parts import Served, ServedWork, Serving
from market.ports import Engine
from node.figures import Figures, FiguresBook, expected_bytes, figures_key, figures_of, size_words, slots_that_fit
from node.measurements import remembered, setup_for
from node.model_cache import ModelCache
from node.offered import Providing
from node.serving import Reader, choose_engine, make_offer, open_reader, open_serving
from node.settings import Settings
from node.shaping import Shape, shape_in_vllm, shape_of, usable

_RESERVE_BYTES: Final = 512 << 20
"""Left to the rest of the machine; of a small one a sixteenth."""

MODELS_LIMIT: Final = 16
"""An offer has at most 16 KiB: a model takes 0.5 of them, the files that are only kept 4 in all."""

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
    ) -> None:
        self._providing = providing
        self._settings = settings
        self._store = store
        self._bring = bring
        self._book = book
        self._hardware = hardware
        self._changed = changed
        self._engine = engine
        self._models: dict[str, _Model] = {}
        self._speeds: dict[str, Speed] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._budget = memory_budget(settings, hardware.ram_bytes)
        self.cache = ModelCache(budget=self._budget, weigh=weigh, listener=self)

    async def start(self, references: Sequence[str]) -> None:
        """Load what fits, in the order of the settings; of the rest what is not known of it yet is found out first.

        Raises what a model's coming here raised; NodeMisconfigured for one that cannot fit at all; EngineFailed if not
        one could be loaded.
        """
        if len(references) > MODELS_LIMIT:
            raise NodeMisconfigured(
                f"{len(references)} models are more than an offer has room for.",
                next_step=f"Name {MODELS_LIMIT} in `model` and `serve`; another node on this machine can serve more.",
            )
        for reference in references:
            await self._prepare(reference)
        models = list(self._models.values())
        first = load_first([(model.cid, model.size_bytes) for model in models], self._budget(0))
        unknown = [model.cid for model in models if model.cid not in first and self._book.get(model.key) is None]
        failed: list[EngineFailed] = []
        for cid in (*unknown, *reversed(first)):
            try:
                await self.cache.load(cid)
            except EngineFailed as error:
                failed.append(error)
        if failed and len(failed) == len(unknown) + len(first):
            raise failed[-1]
        for model in models:
            figures = self._book.get(model.key)
            if figures is not None and model.cid not in self.cache.failing():
                self._show(model, figures)
        self._providing.arrange([model.cid for model in models])

    async def aclose(self) -> None:
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

    async def _prepare(self, reference: str) -> None:
        cid = await self._bring(reference, True)
        if cid in self._models:
            return
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
        )
        await self._check_fits(model)
        self._models[cid] = model
        self.cache.add(
            cid,
            lambda: self._open(model),
            size_bytes=model.size_bytes,
            measured=figures is not None,
            pinned=self._engine is not None or reference in settings.engine.warm,
        )

    async def _check_fits(self, model: _Model) -> None:
        """What lies on cards takes no memory here, and is reckoned where that is decided."""
        budget = self._budget(0)
        if model.size_bytes <= budget or model.shape.gpu_layers:
            return
        setup, settings = model.shape.setup, self._settings
        advice, words = [], ""
        if model.kind is EngineKind.LLAMA_CPP and not is_llama_text(model.manifest):
            words = f" for {setup.workers} x {setup.slots} tasks of {settings.engine.context} tokens"
            if slots := slots_that_fit(model.manifest, setup, settings, budget):
                advice.append(f"Set engine.workers to 1 and engine.slots to {slots}.")
        machine = Machine(ram_bytes=budget, vram_bytes=0, accelerators=frozenset())
        here = (await models_in(self._store)).values()
        advice.append(what_would_fit(model.manifest, machine, here) or "`octo-node models search --fits` finds others.")
        if settings.engine.memory is not None:
            advice.append("Or raise engine.memory.")
        raise NodeMisconfigured(
            f"{model.manifest.name} needs {size_words(model.size_bytes)} of memory{words}, and models may have"
            f" {size_words(budget)} here.",
            next_step=" ".join(filter(None, advice)),
        )

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


def memory_budget(settings: Settings, ram_bytes: int) -> Callable[[int], int]:
    """What all models together may take, given what they have now: the setting, or what is free beside the reserve."""
    fixed = settings.engine.memory
    if fixed is not None:
        return lambda _held: fixed
    reserve = min(_RESERVE_BYTES, ram_bytes // 16)
    return lambda held: held + max(0, available_ram() - reserve)


async def weigh(serving: Serving) -> int | None:
    """What the engine's processes hold, shared pages counted once; None if it has none that we know of."""
    pids = tuple(getattr(serving.engine, "worker_pids", ()))
    return await asyncio.to_thread(_memory_of_trees, pids) if pids else None


def _memory_of_trees(pids: Sequence[int]) -> int:
    below: list[int] = []
    for pid in pids:
        try:
            below += [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            continue
    return memory_of((*pids, *below))
