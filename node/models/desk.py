"""What a person does with models: pull, add, push, verify, remove, sign, gc, and decide whom to believe.

Lives here: each verb, whole, in the order a person would tell it. Looking is `node.models.view`'s, finding sources
`finding`'s, bytes are `inference.models`'. Every verb that brings something in asks for trust before it downloads.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from inference.models.catalog import entry_of
from inference.models.cid import DAG_CBOR, parse_cid
from inference.models.default_model import DEFAULT_NAME, ensure_default_model, shipped_manifest
from inference.models.draft import Wishes
from inference.models.fetch_tree import fetch_tree
from inference.models.formats import recognise
from inference.models.library import (
    import_model,
    model_of,
    models_in,
    publish_described,
    pull_model,
    remove_model,
    share_model,
    sign_again,
    trust_anyone,
)
from inference.models.manifest import Format, Manifest, manifest_cid
from inference.models.origins import Origin
from inference.models.progress import OnProgress, quiet
from inference.models.references import LocalReference, NameReference, parse_reference
from inference.models.store import Store, Verdict
from inference.models.trust import parse_subject
from inference.models.unixfs import PROFILES
from inference.work.voice import ESPEAK, FLITE, VOICE_FILE, VoiceConfig, voice_config_json
from market.errors import BlockInvalid, ContentUnavailable, ModelUntrusted, RequestInvalid
from market.identity import WalletSigner
from market.ports import ContentSource
from node.models.catalogs import Catalogs, parse_catalog_name
from node.models.choices import Choices
from node.models.finding import SourceFinder
from node.models.keeping import Keeper
from node.models.places import Places
from node.models.quantizing import Quantizing
from node.models.sharing import Sharing
from node.models.trusting import Trusting
from node.models.view import ModelView

log = structlog.get_logger()

DEFAULT = "default"
NO_WISHES = Wishes()
VOICES: Mapping[str, VoiceConfig] = {ESPEAK.library: ESPEAK, FLITE.library: FLITE}


class ModelDesk:
    """Verbs give plain facts for JSON: at least `model` (the manifest's CID), `name` and `version`."""

    def __init__(
        self,
        *,
        store: Store,
        finder: SourceFinder,
        view: ModelView,
        choices: Choices,
        catalogs: Catalogs,
        sharing: Sharing,
        places: Places,
        wallet: WalletSigner,
        public: bool,
        prepared: Sequence[Path] = (),
    ) -> None:
        self.view = view
        self.catalogs = catalogs
        self.sharing = sharing
        self.quantizing = Quantizing(store=store, view=view, sharing=sharing, wallet=wallet)
        self._trusting = Trusting(choices, catalogs, view, own_wallet=wallet.address)
        self.keeper = Keeper(choices, self._bring_pinned)
        self._store = store
        self._finder = finder
        self._choices = choices
        self._places = places
        self._wallet = wallet
        self._public = public
        self._prepared = prepared

    # ---- bring in ----

    async def pull(
        self,
        reference: str,
        *,
        given: Sequence[str] = (),
        trust: bool = False,
        public: bool | None = None,
        wishes: Wishes = NO_WISHES,
        progress: OnProgress = quiet,
    ) -> Mapping[str, Any]:
        """Bring a model here, from wherever `reference` says. `given`: addresses to pull from, and no others.
        `trust`: this once, believe whoever made it.

        Raises ModelUntrusted, ModelUnknown, ContentError, RequestInvalid, EncodingInvalid.
        """
        place = parse_reference(reference)
        public = self._public if public is None else public
        if isinstance(place, LocalReference):
            return await self.add(place.path, public=public, wishes=wishes, progress=progress)
        if not isinstance(place, NameReference):
            origin = self._places.origin(place)
            if not trust:
                self._trusting.check_place(origin.reference)
            return await self._import(origin, public=public, wishes=wishes, progress=progress)
        if place.text == DEFAULT and not given:
            return await self._told(await self._default(public=public, progress=progress))
        if place.text in VOICES:
            return await self._told(await self._voice(place.text))
        cid = await self._cid_of(place, given=given)
        if parse_cid(cid).codec == DAG_CBOR:
            await self._pull(cid, given=given, trust=trust, public=public, progress=progress)
            return await self._told(cid)
        return await self._pull_root(cid, given=given, trust=trust, public=public, wishes=wishes, progress=progress)

    async def add(
        self,
        path: str,
        *,
        public: bool | None = None,
        wishes: Wishes = NO_WISHES,
        profile: str = "unixfs-v1-2025",
        progress: OnProgress = quiet,
    ) -> Mapping[str, Any]:
        """Take in a file or a folder of this machine, under a manifest that this node's wallet signs."""
        if not Path(path).is_absolute():
            raise RequestInvalid("path should be absolute: the node may stand in another folder.", param="path")
        origin = self._places.origin(LocalReference(path=path))
        public = self._public if public is None else public
        return await self._import(origin, public=public, wishes=wishes, profile=profile, progress=progress)

    async def _pull(
        self, cid: str, *, given: Sequence[str], trust: bool, public: bool, progress: OnProgress
    ) -> Manifest:
        """A model by its manifest's CID; what is here already is only checked for being whole."""
        if cid in await models_in(self._store):
            manifest = await model_of(self._store, cid)
            if public:
                await share_model(self._store, cid)
        else:
            manifest = await pull_model(
                self._store,
                cid,
                await self._finder.find(cid, given=given),
                public=public,
                progress=progress,
                trust=trust_anyone if trust else await self._trusting.rule_for(cid),
                more=self._places.range_sources,
                blame=self._finder.blame,
            )
        await self.sharing.refresh()
        return manifest

    async def _pull_root(
        self, cid: str, *, given: Sequence[str], trust: bool, public: bool, wishes: Wishes, progress: OnProgress
    ) -> Mapping[str, Any]:
        """A bare file or directory: nobody has signed it, so the user's word is needed, and a manifest of our own."""
        if not trust:
            raise ModelUntrusted(
                f"{cid} is a file or a folder without a manifest: nobody says what it is.",
                next_step="If you know it: give --trust; this node then signs a manifest for it.",
            )
        sources: Sequence[ContentSource] = await self._finder.find(cid, given=given)
        files = await fetch_tree(self._store, cid, sources, progress=progress)
        paths = {name: await self._store.checked_path(root) for name, root in files.items()}
        if list(paths) == [cid]:  # a bare file has no name of its own: its bytes say what it is
            kind = await self._store.in_thread(recognise, paths[cid], cid)
            paths = {f"model.{kind}": paths[cid]}
        made = await import_model(
            self._store, paths, self._wallet, source=f"ipfs://{cid}", wishes=wishes, public=public
        )
        await self.sharing.refresh()
        return await self._told(made)

    async def _import(
        self,
        origin: Origin,
        *,
        public: bool,
        wishes: Wishes,
        progress: OnProgress,
        profile: str = "unixfs-v1-2025",
    ) -> Mapping[str, Any]:
        """From a place that is not addressed by content: whole files, checked by the place's own hashes."""
        files = await origin.files()
        local = origin.reference.startswith("local:")
        folder = self._store.parts / f"import-{hashlib.sha256(origin.reference.encode()).hexdigest()[:24]}"
        await self._store.in_thread(lambda: folder.mkdir(mode=0o700, exist_ok=True))
        paths = {file.name: await origin.bring(file, folder, progress) for file in files}
        made = await import_model(
            self._store,
            paths,
            self._wallet,
            source=origin.reference,
            wishes=wishes,
            public=public,
            move=not local,
            profile=PROFILES[profile],
            progress=progress,
        )
        await self._store.in_thread(_remove_folder, folder)
        await self.sharing.refresh()
        return await self._told(made)

    async def _default(self, *, public: bool, progress: OnProgress) -> str:
        """Made here from its wheel; from peers where the wheel is not to be had."""
        try:
            cid = await ensure_default_model(self._store, self._wallet, prepared=self._prepared, progress=progress)
        except ContentUnavailable:
            cid = manifest_cid(await self._store.in_thread(shipped_manifest))
            await self._pull(cid, given=(), trust=False, public=public, progress=progress)
            log.info("default_model_from_peers", model=cid)
        await self.sharing.refresh()
        return cid

    async def _voice(self, name: str) -> str:
        """A library of the operating system that speaks, as a model: its manifest says which, and in which voices."""
        config = VOICES[name]
        cid = await publish_described(
            self._store,
            name,
            (VOICE_FILE, voice_config_json(config)),
            self._wallet,
            format=Format.VOICE,
            modality="speech",
        )
        await self.sharing.refresh()
        return cid

    async def bring(self, reference: str, *, patience_s: float = 0.0, progress: OnProgress = quiet) -> str:
        """As `pull`, by the settings' own word, for what this node is to run or keep; the manifest's CID.

        `patience_s`: how long to wait for somebody who offers a CID that nobody has now.
        """
        try:
            return str((await self.pull(reference, progress=progress))["model"])
        except ContentUnavailable:
            place = parse_reference(reference)
            if not patience_s or not isinstance(place, NameReference) or not place.is_cid:
                raise
        cid = str(parse_cid(reference))
        try:
            async with asyncio.timeout(patience_s):
                await self._finder.wait_for_offer(cid)
        except TimeoutError:
            raise ContentUnavailable(
                f"nobody offered the model {cid} within {patience_s:.0f} s.",
                next_step="Check --join: the node must reach a provider that serves it.",
            ) from None
        return str((await self.pull(reference, progress=progress))["model"])

    async def _bring_pinned(self, reference: str) -> None:
        await self.bring(reference)

    # ---- hand out ----

    async def push(self, name: str, *, to: Sequence[str] = (), progress: OnProgress = quiet) -> Mapping[str, Any]:
        """Make a model public, tell the mesh, and ask others to keep it. Raises ContentUnavailable, PeerError."""
        cid = await self.view.find(name)
        await share_model(self._store, cid)
        await self.sharing.refresh()
        for target in to:
            await self._places.push(cid, target, progress)
            log.info("model_pushed", model=cid, to=target)
        return {**await self._told(cid), "to": list(to)}

    async def sign(self, name: str) -> Mapping[str, Any]:
        """The same files under a manifest of this node's wallet, whose parent is the old one."""
        made = await sign_again(self._store, await self.view.find(name), self._wallet)
        await self.sharing.refresh()
        return await self._told(made)

    async def publish_catalog(self, name: str, models: Sequence[str]) -> Mapping[str, Any]:
        """Raises ModelUnknown for a model that is not here, EncodingInvalid for a name that cannot be one."""
        cids = [await self.view.find(model) for model in models]
        entries = [entry_of(cid, await model_of(self._store, cid)) for cid in dict.fromkeys(cids)]
        catalog = await self.catalogs.publish(name, entries)
        return {
            "catalog": f"{self.view.address_text(catalog.creator)}/{catalog.name}",
            "seq": catalog.seq,
            "models": len(entries),
        }

    # ---- keep in order ----

    async def verify(self, name: str | None, *, progress: OnProgress = quiet) -> Mapping[str, Any]:
        """Hash a model's files, or all; what is damaged is in quarantine then."""
        if name is None:
            verdicts = list(await self._store.verify_all(progress))
        else:
            files = (await model_of(self._store, await self.view.find(name))).files
            verdicts = [await self._verdict(file.cid, file.size_bytes) for file in files if self._store.has(file.cid)]
        damaged = [{"cid": verdict.root, "why": verdict.error} for verdict in verdicts if verdict.error]
        if damaged:
            await self.sharing.refresh()
            self.keeper.wake()
        return {
            "files": len(verdicts),
            "bytes": sum(verdict.size_bytes for verdict in verdicts),
            "damaged": damaged,
        }

    async def _verdict(self, root: str, size_bytes: int) -> Verdict:
        try:
            await self._store.verify(root)
        except BlockInvalid as error:
            return Verdict(root=root, size_bytes=size_bytes, error=error.message)
        return Verdict(root=root, size_bytes=size_bytes, error="")

    async def remove(self, name: str) -> Mapping[str, Any]:
        """Raises ModelUnknown, RequestInvalid for a model that is running or pinned."""
        cid = await self.view.find(name)
        told = await self._told(cid)
        if self.view.is_running(cid):
            raise RequestInvalid(f"{told['name']} is running.", next_step="Stop the node, or have it run another.")
        if self.view.is_pinned(cid):
            raise RequestInvalid(f"{told['name']} is pinned.", next_step=f"First: octo-node models pin --remove {cid}")
        freed = await remove_model(self._store, cid)
        await self.sharing.refresh()
        return {**told, "freed_bytes": freed}

    async def gc(self) -> Mapping[str, Any]:
        collected = await self._store.gc()
        await self.sharing.refresh()
        return {"freed_bytes": collected.freed_bytes}

    # ---- decide ----

    async def choose(self, kind: str, entry: str) -> bool:
        changed = await self._store.in_thread(self._choices.add, kind, await self._entry(kind, entry))
        self._wake(kind)
        return changed

    async def unchoose(self, kind: str, entry: str) -> bool:
        changed = await self._store.in_thread(self._choices.remove, kind, await self._entry(kind, entry))
        self._wake(kind)
        return changed

    async def choices_told(self, kind: str) -> Sequence[Mapping[str, str]]:
        if kind == "catalogs":
            return self.catalogs.told()
        notes = self.keeper.waiting if kind == "pins" else {}
        return [{"entry": entry, "note": notes.get(entry, "")} for entry in self._choices.all(kind)]

    async def _entry(self, kind: str, text: str) -> str:
        """One spelling for each: what is trusted or pinned under a name stays the same when the name moves."""
        if kind == "trust":
            return parse_subject(text)
        if kind == "catalogs":
            creator, name = parse_catalog_name(text)
            return f"{self.view.address_text(creator)}/{name}"
        place = parse_reference(text)
        return await self._cid_of(place, given=()) if isinstance(place, NameReference) else place.text

    def _wake(self, kind: str) -> None:
        if kind == "catalogs":
            self.catalogs.wake()
        elif kind == "pins":
            self.keeper.wake()

    # ---- names ----

    async def _cid_of(self, place: NameReference, *, given: Sequence[str]) -> str:
        """A CID as it is, in its one form; else what a name means here, in catalogs or on offer."""
        if place.is_cid:
            return str(parse_cid(place.text))
        if place.text == DEFAULT or place.text.lower() == DEFAULT_NAME.lower():
            shipped = manifest_cid(await self._store.in_thread(shipped_manifest))
            by_name = place.text != DEFAULT and shipped in await models_in(self._store)
            return await self.view.find(place.text) if by_name else shipped
        if given:
            raise RequestInvalid("an address has no names: say which CID to pull from it.", param="reference")
        return await self.view.resolve(place.text)

    async def _told(self, cid: str) -> dict[str, Any]:
        manifest = await model_of(self._store, cid)
        named = {"model": cid, "name": manifest.name, "version": manifest.version, "modality": manifest.modality}
        return {**named, "size_bytes": manifest.size_bytes, "files": len(manifest.files)}


def _remove_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
