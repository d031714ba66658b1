"""The provider's side of a node: the model in the store, the engine that runs it, what is served."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from inference.engines.llama_cpp import LlamaEngine, open_llama_engine
from inference.hardware import detect_hardware
from inference.models.compatibility import HERE, EngineKind, compatibility, machine_of
from inference.models.library import model_of, open_tokenizer, weights_path
from inference.models.manifest import Manifest, Role
from inference.models.progress import OnProgress
from inference.models.store import Store
from inference.models.tokenizer import ModelTokenizer
from inference.speed import measure_speed
from market.errors import BlockInvalid, NodeMisconfigured
from market.offer import ModelOffer
from market.parts import Served, Serving
from market.ports import Engine, EngineLoad, WorkEngine
from market.task import Mode
from node.catalog import MeshCatalog
from node.models.desk import ModelDesk
from node.settings import Settings

log = structlog.get_logger()

SOURCE_PATIENCE_S = 60.0
"""How long a node that is told a CID waits for a provider that has it."""


class Providing:
    """What this node serves; empty until a model is loaded."""

    def __init__(self) -> None:
        self._served: dict[str, Serving] = {}

    def served(self) -> Mapping[str, Serving]:
        return self._served

    def offers(self) -> Sequence[ModelOffer]:
        return [served.model for served in self._served.values()]

    def slots(self) -> int:
        return sum(engine.info.slots for engine in self._engines())

    def load(self) -> EngineLoad:
        loads = [engine.load() for engine in self._engines()]
        return EngineLoad(running=sum(load.running for load in loads), waiting=sum(load.waiting for load in loads))

    def isolation(self) -> str:
        """How workers are confined, in a word; of several, all of them: a buyer looks for the weakest."""
        words = [getattr(engine, "isolation", "none") for engine in self._engines()]
        return ", ".join(dict.fromkeys(words))[:64] or "none"

    def worker_pids(self) -> tuple[int, ...]:
        return tuple(pid for engine in self._engines() for pid in getattr(engine, "worker_pids", ()))

    def put(self, served: Serving) -> None:
        self._served[served.model.model] = served

    def withdraw(self, model: str) -> None:
        self._served.pop(model, None)

    def _engines(self) -> Sequence[Engine | WorkEngine]:
        return [served.engine for served in self._served.values()]


@asynccontextmanager
async def provide(
    providing: Providing,
    *,
    settings: Settings,
    store: Store,
    catalog: MeshCatalog,
    desk: ModelDesk,
    progress: OnProgress,
    engine: Engine | None = None,
) -> AsyncIterator[None]:
    """Bring the model that the settings name into the store, start its engine, and serve it.

    Whatever `octo-node models pull` takes can be named. Raises ContentError, ModelUntrusted, ModelUnknown,
    EngineFailed or NodeMisconfigured with the cause.
    """

    async def bring() -> tuple[str, Manifest, Path, ModelTokenizer]:
        model = await desk.bring(settings.model, patience_s=SOURCE_PATIENCE_S, progress=progress)
        manifest = await model_of(store, model)
        _check_fit(manifest)
        return model, manifest, await weights_path(store, manifest), await open_tokenizer(store, manifest)

    try:
        model, manifest, weights, tokenizer = await bring()
    except BlockInvalid as error:
        # A file that changed on disk is in quarantine now: get it again, once.
        log.warning("model_damaged", model=settings.model, why=error.message)
        model, manifest, weights, tokenizer = await bring()
    async with AsyncExitStack() as stack:
        for file in manifest.files:
            stack.enter_context(store.using(file.cid))
        if engine is None:
            engine = await stack.enter_async_context(_open_engine(settings, manifest, weights))
        speed = await measure_speed(engine)
        catalog.put(model, tokenizer)
        offer = ModelOffer(
            model=model,
            weights=manifest.file(Role.WEIGHTS).cid,
            name=manifest.name,
            context=engine.info.context,
            price_in=settings.prices.input,
            price_out=settings.prices.output,
            modes=(Mode.REALTIME,),
            engine=engine.info.name,
            tokens_per_s=int(speed),
        )
        providing.put(Served(offer, engine, tokenizer))
        log.info("model_loaded", model=model, name=manifest.name, engine=engine.info.name, tokens_per_s=int(speed))
        yield


def _check_fit(manifest: Manifest) -> None:
    """Better told before the engine starts than by its crash."""
    fits = compatibility(manifest, here=machine_of(detect_hardware()), engines=(EngineKind.LLAMA_CPP,))
    here = next(fit for fit in fits if fit.tier == HERE)
    if not here.ok:
        raise NodeMisconfigured(
            f"{manifest.name} {manifest.version} cannot run here: {here.reason}.",
            next_step="`octo-node models show` says where it runs; `models search --fits` finds models that fit.",
        )


@asynccontextmanager
async def _open_engine(settings: Settings, manifest: Manifest, weights: Path) -> AsyncIterator[LlamaEngine]:
    wanted = settings.engine
    async with open_llama_engine(
        weights,
        workers=wanted.workers or len(os.sched_getaffinity(0)),
        threads=wanted.threads,
        slots=wanted.slots,
        context=min(wanted.context, manifest.context or wanted.context),
    ) as engine:
        yield engine
