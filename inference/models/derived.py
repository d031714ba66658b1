"""A model made from another one: some files new, the others shared, under a manifest that names its parent.

Lives here: which files stay under their CIDs, what the new manifest says, its signature. Must not know: how the new
files were made, or names that people type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from inference.models.library import directory_of, model_of, publish_model
from inference.models.manifest import HardwareNeeds, Manifest, ModelFile, Role, sign_manifest
from inference.models.store import Store
from market.identity import WalletSigner
from market.values import value

_log = structlog.get_logger()

_MIB = 1024 * 1024


@value
class NewFile:
    """What stands in for a file of the parent, under a name of its own; `path` goes into the store without a copy."""

    name: str
    path: Path


@value
class Derivation:
    """`new` by the parent's names; None for a file that is left out. What is not named stays, under its CID."""

    parent: str
    name: str
    version: str
    quantisation: str
    new: Mapping[str, NewFile | None]


async def derive_model(
    store: Store,
    made: Derivation,
    creator: WalletSigner,
    *,
    public: bool,
    heard: Callable[[int], None] = lambda _: None,
) -> str:
    """Publish the model and return its manifest's CID. `heard` is told, on a thread, of bytes hashed.

    The same files signed again are the same model. Raises ContentUnavailable, DiskFull, EncodingInvalid.
    """
    parent = await model_of(store, made.parent)
    files: list[ModelFile] = []
    with ExitStack() as held:
        for file in parent.files:
            new = made.new.get(file.name, file)
            if isinstance(new, NewFile):
                size = new.path.stat().st_size
                root = await store.add(new.path, move=True, progress=heard)
                new = ModelFile(role=file.role, name=new.name, cid=root, size_bytes=size)
            if new is not None:
                await store.in_thread(held.enter_context, store.using(new.cid))
                files.append(new)
        manifest = replace(
            parent,
            name=made.name,
            version=made.version,
            files=tuple(files),
            directory=str((await directory_of(store, files)).root),
            quantisation=made.quantisation,
            parent=made.parent,
            source="",  # no place has these bytes but the store that made them
            needs=_needs(parent, files),
            creator=creator.address,
        )
        cid = await publish_model(store, sign_manifest(manifest, creator), public=public)
    _log.info("model_derived", manifest=cid, parent=made.parent, name=made.name, quantisation=made.quantisation)
    return cid


def _needs(parent: Manifest, files: list[ModelFile]) -> HardwareNeeds:
    """What the weights take more or less than the parent's; caches and buffers are the same."""

    def changed(needed: int) -> int:
        if not needed:
            return 0
        return max(_MIB, -(-(needed + _weights(files) - _weights(parent.files)) // _MIB) * _MIB)

    needs = parent.needs
    return replace(needs, min_ram_bytes=changed(needs.min_ram_bytes), min_vram_bytes=changed(needs.min_vram_bytes))


def _weights(files: list[ModelFile] | tuple[ModelFile, ...]) -> int:
    return sum(file.size_bytes for file in files if file.role in (Role.WEIGHTS, Role.EXTRA))
