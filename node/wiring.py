"""The composition root: every part of a node is made here, and here alone. Start order is stop order, reversed.

Tests and production enter through the same door: `open_node(settings)`; a test hands in the parts that
it wants to be its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from contracts.ledger import LedgerRail
from inference.hardware import detect_hardware
from inference.models.progress import OnProgress, quiet
from inference.models.store import Store as ModelStore
from market.buyer import Buyer, BuyerTerms, all_vetted
from market.errors import NodeMisconfigured
from market.identity import Binding, PeerId, SignedBinding, WalletSigner, check_binding
from market.offer import Tier
from market.parts import DealParts, DealTerms, SellerTerms
from market.ports import Books, Clock, ContentShelf, Conversation, Engine, Rail
from market.prepaid import PrepaidCap
from market.purse import Purse
from market.routing import Cheapest, Fastest, Policy, Reliable
from market.seller import Seller
from market.talk import stop_tasks
from market.till import Till
from node.api.limits import ApiLimits
from node.api.server import open_api
from node.api_keys import open_api_keys
from node.batches.desk import open_batches
from node.catalog import MeshCatalog
from node.clock import SystemClock
from node.config import wallet_password
from node.content.listener import Content
from node.content.site import open_content
from node.folder import Folder, open_folder
from node.kept_answers import KeptAnswers, open_kept_answers
from node.keys import Keys, make_binding, open_keys
from node.listening import beside
from node.models.opening import Shelf, open_desk, open_finder
from node.offered import Providing
from node.offering import Offering
from node.own_network import OwnNetwork
from node.providing import provide
from node.running import RunningNode
from node.settings import Settings
from node.standing import StoredStanding, open_standing
from node.store import Store, open_store
from p2p.keys import PeerKey
from p2p.network import OctoNetwork, open_network
from verifier.receipts import ReceiptVerifier

if TYPE_CHECKING:
    from node.chain import ChainSide

log = structlog.get_logger()

POLICIES: dict[str, Callable[[], Policy]] = {"cost": Cheapest, "speed": Fastest}


@asynccontextmanager
async def open_node(
    settings: Settings,
    *,
    clock: Clock | None = None,
    engine: Engine | None = None,
    rail: Rail | None = None,
    prepared: Sequence[Path] = (),
    progress: OnProgress = quiet,
    ask_password: Callable[[], str] | None = None,
) -> AsyncIterator[RunningNode]:
    """Start a node and yield it once its API answers, its peers are being found, and (if it provides) its
    model is loaded. `engine` stands in for the one that the settings name, `rail` for the local ledger.

    Raises NodeMisconfigured, ContentError or EngineFailed with the cause and the next step.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        # What this node is.
        folder = stack.enter_context(open_folder(settings.data_dir))
        keys, key, signed_binding, binding = await _identify(settings, folder, clock, ask_password)
        api_keys, first_api_key = open_api_keys(folder)
        hardware = await asyncio.to_thread(detect_hardware)

        # What it remembers.
        books, standing, answers = await _open_memory(stack, settings, folder, clock)
        batches = await stack.enter_async_context(open_batches(folder.path("batches")))
        models = await _open_models(stack, settings)
        shelf = Shelf(models, settings.models, clock)

        # How it pays and is paid.
        chain = None
        if rail is None:
            chain = await _open_chain(stack, settings, folder, keys, peer=key.peer, tier=hardware.tier, books=books)
        rail = rail or (chain.parts.rail if chain is not None else _ledger(settings, keys.wallet, books))
        purse, till = await _open_money(settings, keys, rail, books)
        if chain is not None:
            await chain.closing.attach(purse, till)

        # What it sells.
        verifier = ReceiptVerifier()
        providing = Providing()
        seller = Seller(
            network=settings.network,
            peer=key.peer,
            binding=signed_binding,
            receipt_key=keys.receipt,
            rail=rail.name,
            served=providing.served,
            till=till,
            books=books,
            verifier=verifier,
            clock=clock,
            terms=SellerTerms(tick_tokens=settings.payment.tick_tokens, tick_s=settings.payment.tick_s),
            cache=answers.cache,
        )

        # Whom it knows.
        mesh = await _open_mesh(
            stack, settings, folder=folder, key=key, serve=seller.serve, shelf=shelf.content, clock=clock
        )
        content_addresses = await _open_content(stack, settings, models, shelf, mesh)
        offering = Offering(
            network_name=settings.network,
            key=key,
            binding=signed_binding,
            bound=binding,
            rail=rail.name,
            tier=hardware.tier,
            slots=providing.slots,
            isolation=providing.isolation,
            privacy=providing.privacy,
            models=providing.offers,
            stores=lambda: desk.sharing.stores(),  # noqa: PLW0108 - `desk` is made further down
            addresses=mesh.addresses,
            content=lambda: content_addresses,
            crowd=lambda: len(mesh.peers()),
            network=mesh,
            clock=clock,
        )
        network = OwnNetwork(mesh, serve=seller.serve, own_offer=lambda: offering.current, clock=clock)
        stack.push_async_callback(network.aclose)
        finder = await stack.enter_async_context(
            open_finder(settings.models, offers=network.offers, mesh=mesh, clock=clock)
        )
        catalog = MeshCatalog(offers=network.offers, store=models, finder=finder, changed=mesh.wait_for_change)
        stack.callback(catalog.close)
        desk = await stack.enter_async_context(
            open_desk(
                settings,
                folder=folder,
                store=models,
                finder=finder,
                mesh=mesh,
                wallet=keys.wallet,
                hardware=hardware,
                offered=catalog.on_offer,
                running=providing.served,
                renew_offer=offering.renew,
                prepared=prepared,
                clock=clock,
            )
        )
        shelf.attach(desk)

        # What it buys.
        buyer = Buyer(
            parts=DealParts(
                network=settings.network,
                peer=key.peer,
                rail=rail.name,
                binding=signed_binding,
                purse=purse,
                verifier=verifier,
                standing=standing,
                clock=clock,
                random=os.urandom,
                prepaid=PrepaidCap(settings.payment.prepaid_per_day, clock),
                terms=DealTerms(),
            ),
            network=network,
            offers=network.to_buy_from,
            tokenizers=catalog,
            meters=catalog,
            policy=Reliable(POLICIES[settings.routing.policy]()),
            terms=BuyerTerms(own_peers=frozenset(), caching=settings.routing.cache),
            cache_salt=answers.salt.current,
            vet=chain.stakes.vet if chain is not None else all_vetted,
        )
        stack.push_async_callback(buyer.aclose)

        # How people reach it.
        node = RunningNode(
            settings=settings,
            peer=key.peer,
            binding=binding,
            signed_binding=signed_binding,
            hardware=hardware,
            network=network,
            mesh=mesh,
            buyer=buyer,
            catalog=catalog,
            desk=desk,
            batches=batches,
            receipts=books,
            rail=rail,
            rail_name=rail.name,
            providing=providing,
            keys=api_keys,
            first_api_key=first_api_key,
            clock=clock,
            started_ms=clock.now_ms(),
            content_addresses=content_addresses,
            chain=chain,
            answers=answers,
            warnings=lambda: (*settings.notes, *providing.troubles()),
        )
        node.url = await stack.enter_async_context(
            open_api(
                node,
                host=settings.api.host,
                ports=settings.api_ports(),
                limits=ApiLimits(body_bytes=settings.limits.body_bytes, requests=settings.limits.requests),
                privacy=settings.routing.privacy,
            )
        )
        folder.announce(api=node.url, token_file=api_keys.token_file)

        _run(stack, catalog.watch(), "catalog")
        if chain is not None:
            _run(stack, chain.stakes.watch(mesh.offers, mesh.wait_for_change), "stakes")
        if settings.provide:
            await stack.enter_async_context(
                provide(
                    providing,
                    settings=settings,
                    store=models,
                    catalog=catalog,
                    desk=desk,
                    wallet=keys.wallet,
                    progress=progress,
                    changed=offering.renew,
                    engine=engine,
                )
            )
            if chain is not None and settings.chain.stake:
                await chain.stake()
        await offering.publish()
        _run(stack, offering.run(), "offering")
        _run(stack, desk.keeper.run(), "pins")
        _run(stack, desk.catalogs.run(), "catalogs")
        node.ready = True
        log.info("node_ready", peer=node.peer, api=node.url, models=len(providing.offers()))
        yield node


async def _identify(
    settings: Settings, folder: Folder, clock: Clock, ask_password: Callable[[], str] | None
) -> tuple[Keys, PeerKey, SignedBinding, Binding]:
    """The folder's keys, and the binding that makes them one party."""
    password = wallet_password(settings)
    keys = await asyncio.to_thread(open_keys, folder, password=password, ask_password=ask_password)
    key = PeerKey(keys.peer_seed)
    signed = make_binding(keys, peer=key, folder=folder, network=settings.network, now_ms=clock.now_ms())
    return keys, key, signed, check_binding(signed, network=settings.network, now_ms=clock.now_ms())


async def _open_memory(
    stack: AsyncExitStack, settings: Settings, folder: Folder, clock: Clock
) -> tuple[Store, StoredStanding, KeptAnswers]:
    books = await stack.enter_async_context(open_store(folder.path("node.db")))
    standing = await stack.enter_async_context(open_standing(books, clock))
    return books, standing, await stack.enter_async_context(open_kept_answers(settings, folder, clock))


async def _open_models(stack: AsyncExitStack, settings: Settings) -> ModelStore:
    store = await asyncio.to_thread(ModelStore, settings.models_folder(), quota_bytes=settings.models.quota)
    stack.callback(store.close)
    return store


async def _open_money(settings: Settings, keys: Keys, rail: Rail, books: Books) -> tuple[Purse, Till]:
    """The channels that we pay from and those that pay us, as the books hold them."""
    purse = Purse(
        network=settings.network,
        wallet=keys.wallet.address,
        rail=rail,
        books=books,
        session_keys=keys.session_key,
        random=os.urandom,
        deposit=settings.payment.deposit,
    )
    till = Till(
        network=settings.network,
        wallet=keys.wallet.address,
        rail=rail,
        books=books,
        credit_limit=settings.payment.credit,
    )
    await purse.load()
    await till.load()
    return purse, till


async def _open_chain(
    stack: AsyncExitStack, settings: Settings, folder: Folder, keys: Keys, *, peer: PeerId, tier: Tier, books: Books
) -> ChainSide | None:
    """The chain that the settings name; what it takes (web access, ABIs) is loaded only then."""
    if settings.chain.url is None:
        return None
    from node.chain import open_chain_side

    return await stack.enter_async_context(
        open_chain_side(settings, folder=folder, keys=keys, peer=peer, tier=tier, books=books, clock=SystemClock())
    )


def _ledger(settings: Settings, wallet: WalletSigner, books: Books) -> Rail:
    return LedgerRail(
        network=settings.network,
        wallet=wallet,
        books=books,
        granted=settings.payment.grant,
        deposit_cap=settings.payment.deposit_cap,
    )


async def _open_mesh(
    stack: AsyncExitStack,
    settings: Settings,
    *,
    folder: Folder,
    key: PeerKey,
    serve: Callable[[Conversation], Awaitable[None]],
    shelf: ContentShelf,
    clock: Clock,
) -> OctoNetwork:
    """Listen where the settings say; if that port is taken and the user did not name it, on any free one."""
    choices = settings.listen_choices()
    for listen in choices:
        try:
            return await stack.enter_async_context(
                open_network(
                    key=key,
                    network=settings.network,
                    listen=listen,
                    bootstrap=settings.join,
                    serve=serve,
                    clock=clock,
                    address_book=folder.path("addresses.json"),
                    shelf=shelf,
                    dht=settings.mesh.dht,
                )
            )
        except NodeMisconfigured:
            if listen is choices[-1]:
                raise
    raise NodeMisconfigured("no mesh address to listen on.", next_step="Set mesh.listen.")


async def _open_content(
    stack: AsyncExitStack, settings: Settings, models: ModelStore, shelf: Shelf, mesh: OctoNetwork
) -> tuple[str, ...]:
    """Serve what is public; the multiaddrs under which others reach it."""
    addresses: tuple[str, ...] = ()
    content = Content(
        models,
        peer=mesh.peer,
        advertised=lambda: addresses,
        tickets=shelf.tickets,
        may_read=shelf.is_friend,
        catalog=shelf.catalog,
    )
    url = await stack.enter_async_context(
        open_content(content, host=settings.content_host(), ports=(settings.content.port,))
    )
    addresses = beside(mesh.addresses(), urlsplit(url).port or 80)
    return addresses


def _run(stack: AsyncExitStack, work: Coroutine[object, object, None], name: str) -> None:
    """A task that lives as long as the node; what goes wrong in it is logged, not lost."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_end)
    stack.push_async_callback(stop_tasks, task)


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("background_task_failed", task=task.get_name(), why=repr(task.exception()))
