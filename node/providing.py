"""The provider's side of a node: the model in the store, the engine that runs it, what is served."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from inference.engines.llama_cpp import LlamaEngine, open_llama_engine
from inference.models.default_model import ensure_default_model, shipped_manifest
from inference.models.library import model_of, models_in, open_tokenizer, pull_model, weights_path
from inference.models.manifest import Manifest, Role, manifest_cid
from inference.models.progress import OnProgress
from inference.models.sources import HttpSource
from inference.models.store import Store
from inference.models.tokenizer import ModelTokenizer
from inference.speed import measure_speed
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured
from market.identity import WalletSigner
from market.offer import ModelOffer
from market.parts import Served
from market.ports import Engine
from market.task import Mode
from node.catalog import MeshCatalog
from node.settings import Settings

log = structlog.get_logger()

SOURCE_PATIENCE_S = 60.0
"""How long a node that is told a CID waits for a provider that has it."""


class Providing:
    """What this node serves; empty until a model is loaded."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self.engine: Engine | None = None

    def served(self) -> Mapping[str, Served]:
        return self._served

    def offers(self) -> Sequence[ModelOffer]:
        return [served.model for served in self._served.values()]

    def slots(self) -> int:
        return self.engine.info.slots if self.engine else 0

    def isolation(self) -> str:
        return self.engine.isolation if isinstance(self.engine, LlamaEngine) else "none"

    def worker_pids(self) -> tuple[int, ...]:
        return self.engine.worker_pids if isinstance(self.engine, LlamaEngine) else ()

    def serve(self, served: Served) -> None:
        self.engine = served.engine
        self._served[served.model.model] = served


@asynccontextmanager
async def provide(
    providing: Providing,
    *,
    settings: Settings,
    store: Store,
    catalog: MeshCatalog,
    wallet: WalletSigner,
    prepared: Sequence[Path],
    progress: OnProgress,
    engine: Engine | None = None,
) -> AsyncIterator[None]:
    """Bring the model that the settings name into the store, start its engine, and serve it.

    `default` is the model every node can make for itself; a CID is pulled from whoever offers it.
    Raises ContentError, EngineFailed or NodeMisconfigured with the cause.
    """

    async def bring() -> tuple[str, Manifest, Path, ModelTokenizer]:
        model = await _model(settings.model, store, catalog, wallet, prepared=prepared, progress=progress)
        manifest = await model_of(store, model)
        return model, manifest, await weights_path(store, manifest), await open_tokenizer(store, manifest)

    try:
        model, manifest, weights, tokenizer = await bring()
    except BlockInvalid as error:
        # A file that changed on disk is in quarantine now: get it again, once.
        log.warning("model_damaged", model=settings.model, why=error.message)
        model, manifest, weights, tokenizer = await bring()
    async with AsyncExitStack() as stack:
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
        providing.serve(Served(offer, engine, tokenizer))
        log.info("model_loaded", model=model, name=manifest.name, engine=engine.info.name, tokens_per_s=int(speed))
        yield


async def _model(
    name: str,
    store: Store,
    catalog: MeshCatalog,
    wallet: WalletSigner,
    *,
    prepared: Sequence[Path],
    progress: OnProgress,
) -> str:
    """The manifest CID, its files in the store."""
    if name == "default":
        try:
            return await ensure_default_model(store, wallet, prepared=prepared, progress=progress)
        except ContentUnavailable:
            name = manifest_cid(await store.in_thread(shipped_manifest))
            if not catalog.sources(name):
                raise
            log.info("default_model_from_peers", model=name)
    if name in await models_in(store):
        return name
    if not name.startswith("bafy"):
        raise NodeMisconfigured(
            f"{name[:80]!r} is not a model: it is neither `default` nor a manifest CID.",
            next_step="`octo-node models` lists the CIDs on offer.",
        )
    sources = await _sources(name, catalog)
    await pull_model(store, name, sources, public=True, progress=progress)
    return name


async def _sources(model: str, catalog: MeshCatalog) -> Sequence[HttpSource]:
    """Whoever offers the model, as soon as somebody does."""
    try:
        async with asyncio.timeout(SOURCE_PATIENCE_S):
            return await catalog.wait_for_sources(model)
    except TimeoutError:
        raise ContentUnavailable(
            f"nobody offered the model {model} within {SOURCE_PATIENCE_S:.0f} s.",
            next_step="Check --join: the node must reach a provider that serves it.",
        ) from None


@asynccontextmanager
async def _open_engine(settings: Settings, manifest: Manifest, weights: Path) -> AsyncIterator[LlamaEngine]:
    wanted = settings.engine
    async with open_llama_engine(
        weights,
        workers=wanted.workers or len(os.sched_getaffinity(0)),
        threads=wanted.threads,
        slots=wanted.slots,
        context=min(wanted.context, manifest.context),
    ) as engine:
        yield engine
