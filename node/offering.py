"""Our own offer: signed anew every few seconds, published, and known to our own gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from market.identity import Binding, PeerSigner, SignedBinding
from market.offer import CheckedOffer, ModelOffer, Offer, Tier, sign_offer
from market.ports import Clock, Network
from market.task import Privacy

log = structlog.get_logger()

EVERY_S = 10.0
TTL_MS = 25_000
CROWD = 100
"""Above so many peers, offers are published more slowly, in proportion (DESIGN section 5)."""


class Offering:
    """`models` (what runs here) and `stores` (what is kept and served as files) are asked each time: a model that
    failed is withdrawn with the next offer."""

    def __init__(
        self,
        *,
        network_name: str,
        key: PeerSigner,
        binding: SignedBinding,
        bound: Binding,
        rail: str,
        tier: Tier,
        slots: Callable[[], int],
        isolation: Callable[[], str],
        privacy: Callable[[], Sequence[Privacy]],
        models: Callable[[], Sequence[ModelOffer]],
        stores: Callable[[], Sequence[str]],
        addresses: Callable[[], Sequence[str]],
        content: Callable[[], Sequence[str]],
        crowd: Callable[[], int],
        network: Network,
        clock: Clock,
    ) -> None:
        self._network_name = network_name
        self._key = key
        self._binding = binding
        self._bound = bound
        self._rail = rail
        self._tier = tier
        self._slots = slots
        self._isolation = isolation
        self._privacy = privacy
        self._models = models
        self._stores = stores
        self._addresses = addresses
        self._content = content
        self._crowd = crowd
        self._network = network
        self._clock = clock
        self._now = asyncio.Event()
        self.current: CheckedOffer | None = None

    def renew(self) -> None:
        """Something in the offer changed: publish a new one at once."""
        self._now.set()

    async def run(self) -> None:
        """Publish again and again, until cancelled; `publish` comes first."""
        while True:
            try:
                async with asyncio.timeout(EVERY_S * self._slower()):
                    await self._now.wait()
            except TimeoutError:
                pass
            await self.publish()

    def _slower(self) -> float:
        return max(1.0, self._crowd() / CROWD)

    async def publish(self) -> None:
        """Sign and announce what we serve now; with nothing to serve, let the last offer expire."""
        self._now.clear()
        models, stores = tuple(self._models()), tuple(self._stores())
        if not models and not stores:
            self.current = None
            return
        now_ms = self._clock.now_ms()
        offer = Offer(
            network=self._network_name,
            peer=self._key.peer,
            seq=now_ms,
            issued_ms=now_ms,
            expires_ms=now_ms + int(TTL_MS * self._slower()),
            tier=self._tier,
            slots=self._slots(),
            models=models,
            stores=stores,
            privacy=tuple(self._privacy()),
            rails=(self._rail,),
            addresses=tuple(self._addresses())[:8],
            content=tuple(self._content())[:8],
            isolation=self._isolation(),
            binding=self._binding,
        )
        self.current = CheckedOffer(offer=offer, binding=self._bound)
        await self._network.announce(sign_offer(offer, self._key))
