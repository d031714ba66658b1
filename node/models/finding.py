"""Who may have the bytes of a model: peers whose offers name it, peers that the DHT names, and whom the settings name.

Lives here: turning peers into content sources by the dialling rules of DESIGN section 5, and remembering who lied.
Fetches nothing itself. What a source sends is hashed by `inference.models.fetch`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from inference.models.endpoints import may_dial, url_of_multiaddr
from inference.models.gateway import GatewaySource
from inference.models.http_client import HttpClient
from inference.models.kubo import Kubo
from inference.models.routers import find_gateways
from inference.models.sources import HttpSource
from inference.models.web_client import Web
from market.errors import ContentUnavailable, EncodingInvalid, OctoError, RequestInvalid
from market.identity import PeerId
from market.offer import CheckedOffer, Offer
from market.ports import Clock, ContentSource
from node.models.peer_source import PeerSource
from p2p.network import OctoNetwork

log = structlog.get_logger()

LOOKUP_S = 10.0
"""How long the DHT may take. Offers come first: they are there at once."""
OFFER_S = 2.0
BLAME_MS = 3600_000
"""A source that sent wrong bytes is not asked again for an hour: by then a broken disk may have been replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Sources outside the mesh, from the settings: always asked, after the peers."""

    gateways: Sequence[str] = ()
    routers: Sequence[str] = ()
    kubo: Kubo | None = None


class SourceFinder:
    """`changed` waits until the version of offers and peers is above the given one, and returns it."""

    def __init__(
        self,
        *,
        offers: Callable[[], Sequence[CheckedOffer]],
        mesh: OctoNetwork,
        client: HttpClient,
        web: Web,
        elsewhere: Elsewhere,
        clock: Clock,
    ) -> None:
        self._offers = offers
        self._mesh = mesh
        self._client = client
        self.web = web
        self.kubo = elsewhere.kubo
        self._elsewhere = elsewhere
        self._clock = clock
        self._blamed: dict[str, int] = {}

    def on_offer(self, model: str) -> list[ContentSource]:
        """Peers whose offers say that they run or store a manifest; asks nobody."""
        found = [self._of_offer(checked.offer) for checked in self._offers() if _names(checked.offer, model)]
        return [source for source in found if source is not None and not self._is_blamed(source.name)]

    async def wait_for_offer(self, model: str) -> list[ContentSource]:
        """`on_offer`, as soon as there is one."""
        version = -1
        while not (sources := self.on_offer(model)):
            version = await self._mesh.wait_for_change(version)
        return sources

    async def find(self, cid: str, *, given: Sequence[str] = ()) -> list[ContentSource]:
        """Everyone who may have a root CID. `given` are addresses that the user named: then they alone.

        Raises ContentUnavailable if there is nobody to ask, RequestInvalid for an address that is none.
        """
        if given:
            return [await self._given(address) for address in given]
        elsewhere = await self._from_elsewhere(cid)
        sources = [*await self._from_peers(cid, patient=not elsewhere), *elsewhere]
        if not sources:
            raise ContentUnavailable(
                f"nobody is known who has {cid}.",
                next_step="Join a network (--join), name an address (--from), or set models.gateways.",
            )
        return sources

    def blame(self, source: str, why: str) -> None:
        """A source sent bytes that do not hash: not again for an hour."""
        self._blamed[source] = self._clock.now_ms() + BLAME_MS
        log.warning("content_source_blamed", source=source, why=why)

    def _is_blamed(self, source: str) -> bool:
        return self._blamed.get(source, 0) > self._clock.now_ms()

    def _of_offer(self, offer: Offer) -> ContentSource | None:
        """A peer with its content listeners that we may dial, and the mesh."""
        peer = PeerId(offer.peer)
        if peer == self._mesh.peer:
            return None
        address = next((peer.address for peer in self._mesh.peers() if peer.peer == offer.peer), None)
        ways: list[ContentSource] = [
            HttpSource(url_of_multiaddr(multiaddr), self._client, ticket=self._ticket_of(peer))
            for multiaddr in offer.content
            if may_dial(multiaddr, address)
        ]
        if address is not None:
            ways.append(self._mesh.content_of(peer))
        return PeerSource(peer, ways) if ways else None

    def _ticket_of(self, peer: PeerId) -> Callable[[], Awaitable[str | None]]:
        async def ask() -> str | None:
            try:
                return await self._mesh.ticket(peer)
            except OctoError:
                return None

        return ask

    async def _from_peers(self, cid: str, *, patient: bool) -> list[ContentSource]:
        """Who offers it; else whom the DHT names. A node that has just joined hears of offers and fills its routing
        table within seconds: `patient` waits for that."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + LOOKUP_S
        while True:
            found = self.on_offer(cid) or await self._from_dht(cid, max(1.0, deadline - clock()))
            if found or not patient or clock() >= deadline:
                return found
            await asyncio.sleep(0.5)

    async def _from_dht(self, cid: str, timeout_s: float) -> list[ContentSource]:
        """Peers that the DHT names; each was pinged, and its offer, if it has one, says where it listens."""
        sources: list[ContentSource] = []
        for peer in await self._mesh.find_providers(cid, timeout_s=timeout_s):
            if self._is_blamed(peer):
                continue
            offer = next((c.offer for c in self._offers() if c.offer.peer == peer), None)
            found = self._of_offer(offer) if offer is not None else None
            sources.append(found or PeerSource(peer, [self._mesh.content_of(peer)]))
        return sources

    async def _from_elsewhere(self, cid: str) -> list[ContentSource]:
        sources: list[ContentSource] = [GatewaySource(url, self.web) for url in self._elsewhere.gateways]
        for router in self._elsewhere.routers:
            try:
                async with asyncio.timeout(LOOKUP_S):
                    endpoints = await find_gateways(router, cid, self.web)
            except (OctoError, TimeoutError) as error:
                log.info("router_does_not_answer", router=router, why=str(error))
                continue
            sources += [HttpSource(endpoint, self._client) for endpoint in endpoints]
        if self.kubo is not None:
            sources.append(self.kubo)
        return [source for source in sources if not self._is_blamed(source.name)]

    async def _given(self, address: str) -> ContentSource:
        """`http://IP:PORT` and `/ip4/…/http` are content listeners, `/ip4/…/p2p/…` a node, `https://…` a gateway."""
        try:
            if address.startswith("https://"):
                return GatewaySource(address, self.web)
            if address.startswith("http://"):
                return HttpSource(address, self._client)
            if address.endswith("/http"):
                return HttpSource(url_of_multiaddr(address), self._client)
            if "/p2p/" in address:
                peer = PeerId(address.rpartition("/p2p/")[2])
                await self._mesh.connect(address)
                return await self._of_new_peer(peer)
        except EncodingInvalid as error:
            raise RequestInvalid(f"{address[:120]!r} is no address: {error.message}", param="from") from None
        raise RequestInvalid(
            f"{address[:120]!r} is no address that a model can come from.",
            next_step="Name http://IP:PORT, a multiaddr that ends in /http or /p2p/…, or an https:// gateway.",
            param="from",
        )

    async def _of_new_peer(self, peer: PeerId) -> ContentSource:
        """A peer that we have just connected to: its offer, which says where its content listener is, comes within
        moments if it has one. HTTP carries several times what the mesh does."""
        version = -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OFFER_S):
                while True:
                    offer = next((c.offer for c in self._offers() if c.offer.peer == peer), None)
                    source = self._of_offer(offer) if offer is not None else None
                    if source is not None:
                        return source
                    version = await self._mesh.wait_for_change(version)
        return PeerSource(peer, [self._mesh.content_of(peer)])


def _names(offer: Offer, cid: str) -> bool:
    return cid in offer.stores or any(cid in (model.model, model.weights) for model in offer.models)
