"""The provider's side of a node: which models it serves, brought here, offered, and watched.

Lives here: the order. `node.loading` loads models when they are needed, `node.health` watches what is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from inference.models.progress import OnProgress
from inference.models.store import Store
from market.identity import WalletSigner
from market.ports import Engine
from node.catalog import MeshCatalog
from node.health import Health
from node.loading import open_loading
from node.models.desk import ModelDesk
from node.offered import Providing
from node.serving import open_shared, reader_of
from node.settings import Settings

log = structlog.get_logger()

SOURCE_PATIENCE_S = 60.0
"""How long a node that is told a CID waits for a provider that has it."""


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
    changed: Callable[[], None],
    engine: Engine | None = None,
) -> AsyncIterator[None]:
    """Bring the models that the settings name into the store, load those that fit, and serve them all.

    Whatever `octo-node models pull` takes can be named; `changed` is called when another offer should go out at once.
    Raises ContentError, ModelUntrusted, ModelUnknown, EngineFailed or NodeMisconfigured with the cause.
    """
    providing.know_reader = catalog.put

    async def bring(reference: str, patient: bool) -> str:
        return await desk.bring(reference, patience_s=SOURCE_PATIENCE_S if patient else 0.0, progress=progress)

    async with AsyncExitStack() as stack:
        if settings.share.url is not None:
            shared = await stack.enter_async_context(
                open_shared(settings.share, store=store, settings=settings, wallet=wallet)
            )
            await desk.sharing.refresh()
            providing.put(shared, reader_of(shared))
            providing.arrived(shared.model.model, shared)
            log.info("server_shared", model=shared.model.model, name=shared.model.name, engine=shared.model.engine)
        loading = await stack.enter_async_context(
            open_loading(providing, settings=settings, store=store, bring=bring, changed=changed, engine=engine)
        )
        providing.cache, providing.troubles = loading.cache, loading.troubles
        await loading.start(settings.models_to_serve())
        watch = asyncio.create_task(Health(providing, changed).run(), name="health")
        stack.callback(watch.cancel)
        yield
