"""The provider's side of a node: which models it serves, brought, loaded and kept running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from inference.engines.llama_cpp import LlamaEngine
from inference.models.library import model_of
from inference.models.progress import OnProgress
from inference.models.store import Store
from market.errors import BlockInvalid
from market.identity import WalletSigner
from market.offer import ModelOffer
from market.parts import Serving
from market.ports import Engine, EngineLoad, WorkEngine
from market.task import Privacy
from node.catalog import MeshCatalog
from node.models.desk import ModelDesk
from node.serving import open_serving, open_shared, reader_of
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

    def prefix_counts(self) -> Mapping[str, int]:
        """Of all engines that share prefixes."""
        facts = [engine.prefix_facts for engine in self._engines() if isinstance(engine, LlamaEngine)]
        return {
            "prefix_jobs": sum(fact.jobs for fact in facts),
            "prefix_hits": sum(fact.hits for fact in facts),
            "prefix_prompt_tokens": sum(fact.prompt_tokens for fact in facts),
            "prefix_cached_tokens": sum(fact.cached_tokens for fact in facts),
        }

    def worker_pids(self) -> tuple[int, ...]:
        return tuple(pid for engine in self._engines() for pid in getattr(engine, "worker_pids", ()))

    def privacy(self) -> Sequence[Privacy]:
        """Public alone as soon as one engine sends prompts on to another machine: an offer speaks for all models."""
        leaves_host = any(getattr(engine, "leaves_host", False) for engine in self._engines())
        return (Privacy.PUBLIC,) if leaves_host else (Privacy.PUBLIC, Privacy.SHARED)

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
    wallet: WalletSigner,
    progress: OnProgress,
    engine: Engine | None = None,
) -> AsyncIterator[None]:
    """Bring the models that the settings name into the store, start their engines, and serve them.

    Whatever `octo-node models pull` takes can be named. Raises ContentError, ModelUntrusted, ModelUnknown,
    EngineFailed or NodeMisconfigured with the cause.
    """
    async with AsyncExitStack() as stack:
        if settings.share.url is not None:
            shared = await stack.enter_async_context(
                open_shared(settings.share, store=store, settings=settings, wallet=wallet)
            )
            await desk.sharing.refresh()
            _put(providing, catalog, shared)
        for reference in settings.models_to_serve():
            serving = await _loaded(
                stack,
                partial(desk.bring, reference, patience_s=SOURCE_PATIENCE_S, progress=progress),
                store=store,
                settings=settings,
                engine=engine,
            )
            _put(providing, catalog, serving)
        yield


def _put(providing: Providing, catalog: MeshCatalog, serving: Serving) -> None:
    offer = serving.model
    catalog.put(offer.model, reader_of(serving))
    providing.put(serving)
    log.info(
        "model_loaded",
        model=offer.model,
        name=offer.name,
        engine=offer.engine,
        works=[str(work) for work in offer.works],
        tokens_per_s=offer.tokens_per_s,
    )


async def _loaded(
    stack: AsyncExitStack,
    bring: Callable[[], Awaitable[str]],
    *,
    store: Store,
    settings: Settings,
    engine: Engine | None,
) -> Serving:
    async def once() -> Serving:
        model = await bring()
        manifest = await model_of(store, model)
        return await stack.enter_async_context(
            open_serving(model, manifest, store=store, settings=settings, engine=engine)
        )

    try:
        return await once()
    except BlockInvalid as error:
        # A file that changed on disk is in quarantine now: get it again, once.
        log.warning("model_damaged", why=error.message)
        return await once()
