"""What this node has for others: the models that are whole and public here, told in its offer and in the DHT.

Lives here: when that changes, and who is told. Knows no engine: a node may share what it does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from inference.models.library import models_in
from inference.models.store import Store
from market.errors import OctoError
from p2p.network import OctoNetwork

log = structlog.get_logger()

STORES_LIMIT = 64
"""As many as an Offer may name; the DHT names the others."""


class Sharing:
    """`renew_offer` has the next offer made at once."""

    def __init__(self, store: Store, mesh: OctoNetwork, *, renew_offer: Callable[[], None]) -> None:
        self._store = store
        self._mesh = mesh
        self._renew_offer = renew_offer
        self._stores: tuple[str, ...] = ()
        self._provided: set[str] = set()

    def stores(self) -> Sequence[str]:
        """Manifest CIDs for the offer."""
        return self._stores[:STORES_LIMIT]

    async def refresh(self) -> None:
        """Look what is whole and public now; tell what is new, take back what is gone."""
        public = {file.root for file in await self._store.in_thread(self._store.list) if file.public}
        shared: dict[str, list[str]] = {}
        for cid, manifest in (await models_in(self._store)).items():
            roots = [file.cid for file in manifest.files]
            if all(root in public for root in roots) and await self._store.in_thread(self._store.serves, cid):
                shared[cid] = roots
        wanted = {cid for manifest, roots in shared.items() for cid in (manifest, *roots)}
        for cid in sorted(self._provided - wanted):
            await self._mesh.stop_providing(cid)
        for cid in sorted(wanted - self._provided):
            try:
                await self._mesh.provide(cid)
            except OctoError as error:
                log.info("provider_record_not_stored", cid=cid, why=str(error))
        self._provided = wanted
        if self._stores != tuple(sorted(shared)):
            self._stores = tuple(sorted(shared))
            self._renew_offer()
            log.info("models_shared", models=len(shared))
