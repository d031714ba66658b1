"""The mesh as the node sees it, asyncio side: implements `market.ports.Network`.

`open_network` is the only door into this package. trio runs behind it, supervised: should it crash, open
conversations raise PeerGone, and it starts again with the same key on the same ports.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import structlog

from market.errors import NodeMisconfigured, PeerError, PeerGone
from market.identity import PeerId
from market.message import TaskError
from market.offer import CheckedOffer, SignedOffer
from market.ports import Clock, ContentShelf, ContentSource, Conversation
from market.task import TaskId
from p2p.addressbook import AddressBook
from p2p.bridge import Bridge, TrioStopped, run_trio
from p2p.conversation import MeshConversation
from p2p.endpoints import parse_endpoint
from p2p.kademlia import key_of
from p2p.keys import PeerKey
from p2p.limits import DEFAULT_LIMITS, NetworkLimits
from p2p.mesh import ConnectedPeer, Mesh, MeshConfig, View, run_mesh
from p2p.offerbook import OfferBook, RefusedOffer
from p2p.providers import ProviderRecords
from p2p.shelving import EmptyShelf
from p2p.source import PeerContent
from p2p.streams import Link, LinkEnded
from p2p.switchboard import Switchboard

Serve = Callable[[Conversation], Awaitable[None]]

_log = structlog.get_logger()


class OctoNetwork:
    """Made by `open_network`. Every method is for the asyncio side."""

    def __init__(self, config: MeshConfig, serve: Serve) -> None:
        self.peer: PeerId = config.key.peer
        self._config = config
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._bridge: Bridge | None = None
        self._mesh: Mesh | None = None
        self._boards: set[Switchboard] = set()
        self._outbound: dict[PeerId, Switchboard] = {}
        self._opening: dict[PeerId, asyncio.Lock] = {}
        self._view = View()
        self._version = 0
        self._news = asyncio.Event()
        self._own: SignedOffer | None = None
        self._provided: dict[str, None] = {}

    # ---- market.ports.Network ---------------------------------------------------------------------

    async def open_conversation(self, peer: PeerId, task: TaskId) -> Conversation:
        """A conversation about a new task, on the long-lived stream to `peer`. Raises PeerGone or PeerTimedOut."""
        board = self._outbound.get(peer)
        if board is None:
            board = await self._open_board(peer)
        return board.converse(task)

    async def announce(self, offer: SignedOffer) -> None:
        """Publish our offer; peers that connect later get it too, until it expires."""
        self._own = offer
        if self._mesh is not None and self._bridge is not None:
            try:
                await self._bridge.in_trio(self._mesh.announce, offer)
            except TrioStopped:
                _log.debug("p2p.announced_after_restart")

    def offers(self) -> Sequence[CheckedOffer]:
        now_ms = self._config.clock.now_ms()
        return tuple(checked for checked in self._view.offers if checked.offer.expires_ms > now_ms)

    # ---- for the node's eyes ----------------------------------------------------------------------

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs with /p2p/<our id> that others can dial."""
        return self._view.addresses

    def peers(self) -> tuple[ConnectedPeer, ...]:
        return self._view.peers

    def refused_offers(self) -> tuple[RefusedOffer, ...]:
        """The latest refused offers with the reason, oldest first, at most 256."""
        return self._view.refused

    @property
    def version(self) -> int:
        """Grows whenever peers, offers or refusals change."""
        return self._version

    async def wait_for_change(self, since: int) -> int:
        """Wait until `version` is above `since`; returns it. An offer that merely expires is no change."""
        while self._version <= since:
            await self._news.wait()
        return self._version

    async def connect(self, multiaddr: str) -> None:
        """Connect to a peer and keep it connected. Raises EncodingInvalid, PeerGone or PeerTimedOut."""
        endpoint = parse_endpoint(multiaddr)
        bridge, mesh = self._running(endpoint.peer or "")
        try:
            await bridge.in_trio(mesh.connect, endpoint)
        except TrioStopped:
            raise _not_running(endpoint.peer or "") from None

    # ---- content ----------------------------------------------------------------------------------

    def content_of(self, peer: PeerId) -> ContentSource:
        """What a peer serves over the mesh; it is dialled when first asked."""
        return self._content(peer)

    async def ticket(self, peer: PeerId) -> str:
        """A ticket for a peer's content listener, a secret. Raises ContentUnavailable."""
        return await self._content(peer).ticket()

    async def catalog(self, peer: PeerId, creator: bytes, name: str) -> bytes:
        """A peer's newest catalog of a creator's wallet (20 bytes), unverified, at most 2 MiB.

        Raises ContentUnavailable or BlockInvalid."""
        return await self._content(peer).catalog(creator, name)

    async def ask_to_pin(self, peer: PeerId, manifest: str) -> None:
        """Ask a peer to keep and serve a model. Raises ContentUnavailable if it does not agree."""
        await self._content(peer).ask_to_pin(manifest)

    async def provide(self, cid: str) -> None:
        """Record in the DHT that we have a root, now and again, until told to stop. Raises EncodingInvalid."""
        key_of(cid)
        self._provided[cid] = None
        await self._when_running(Mesh.provide, cid)

    async def stop_providing(self, cid: str) -> None:
        """Record it no more; what others keep fades within 48 h."""
        self._provided.pop(cid, None)
        await self._when_running(Mesh.stop_providing, cid)

    async def find_providers(self, cid: str, timeout_s: float = 20.0) -> Sequence[PeerId]:
        """Peers that say they have a root: connected, pinged just now, their offers known. At most 8, without us.

        Whoever was found in `timeout_s`; nobody while the network restarts, or without the DHT. Raises EncodingInvalid.
        """
        key_of(cid)
        found: list[PeerId] = []
        with suppress(TimeoutError):  # a peer so frozen that giving up on it hangs
            async with asyncio.timeout(timeout_s + 1):
                await self._when_running(Mesh.find_providers, cid, timeout_s, found)
        return tuple(found)

    async def _when_running(self, call: Callable[..., Awaitable[None]], *args: object) -> None:
        """Call the mesh; a restart meanwhile is no error: it takes `_provided` along."""
        if self._mesh is not None and self._bridge is not None:
            with suppress(TrioStopped):
                await self._bridge.in_trio(call, self._mesh, *args)

    def _content(self, peer: PeerId) -> PeerContent:
        return PeerContent(peer, self._running, self._config.limits)

    # ---- links and conversations ------------------------------------------------------------------

    async def _open_board(self, peer: PeerId) -> Switchboard:
        lock = self._opening.setdefault(peer, asyncio.Lock())
        async with lock:  # many tasks at once still share one stream
            board = self._outbound.get(peer)
            if board is not None:
                return board
            bridge, mesh = self._running(peer)
            try:
                link = await bridge.in_trio(mesh.open_link, peer)
            except TrioStopped:
                raise _not_running(peer) from None
            finally:
                if self._opening.get(peer) is lock:
                    del self._opening[peer]
            board = self._board(link)
            self._outbound[peer] = board
            board.start()
            if not board.is_alive:
                raise PeerGone(f"{peer} hung up as we called.", peer=peer)
            return board

    def _accept_link(self, link: Link) -> None:
        self._board(link).start()

    def _board(self, link: Link) -> Switchboard:
        board = Switchboard(
            link, self._config.clock, self._config.limits, accept=self._accept_conversation, ended=self._board_ended
        )
        self._boards.add(board)
        return board

    def _board_ended(self, board: Switchboard) -> None:
        self._boards.discard(board)
        if self._outbound.get(board.link.peer) is board:
            del self._outbound[board.link.peer]

    def _accept_conversation(self, conversation: MeshConversation) -> bool:
        if len(self._tasks) >= self._config.limits.tasks_total:
            return False
        self._start(self._serve_one(conversation))
        return True

    async def _serve_one(self, conversation: MeshConversation) -> None:
        """Whatever `serve` raises stays in here: one bad task may not end the node."""
        task = conversation.task.hex()
        try:
            await self._serve(conversation)
        except PeerError as error:
            _log.info("p2p.conversation_broke", peer=conversation.peer, task=task, error=str(error))
        except Exception as error:  # noqa: BLE001 - see above
            # Not the message and not the locals: a handler's errors may quote the prompt.
            _log.error("p2p.serve_failed", task=task, error=type(error).__name__, where=_where(error))
            conversation.dismiss(
                TaskError(fault="provider", code="internal_error", message="The provider failed.", retry=True)
            )
        finally:
            await conversation.aclose()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _running(self, peer: str) -> tuple[Bridge, Mesh]:
        if self._bridge is None or self._mesh is None:
            raise _not_running(peer)
        return self._bridge, self._mesh

    # ---- the trio thread --------------------------------------------------------------------------

    async def run(self, up: asyncio.Future[None]) -> None:
        """Keep trio running. A failure before the first start is the caller's; later ones are ours to mend."""
        limits = self._config.limits
        wait_s = limits.restart_min_s
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            reason = "it ended"
            try:
                await run_trio(lambda bridge: self._run_mesh(bridge, up))
            except Exception as error:  # noqa: BLE001 - whatever it was, we mend it
                cause = _first_cause(error)
                if not up.done():
                    up.set_exception(cause)
                    return
                reason = f"{type(cause).__name__} at {_where(cause)}"
            finally:
                self._down()
            if loop.time() - started_s > limits.restart_max_s:
                wait_s = limits.restart_min_s
            _log.error("p2p.trio_crashed", reason=reason, restarts_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, limits.restart_max_s)

    async def aclose(self) -> None:
        """Stop serving. Peers see their conversations end."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_mesh(self, bridge: Bridge, up: asyncio.Future[None]) -> None:
        def started(mesh: Mesh, listening: tuple[str, ...]) -> None:
            self._bridge, self._mesh = bridge, mesh
            self._config = replace(self._config, listen=listening)  # after a crash, the ports that others know
            if self._own is not None:
                self._start(self.announce(self._own))
            for cid in self._provided:
                self._start(self._when_running(Mesh.provide, cid))
            if not up.done():
                up.set_result(None)

        await run_mesh(bridge, self._config, accept=self._accept_link, show=self._show, started=started)

    def _show(self, view: View) -> None:
        self._view = view
        self._version += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _down(self) -> None:
        self._bridge = self._mesh = None
        for board in tuple(self._boards):
            board.end(LinkEnded(fault="gone", reason="the network of this node stopped"))
        self._show(replace(self._view, peers=()))


@asynccontextmanager
async def open_network(
    *,
    key: PeerKey,
    network: str,
    listen: Sequence[str],
    bootstrap: Sequence[str],
    serve: Serve,
    clock: Clock,
    address_book: Path | None = None,
    limits: NetworkLimits = DEFAULT_LIMITS,
    shelf: ContentShelf | None = None,
    dht: bool = True,
) -> AsyncIterator[OctoNetwork]:
    """Join the mesh; leave it at the end.

    `listen` are multiaddrs (`/ip4/127.0.0.1/tcp/0`), `bootstrap` multiaddrs with /p2p/, dialled for ever.
    `serve` is awaited in a task of its own for every conversation that a peer opens. `clock` is asked from
    two threads. `shelf` is what peers may read of our content; without one, nothing. Without
    `dht` we neither keep records of who provides what nor find any. Raises NodeMisconfigured if an address
    cannot be listened on, EncodingInvalid for a bootstrap address that is none; an unreachable bootstrap peer
    is no error.
    """
    endpoints = tuple(parse_endpoint(address) for address in bootstrap)
    for endpoint in endpoints:
        if endpoint.peer is None:
            raise NodeMisconfigured(f"the bootstrap address {endpoint} lacks /p2p/<peer id>.")
    addresses = AddressBook(me=key.peer, limits=limits)
    for endpoint in endpoints:
        addresses.add(endpoint, is_kept=True)
    config = MeshConfig(
        key=key,
        listen=tuple(listen),
        clock=clock,
        limits=limits,
        addresses=addresses,
        address_book=address_book,
        offers=OfferBook(network=network, me=key.peer, limit=limits.offers),
        shelf=shelf or EmptyShelf(),
        records=ProviderRecords(limit=limits.dht_records, per_peer=limits.dht_records_per_peer) if dht else None,
    )
    octo = OctoNetwork(config, serve)
    up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(octo.run(up), name="p2p supervisor")
    try:
        await up
        yield octo
    finally:
        await octo.aclose()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _first_cause(error: BaseException) -> BaseException:
    """trio wraps what a nursery raises in groups; the reader wants the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"


def _not_running(peer: str) -> PeerGone:
    return PeerGone("the network of this node is restarting.", peer=peer, next_step="Try again in a second.")
