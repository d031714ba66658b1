"""The models of a node, put together: store, sources, catalogs, trust, and the desk that people speak to.

Two steps, because the mesh needs the shelf before it opens, and everything else needs the mesh: `open_shelf`, then
`open_desk`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from inference.hardware import Hardware
from inference.models.compatibility import EngineKind
from inference.models.default_model import shipped_manifest
from inference.models.http_client import open_http_client
from inference.models.kubo import Kubo, open_kubo
from inference.models.kubo_client import open_kubo_client
from inference.models.manifest import read_manifest
from inference.models.store import Store
from inference.models.web_client import open_web
from market.errors import ContentUnavailable
from market.identity import PeerId, WalletSigner
from market.offer import CheckedOffer
from market.ports import Clock
from node.content.shelf import NodeShelf
from node.content.tickets import Tickets
from node.folder import Folder
from node.models.catalogs import Catalogs
from node.models.choices import Choices
from node.models.desk import ModelDesk
from node.models.finding import Elsewhere, SourceFinder
from node.models.places import Places
from node.models.sharing import Sharing
from node.models.view import ModelView
from node.node import ModelOnOffer
from node.serving_vllm import NO_VLLM
from node.settings import ModelSettings, Settings
from p2p.network import OctoNetwork


class Shelf:
    """What others may read of us, ready before the desk is: until `attach`, catalogs and pins are refused."""

    def __init__(self, store: Store, settings: ModelSettings, clock: Clock) -> None:
        self.tickets = Tickets(os.urandom(32), clock)
        self._friends = frozenset(settings.peers)
        self._desk: ModelDesk | None = None
        self.content = NodeShelf(
            store,
            self.tickets,
            may_read=self.is_friend,
            may_pin=self.is_friend,
            catalog=self.catalog,
            want=self._want,
        )

    def attach(self, desk: ModelDesk) -> None:
        self._desk = desk

    def is_friend(self, peer: PeerId) -> bool:
        return peer in self._friends

    async def catalog(self, creator: bytes, name: str) -> bytes:
        return self._ready().catalogs.block(creator, name)

    async def _want(self, manifest: str, peer: PeerId) -> None:
        await self._ready().keeper.want(manifest, peer)

    def _ready(self) -> ModelDesk:
        if self._desk is None:
            raise ContentUnavailable("this node is still starting.")
        return self._desk


@asynccontextmanager
async def open_finder(
    settings: ModelSettings,
    *,
    offers: Callable[[], Sequence[CheckedOffer]],
    mesh: OctoNetwork,
    clock: Clock,
) -> AsyncIterator[SourceFinder]:
    """Who has what, over one HTTP client for peers, one for the web, and the Kubo node of the settings, if any."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_http_client())
        web = await stack.enter_async_context(open_web())
        kubo: Kubo | None = None
        if settings.kubo is not None:
            rpc = settings.kubo.get_secret_value()
            by_library = settings.kubo_client == "ipfshttpclient"
            kubo = await stack.enter_async_context(open_kubo_client(rpc) if by_library else open_kubo(rpc))
        finder = SourceFinder(
            offers=offers,
            mesh=mesh,
            client=client,
            web=web,
            elsewhere=Elsewhere(gateways=settings.gateways, routers=settings.routers, kubo=kubo),
            clock=clock,
        )
        yield finder


@asynccontextmanager
async def open_desk(
    settings: Settings,
    *,
    folder: Folder,
    store: Store,
    finder: SourceFinder,
    mesh: OctoNetwork,
    wallet: WalletSigner,
    hardware: Hardware,
    offered: Callable[[], Sequence[ModelOnOffer]],
    running: Callable[[], Collection[str]],
    renew_offer: Callable[[], None],
    prepared: Sequence[Path],
    clock: Clock,
) -> AsyncIterator[ModelDesk]:
    models = settings.models
    choices = Choices(
        folder.path("models.json"), settled={"trust": models.trust, "catalogs": models.catalogs, "pins": models.pin}
    )
    catalogs = Catalogs(folder.path("catalogs", "x").parent, choices, wallet=wallet, mesh=mesh, clock=clock)
    await catalogs.load()
    view = ModelView(
        store=store,
        choices=choices,
        own_wallet=wallet.address,
        shipped_creator=read_manifest((await store.in_thread(shipped_manifest)).encoded()).creator,
        hardware=hardware,
        quota_bytes=models.quota,
        missing=missing_engines(vllm=settings.vllm.python is not None, packages=settings.engine.packages),
        offered=offered,
        running=running,
        entries=catalogs.entries,
    )
    desk = ModelDesk(
        store=store,
        finder=finder,
        view=view,
        choices=choices,
        catalogs=catalogs,
        sharing=Sharing(store, mesh, renew_offer=renew_offer),
        places=Places(models, store=store, web=finder.web, mesh=mesh, kubo=finder.kubo),
        wallet=wallet,
        public=models.public,
        prepared=prepared,
    )
    await desk.sharing.refresh()
    yield desk


def missing_engines(*, vllm: bool, packages: Path | None = None) -> Mapping[EngineKind, str]:
    """Engines that do not run here, and what would bring them. `vllm`: the settings say where vLLM is; `packages`: a
    folder of theirs beside the node's own."""
    missing = {EngineKind.OPENAI_HTTP: "a server is shared with `octo-node start --share URL`, not loaded from a model"}
    if not vllm:
        missing[EngineKind.VLLM] = NO_VLLM
    for kind, module, package in (
        (EngineKind.LLAMA_CPP, "llama_cpp", "llama-cpp-python"),
        (EngineKind.ONNX, "onnxruntime", "onnxruntime"),
        (EngineKind.DIFFUSION, "diffusers", "-e '.[diffusers]'"),
    ):
        if find_spec(module) is None and not (packages is not None and (packages / module).is_dir()):
            missing[kind] = f".venv/bin/pip install {package}"
    return missing
