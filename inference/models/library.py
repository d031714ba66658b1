"""The models of a store: signed manifests and the files that they name.

Lives here: publishing, pulling by manifest CID, opening a model's tokenizer. Joins store, manifest and fetch; knows
no engine and no peer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from inference.models.fetch import fetch_block, fetch_file
from inference.models.manifest import Manifest, Role, SignedManifest, manifest_cid, read_manifest
from inference.models.progress import OnProgress, quiet
from inference.models.store import Store
from inference.models.tokenizer import ModelTokenizer, load_tokenizer
from market.errors import ContentUnavailable, EncodingInvalid
from market.ports import ContentSource

_log = structlog.get_logger()

WITHOUT_WEIGHTS = frozenset((Role.TOKENIZER, Role.CHAT_TEMPLATE))
"""What a buyer needs to render prompts and to count tokens."""


async def publish_model(store: Store, signed: SignedManifest) -> str:
    """Make a manifest whose files are in the store, and those files, public. Returns its CID.

    Raises EncodingInvalid for a manifest that does not check, ContentUnavailable if a file is missing.
    """
    manifest = read_manifest(signed.encoded())
    for file in manifest.files:
        store.path_of(file.cid)
        await store.set_public(file.cid)
    await store.add_block(signed.encoded(), public=True)
    return manifest_cid(signed)


async def pull_model(
    store: Store,
    cid: str,
    sources: Sequence[ContentSource],
    *,
    roles: Collection[Role] = tuple(Role),
    public: bool = False,
    progress: OnProgress = quiet,
) -> Manifest:
    """Bring a manifest and its files (of these roles) into the store, every block verified; what is here is kept.

    Raises ContentUnavailable, BlockInvalid, DiskFull, and EncodingInvalid for a manifest that does not check.
    """
    try:
        block = await store.read_block(cid)
    except ContentUnavailable:
        block = await fetch_block(cid, sources)
    manifest = read_manifest(block)
    for file in sorted(manifest.files, key=lambda file: file.size_bytes):  # the small ones tell early if it works
        if file.role in roles:
            await fetch_file(store, file.cid, sources, size_bytes=file.size_bytes, public=public, progress=progress)
    await store.add_block(block, public=public)
    _log.info("model_pulled", manifest=cid, name=manifest.name, version=manifest.version)
    return manifest


async def models_in(store: Store, *, roles: Collection[Role] = tuple(Role)) -> Mapping[str, Manifest]:
    """Manifests whose files (of these roles) are all here, by CID; blocks that are no manifest are passed over."""
    found = {}
    for cid, block in (await store.in_thread(store.blocks)).items():
        try:
            manifest = read_manifest(block)
        except EncodingInvalid:
            continue
        if all(store.has(file.cid) for file in manifest.files if file.role in roles):
            found[cid] = manifest
    return found


async def model_of(store: Store, cid: str) -> Manifest:
    """Raises ContentUnavailable if the manifest is not in the store, EncodingInvalid if it does not check."""
    return read_manifest(await store.read_block(cid))


async def weights_path(store: Store, manifest: Manifest) -> Path:
    """The file that an engine maps; hashed first if it changed on disk. Raises ContentUnavailable, BlockInvalid."""
    return await store.checked_path(manifest.file(Role.WEIGHTS).cid)


async def open_tokenizer(store: Store, manifest: Manifest) -> ModelTokenizer:
    """Raises ContentUnavailable, BlockInvalid, ModelFileInvalid."""
    paths = {role: await store.checked_path(manifest.file(role).cid) for role in WITHOUT_WEIGHTS}
    return await store.in_thread(load_tokenizer, manifest, paths)
