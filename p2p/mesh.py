"""Everything of one run of the trio thread, put together: host, streams, discovery, liveness, dialer.

Tells asyncio what it sees through a `Watcher`; holds no decision that its parts do not make.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import structlog
import trio

from market.identity import PeerId
from market.offer import CheckedOffer, Offer, SignedOffer
from market.ports import Clock, ContentShelf
from market.values import value
from p2p.addressbook import AddressBook
from p2p.blockclient import BlockClient
from p2p.blockserver import BlockServer
from p2p.bridge import Bridge
from p2p.dht import Dht
from p2p.dialer import Dialer
from p2p.discovery import Discovery
from p2p.endpoints import Endpoint
from p2p.host import Host, guarded, open_host
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.liveness import Liveness
from p2p.offerbook import OfferBook, RefusedOffer
from p2p.providers import ProviderRecords
from p2p.shelving import Shelving
from p2p.streams import AgentStreams, Link

_REPORT_EVERY_S = 0.02

_log = structlog.get_logger()


@value
class ConnectedPeer:
    """`rtt_ms` is of the last ping; None before the first."""

    peer: PeerId
    address: str
    rtt_ms: float | None
    connected_since_ms: int
    direction: Literal["inbound", "outbound"]


@value
class View:
    """What asyncio sees of the mesh: a snapshot, replaced as a whole. Expired offers are still in it."""

    addresses: tuple[str, ...] = ()
    peers: tuple[ConnectedPeer, ...] = ()
    offers: tuple[CheckedOffer, ...] = ()
    refused: tuple[RefusedOffer, ...] = ()


@value
class MeshConfig:
    """What a run needs. The books and `records` outlive it: only the running trio thread touches them.

    `records` is None where the DHT is switched off."""

    key: PeerKey
    listen: tuple[str, ...]
    clock: Clock
    limits: NetworkLimits
    addresses: AddressBook
    address_book: Path | None
    offers: OfferBook
    shelf: ContentShelf
    records: ProviderRecords | None


class Mesh:
    """Lives in trio. `accept` and `show` are called in asyncio: for each inbound link, and for each new view."""

    def __init__(
        self,
        bridge: Bridge,
        host: Host,
        nursery: trio.Nursery,
        config: MeshConfig,
        *,
        accept: Callable[[Link], None],
        show: Callable[[View], None],
    ) -> None:
        self._bridge = bridge
        self._host = host
        self._nursery = nursery
        self._clock = config.clock
        self._show = show
        self._peers: dict[PeerId, ConnectedPeer] = {}
        self._changed = trio.Event()
        self._offers = config.offers
        self._discovery = Discovery(
            host, config.offers, config.clock, config.limits, learned=self._learned, changed=self._note_change
        )
        self._dialer = Dialer(host, config.addresses, config.limits, config.address_book)
        self._streams = AgentStreams(bridge, host, nursery, config.limits, accept)
        shelving = Shelving(config.shelf, wait_s=config.limits.content_wait_s / 2)  # the asker gives up after wait_s
        self._block_server = BlockServer(bridge, host, shelving, config.limits)
        self.blocks = BlockClient(host, self._dialer, config.limits)
        self._liveness = Liveness(host, nursery, config.limits, measured=self._measured, gone=self._frozen)
        self._dht: Dht | None = None
        if config.records is not None:
            self._dht = Dht(
                host,
                self._dialer,
                config.records,
                config.limits,
                me=config.key.peer,
                nursery=nursery,
                confirm=self._is_there,
                is_used=self._is_used,
            )
        host.on_connected, host.on_disconnected = self._connected, self._disconnected

    # ---- called from asyncio, through the bridge --------------------------------------------------

    async def open_link(self, peer: PeerId) -> Link:
        """A new agent stream to a peer, dialled if need be. Raises PeerGone or PeerTimedOut."""
        await self._dialer.reach(peer)
        return await self._streams.open(peer)

    async def connect(self, endpoint: Endpoint) -> None:
        await self._dialer.connect(endpoint)

    async def announce(self, offer: SignedOffer) -> None:
        await self._discovery.announce(offer)

    async def provide(self, cid: str) -> None:
        if self._dht is not None:
            await self._dht.provide(cid)

    async def stop_providing(self, cid: str) -> None:
        if self._dht is not None:
            await self._dht.stop_providing(cid)

    async def find_providers(self, cid: str, timeout_s: float, found: list[PeerId]) -> None:
        if self._dht is not None:
            await self._dht.find_providers(cid, timeout_s, found)
            self._report()  # their offers are seen no later than their names

    # ---- the run ----------------------------------------------------------------------------------

    async def run(self, started: Callable[[Mesh, tuple[str, ...]], None]) -> None:
        async with self._discovery.running():
            self._report()
            self._bridge.post_to_asyncio(started, self, self._host.listening())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._dialer.run)
                nursery.start_soon(self._report_changes)
                if self._dht is not None:
                    nursery.start_soon(self._dht.run)

    async def close(self) -> None:
        """Hang up on everyone at once: a good-bye to a frozen peer would keep us waiting."""
        await self._dialer.save()
        async with trio.open_nursery() as nursery:
            for peer in self._host.connected():
                nursery.start_soon(self._host.abort, peer)

    # ---- what happens to us -----------------------------------------------------------------------

    def _connected(self, peer: PeerId) -> None:
        ip, port = self._host.remote(peer) or ("0.0.0.0", 1)  # noqa: S104 - closed again meanwhile
        is_outbound = self._host.is_outbound(peer)
        self._peers[peer] = ConnectedPeer(
            peer=peer,
            address=Endpoint(ip=ip, port=port, peer=peer).address,
            rtt_ms=None,
            connected_since_ms=self._clock.now_ms(),
            direction="outbound" if is_outbound else "inbound",
        )
        self._offers.readmit(peer)
        self._note_change()
        self._start(self._liveness.watch, peer)
        if self._dht is not None:
            self._dht.connected(peer)
        if is_outbound:
            self._start(self._discovery.greet, peer)
        _log.info("p2p.peer_connected", peer=peer, ip=ip, outbound=is_outbound)

    def _disconnected(self, peer: PeerId) -> None:
        if self._peers.pop(peer, None) is None:
            return
        self._streams.cut(peer, "the peer disconnected")
        self._discovery.forget(peer)
        self._dialer.lost(peer)
        self._note_change()
        _log.info("p2p.peer_disconnected", peer=peer)

    def _frozen(self, peer: PeerId) -> None:
        self._streams.cut(peer, "the peer stopped answering")  # first: conversations need not wait for a socket
        self._start(self._host.abort, peer)

    def _measured(self, peer: PeerId, rtt_ms: float) -> None:
        known = self._peers.get(peer)
        if known is not None:
            self._peers[peer] = ConnectedPeer(
                peer=peer,
                address=known.address,
                rtt_ms=round(rtt_ms, 3),
                connected_since_ms=known.connected_since_ms,
                direction=known.direction,
            )
            self._note_change()

    def _learned(self, offer: Offer, teller: PeerId) -> None:
        remote = self._host.remote(teller)
        self._dialer.heard(offer.addresses, PeerId(offer.peer), from_ip=remote[0] if remote else None)

    async def _is_there(self, peer: PeerId) -> bool:
        """Whether a peer that the DHT named answers; if it does, we know its offer afterwards, if it has one."""
        if not await self._liveness.answers(peer):
            return False
        if not self._offers.holds(peer):
            await self._discovery.exchange(peer)
        return True

    def _is_used(self, peer: PeerId) -> bool:
        return self._streams.has_links(peer) or self._block_server.is_serving(peer) or self.blocks.is_asking(peer)

    def _start(self, work: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        # One peer's surprise may not end the run: everybody else's conversations hang on it.
        self._nursery.start_soon(guarded(work, work.__name__), peer)

    # ---- reporting --------------------------------------------------------------------------------

    def _note_change(self) -> None:
        self._changed.set()

    async def _report_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._report()
            await trio.sleep(_REPORT_EVERY_S)  # a burst of offers is one report

    def _report(self) -> None:
        now_ms = self._clock.now_ms()
        view = View(
            addresses=self._host.addresses(),
            peers=tuple(self._peers.values()),
            offers=self._offers.live(now_ms),
            refused=self._offers.refused(),
        )
        self._bridge.post_to_asyncio(self._show, view)


async def run_mesh(
    bridge: Bridge,
    config: MeshConfig,
    *,
    accept: Callable[[Link], None],
    show: Callable[[View], None],
    started: Callable[[Mesh, tuple[str, ...]], None],
) -> None:
    """trio: one run, until cancelled. Raises NodeMisconfigured if it cannot listen."""

    async def hold_host(task_status: Any) -> None:
        async with open_host(config.key, config.listen, config.limits) as host:
            task_status.started(host)
            await trio.sleep_forever()

    # Held outside our own cancellation: libp2p, cancelled, forgets its connections without closing their
    # sockets, and our peers would take us for frozen.
    host: Host = await bridge.hold(hold_host)
    async with trio.open_nursery() as nursery:
        mesh = Mesh(bridge, host, nursery, config, accept=accept, show=show)
        try:
            await mesh.run(started)
        finally:
            with trio.move_on_after(3) as scope:
                scope.shield = True
                await mesh.close()
