"""Places outside the mesh that this node's settings name: Hugging Face, web servers, wheels, a Kubo node; and peers
that keep models for us. Lives here: opening them with the settings' endpoint and secrets, and handing a model out.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.models.kubo import Kubo
from inference.models.kubo_push import push
from inference.models.library import model_of
from inference.models.manifest import Manifest, ModelFile
from inference.models.origins import HUB, Origin, open_origin, range_source
from inference.models.progress import OnProgress
from inference.models.references import NameReference, Place, parse_reference
from inference.models.store import Store
from inference.models.web_client import Web
from market.errors import NodeMisconfigured, OctoError
from market.identity import PeerId
from market.ports import ContentSource
from node.settings import ModelSettings
from p2p.network import OctoNetwork


class Places:
    """`kubo` is the node behind the RPC of the settings, None if they name none."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        store: Store,
        web: Web,
        mesh: OctoNetwork,
        kubo: Kubo | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._web = web
        self._mesh = mesh
        self._kubo = kubo

    def origin(self, place: Place) -> Origin:
        """Raises RequestInvalid for a place that cannot be one."""
        return open_origin(place, web=self._web, endpoint=self._settings.hub or HUB, token=self._token)

    def range_sources(self, manifest: Manifest, file: ModelFile) -> Sequence[ContentSource]:
        """The place that a manifest names as its source, as one more source of the file's bytes."""
        if not manifest.source:
            return ()
        try:
            place = parse_reference(manifest.source)
        except OctoError:
            return ()
        if isinstance(place, NameReference):
            return ()
        source = range_source(
            place, file.name, file.cid, web=self._web, endpoint=self._settings.hub or HUB, token=self._token
        )
        return (source,) if source is not None else ()

    async def push(self, cid: str, target: str, progress: OnProgress) -> None:
        """`kubo`: copy every block into the Kubo node of the settings and pin it there. A peer id: ask it to pin.

        Raises NodeMisconfigured, ContentError, PeerError.
        """
        if target != "kubo":
            await self._mesh.ask_to_pin(PeerId(target), cid)
            return
        if self._kubo is None:
            raise NodeMisconfigured(
                "the settings name no Kubo node.", next_step="Set models.kubo to its RPC, like http://127.0.0.1:5001."
            )
        manifest = await model_of(self._store, cid)
        for root in dict.fromkeys(file.cid for file in manifest.files):
            await push(self._kubo, root, self._store.read_block, progress=progress)
        await push(self._kubo, manifest.directory, self._store.read_block, progress=progress)

    def _token(self) -> str | None:
        held = self._settings.hub_token
        return held.get_secret_value() if held is not None else None
