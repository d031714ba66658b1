"""Looking at models: what is here, on offer, in catalogs; under which name, from whom, and where it would run.

Lives here: plain facts for people and programs, and what a name means. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from inference.hardware import Hardware
from inference.models.catalog import Catalog, CatalogEntry, entry_of
from inference.models.compatibility import EngineKind, compatibility, machine_of
from inference.models.default_model import DEFAULT_NAME, DEFAULT_WHEEL
from inference.models.library import WITHOUT_WEIGHTS, model_of, models_in
from inference.models.lookalikes import KnownModel, lookalike_of
from inference.models.manifest import Manifest, read_manifest
from inference.models.search import Filters, search
from inference.models.store import Store
from inference.models.trust import is_trusted, parse_subject
from market.errors import EncodingInvalid, ModelUnknown
from market.signing import address_text
from node.models.choices import Choices
from node.models.naming import listed_namesake, namesake_of, the_one_called
from node.node import ModelOnOffer

_HERE, _ON_OFFER = "here", "on offer"
_DEFAULT = "default"


class ModelView:
    """`offered` are the models on offer; `running` the manifests that an engine here has loaded; `entries` the lists
    that are followed; `missing` the engines that are not installed, and how to get them."""

    def __init__(
        self,
        *,
        store: Store,
        choices: Choices,
        own_wallet: bytes,
        shipped_creator: bytes,
        hardware: Hardware,
        quota_bytes: int | None,
        missing: Mapping[EngineKind, str],
        offered: Callable[[], Sequence[ModelOnOffer]],
        running: Callable[[], Collection[str]],
        entries: Callable[[], Sequence[tuple[Catalog, CatalogEntry]]],
    ) -> None:
        self.shipped_creator = shipped_creator
        self._store = store
        self._choices = choices
        self._own_wallet = own_wallet
        self._hardware = hardware
        self._quota_bytes = quota_bytes
        self._missing = missing
        self._offered = offered
        self._running = running
        self._entries = entries

    # ---- what is here ----

    async def stored(self) -> Sequence[Mapping[str, Any]]:
        """Every model whose manifest is here, whole or in part; by name."""
        whole = await models_in(self._store)
        known = [
            await self._summary(cid, manifest, cid in whole) for cid, manifest in (await self._manifests()).items()
        ]
        return sorted(known, key=lambda model: (model["name"].lower(), model["version"], model["model"]))

    async def store_facts(self) -> Mapping[str, Any]:
        files = await self._store.in_thread(self._store.list)
        return {
            "files": len(files),
            "bytes": sum(file.size_bytes for file in files),
            "quota_bytes": self._quota_bytes,
        }

    async def show(self, name: str) -> Mapping[str, Any]:
        """All about one model. Its manifest must be here: a model on offer has brought it along with its tokenizer.

        Raises ModelUnknown, RequestInvalid, ContentUnavailable, EncodingInvalid.
        """
        try:
            cid = await self.find(name)
        except ModelUnknown:
            cid = await self.resolve(name)
        manifest = await model_of(self._store, cid)
        facts = await self._summary(cid, manifest, cid in await models_in(self._store))
        offer = next((offered for offered in self._offered() if offered.model == cid), None)
        fits = compatibility(manifest, here=machine_of(self._hardware), missing=self._missing)
        return {
            **facts,
            "modality": manifest.modality,
            "licence": manifest.licence,
            "context": manifest.context,
            "parent": manifest.parent,
            "source": manifest.source,
            "directory": manifest.directory,
            "needs": asdict(manifest.needs),
            "files": [{**asdict(file), "here": self._store.has(file.cid)} for file in manifest.files],
            "fits": [asdict(fit) for fit in fits],
            "providers": list(offer.providers) if offer else [],
            "price_in": offer.price_in if offer else None,
            "price_out": offer.price_out if offer else None,
        }

    async def search(self, words: str, filters: Filters, *, fits: bool) -> Sequence[Mapping[str, Any]]:
        """Here, on offer (where the manifest has come along), and in the catalogs that are followed."""
        found: dict[str, tuple[CatalogEntry, list[str], bytes]] = {}
        offered = {model.model for model in self._offered()}
        for cid, manifest in (await self._manifests()).items():
            where = [_HERE] if cid in await models_in(self._store) else []
            where += [_ON_OFFER] if cid in offered else []
            if where:
                found[cid] = (entry_of(cid, manifest), where, manifest.creator)
        for catalog, entry in self._entries():
            at = found.setdefault(entry.manifest, (entry, [], catalog.creator))
            at[1].append(f"{address_text(catalog.creator)[:8]}…/{catalog.name}")
        if fits:
            machine = machine_of(self._hardware)
            filters = replace(filters, ram_bytes=machine.ram_bytes, vram_bytes=machine.vram_bytes)
        listed = search([entry for entry, _, _ in found.values()], words, filters)
        return [
            {
                **asdict(entry),
                "model": entry.manifest,
                "where": found[entry.manifest][1],
                **await self._about(entry.name, found[entry.manifest][2]),
            }
            for entry in listed
        ]

    # ---- what a name means ----

    async def find(self, name: str) -> str:
        """The manifest CID of a model whose manifest is here, by CID, `NAME` or `NAME@VERSION`: trusted creators'
        first, then what is whole, then the highest version. Raises ModelUnknown; RequestInvalid for a name that means
        several."""
        manifests = await self._manifests()
        if name in manifests:
            return name
        wanted, _, version = (DEFAULT_NAME if name == _DEFAULT else name).partition("@")
        whole = await models_in(self._store)
        named = {
            cid: manifest
            for cid, manifest in manifests.items()
            if manifest.name.lower() == wanted.lower() and version in ("", manifest.version)
        }
        if name == _DEFAULT:  # it was made of one wheel, and others of its name were not
            named = {cid: one for cid, one in named.items() if one.source == DEFAULT_WHEEL.reference} or named
        if not named:
            raise ModelUnknown(
                f"no model {name[:128]!r} lies here.", next_step="`octo-node models list` shows what does."
            )
        return the_one_called(
            name,
            [
                namesake_of(
                    cid,
                    manifest,
                    rank=(self._trusts(manifest.creator), cid in whole),
                    own=manifest.creator == self._own_wallet,
                )
                for cid, manifest in named.items()
            ],
        )

    async def resolve(self, name: str) -> str:
        """As `find`, then in catalogs, then among what is on offer, the most widely served first: what strangers offer
        under a name may not keep anybody from it."""
        try:
            return await self.find(name)
        except ModelUnknown:
            pass
        wanted, _, version = name.partition("@")
        entries = [entry for _, entry in self._entries()]
        listed = [e for e in entries if e.name.lower() == wanted.lower() and version in ("", e.version)]
        if listed:
            return the_one_called(name, map(listed_namesake, listed))
        for model in self._offered():
            if name == model.model or (not version and wanted.lower() == model.name.lower()):
                return model.model
        raise ModelUnknown(
            f"no model {name[:128]!r} is known: not here, not in a catalog, not on offer.",
            next_step="`octo-node models search` looks for others; a CID, hf:, pypi: or https: names a place.",
        )

    # ---- whom it is from ----

    def is_running(self, cid: str) -> bool:
        return cid in self._running()

    def is_pinned(self, cid: str) -> bool:
        return cid in self._choices.all("pins")

    async def trusted_models(self) -> Sequence[KnownModel]:
        """What a stranger's name is compared with: the models here of creators who are believed, and the default."""
        known = [
            KnownModel(name=manifest.name, creator=manifest.creator)
            for manifest in (await self._manifests()).values()
            if self._trusts(manifest.creator)
        ]
        return [*known, KnownModel(name=DEFAULT_NAME, creator=self.shipped_creator)]

    def address_text(self, address: bytes) -> str:
        return address_text(address)

    def _trusts(self, creator: bytes) -> bool:
        trusted = {parse_subject(entry) for entry in self._choices.all("trust")}
        return is_trusted(creator, trusted=trusted, own_wallet=self._own_wallet, shipped_creator=self.shipped_creator)

    async def _about(self, name: str, creator: bytes) -> dict[str, Any]:
        known = None if self._trusts(creator) else lookalike_of(name, creator, await self.trusted_models())
        return {
            "creator": address_text(creator),
            "creator_is": self._creator_is(creator),
            "lookalike_of": known.name if known else "",
        }

    def _creator_is(self, creator: bytes) -> str:
        if creator == self._own_wallet:
            return "this node"
        if creator == self.shipped_creator:
            return "octo-node"
        return "trusted" if self._trusts(creator) else "not trusted"

    async def _summary(self, cid: str, manifest: Manifest, whole: bool) -> dict[str, Any]:
        stored = {file.root: file for file in await self._store.in_thread(self._store.list)}
        here = [stored[file.cid] for file in manifest.files if file.cid in stored]
        held = {file.root: file.size_bytes for file in here}
        light = all(file.cid in stored for file in manifest.files if file.role in WITHOUT_WEIGHTS)
        return {
            "model": cid,
            "name": manifest.name,
            "version": manifest.version,
            "format": str(manifest.format),
            "quantisation": manifest.quantisation,
            "size_bytes": manifest.size_bytes,
            "held_bytes": sum(held.values()),
            "state": "whole" if whole else ("without weights" if light and here else "in part"),
            "public": bool(here) and all(file.public for file in here),
            "running": self.is_running(cid),
            "pinned": self.is_pinned(cid),
            "last_used_ms": max((file.last_used_ms for file in here), default=0),
            **await self._about(manifest.name, manifest.creator),
        }

    async def _manifests(self) -> Mapping[str, Manifest]:
        """Every manifest block of the store that checks."""
        found = {}
        for cid, block in (await self._store.in_thread(self._store.blocks)).items():
            try:
                found[cid] = await self._store.in_thread(read_manifest, block)
            except EncodingInvalid:
                continue
        return found
