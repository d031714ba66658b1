"""The models of a store: signed manifests and the files that they name.

Lives here: publishing, importing, pulling by manifest CID, removing, and opening a model's parts. Joins store, manifest
and fetch; knows no engine, no peer and no settings: whom to trust comes in as a rule.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from inference.models.cid import RAW, parse_cid
from inference.models.dagpb import total_bytes
from inference.models.directory import DirectoryDag, build_folder
from inference.models.draft import NO_WISHES, Draft, Wishes, draft_manifest
from inference.models.fetch import fetch_block, fetch_file, forgive
from inference.models.formats import recognise, refuse_pickle
from inference.models.manifest import (
    Format,
    Manifest,
    ModelFile,
    Role,
    SignedManifest,
    manifest_cid,
    read_manifest,
    sign_manifest,
)
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.standing import Blame
from inference.models.store import Store
from inference.models.tokenizer import ModelTokenizer, load_tokenizer
from inference.models.unixfs import PROFILE_2025, Profile
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid, ModelFileInvalid
from market.identity import WalletSigner
from market.ports import ContentSource
from market.values import decode

_log = structlog.get_logger()

WITHOUT_WEIGHTS = frozenset((Role.TOKENIZER, Role.CHAT_TEMPLATE))
"""What a buyer needs to render prompts and to count tokens."""

TrustRule = Callable[[Manifest], None]
"""Raises ModelUntrusted for a manifest whose files shall not come in."""
MoreSources = Callable[[Manifest, ModelFile], Sequence[ContentSource]]
"""Where else a file may come from, once the manifest has said what it is: the place that it names as its source."""


def trust_anyone(manifest: Manifest) -> None:
    """For a CID that the caller has from somebody it trusts."""


def nowhere_else(_manifest: Manifest, _file: ModelFile) -> Sequence[ContentSource]:
    """For callers whose sources are all they have."""
    return ()


# ---- in ------------------------------------------------------------------------------------------


async def import_model(
    store: Store,
    files: Mapping[str, Path],
    creator: WalletSigner,
    *,
    source: str = "",
    parent: str = "",
    wishes: Wishes = NO_WISHES,
    move: bool = False,
    public: bool = True,
    profile: Profile = PROFILE_2025,
    progress: OnProgress = quiet,
) -> str:
    """Make a model of files that somebody brought (name -> path), signed by `creator`; the CID of its manifest.

    `source` is the canonical reference that they came from. `move`: the files go into the store without a copy.
    Raises ModelFileInvalid, ModelUntrusted (pickles), RequestInvalid, DiskFull, EncodingInvalid.
    """
    folder = Path(await store.in_thread(lambda: tempfile.mkdtemp(prefix="default-", dir=store.parts)))
    try:
        draft = await asyncio.to_thread(draft_manifest, files, folder, wishes, place=_place(source, files))
        manifest = await add_draft(
            store, draft, creator=creator.address, source=source, parent=parent, folder=folder, move=move,
            profile=profile, progress=progress,
        )  # fmt: skip
        for name, why in draft.left_out.items():
            _log.info("file_left_out", model=manifest.name, file=name, why=why)
        return await publish_model(store, sign_manifest(manifest, creator), public=public)
    finally:
        await store.in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))


def _place(source: str, files: Mapping[str, Path]) -> str:
    """The folder or the repository that a model is from; a file's own name was looked at already."""
    kind, _, name = source.partition(":")
    if kind == "hf":
        return name.partition("@")[0].split("/")[1]
    return name if kind == "local" and name not in files else ""


async def add_draft(
    store: Store,
    draft: Draft,
    *,
    creator: bytes,
    source: str = "",
    parent: str = "",
    folder: Path,
    move: bool = False,
    profile: Profile = PROFILE_2025,
    progress: OnProgress = quiet,
) -> Manifest:
    """Put a draft's files into the store and fill in its CIDs. What lies in `folder` is moved in any case."""
    files = []
    sizes = [file.path.stat().st_size for file in draft.files]
    loop = asyncio.get_running_loop()
    with ExitStack() as held:
        for number, (file, size) in enumerate(zip(draft.files, sizes, strict=True)):

            def heard(done: int, before: int = sum(sizes[:number])) -> None:
                told = Progress(what=source or draft.name, done_bytes=before + done, total_bytes=sum(sizes))
                loop.call_soon_threadsafe(progress, told)

            taken = move or file.path.is_relative_to(folder)
            root = await store.add(file.path, move=taken, profile=profile, progress=heard)
            await store.in_thread(held.enter_context, store.using(root))
            files.append(ModelFile(role=file.role, name=file.name, cid=root, size_bytes=size))
        directory = str((await directory_of(store, files)).root)
    return Manifest(
        name=draft.name,
        version=draft.version,
        files=tuple(files),
        directory=directory,
        format=draft.format,
        quantisation=draft.quantisation,
        licence=draft.licence,
        modality=draft.modality,
        context=draft.context,
        parent=parent,
        source=source,
        needs=draft.needs,
        tokens=draft.tokens,
        creator=creator,
    )


async def publish_model(store: Store, signed: SignedManifest, *, public: bool = True) -> str:
    """Keep a manifest whose files are in the store, and let others have all of it if `public`. Returns its CID.

    Raises EncodingInvalid for a manifest that does not check, ContentUnavailable if a file is missing, BlockInvalid
    if its directory is not made of its files.
    """
    manifest = read_manifest(signed.encoded())
    for file in manifest.files:
        store.path_of(file.cid)
    await _keep_directory(store, manifest, public=public)
    if public:
        for file in manifest.files:
            await store.set_public(file.cid)
    await store.add_block(signed.encoded(), public=public)
    return manifest_cid(signed)


async def publish_described(
    store: Store,
    name: str,
    description: tuple[str, bytes],
    creator: WalletSigner,
    *,
    format: Format,
    modality: str,
    context: int = 0,
) -> str:
    """A model without weights of its own (`remote`, `voice`): a (file name, JSON) that says what runs it. Returns the
    CID of its manifest; the same description gives the same. Raises EncodingInvalid, DiskFull."""
    file, said = description
    path = store.parts / f"add-{hashlib.sha256(said).hexdigest()[:32]}"
    await store.in_thread(path.write_bytes, said)
    root = await store.add(path, move=True, public=True)
    manifest = Manifest(
        name=re.sub(r"[^A-Za-z0-9._+-]+|\.\.+", "-", name).strip("-._+")[:128] or "model",
        version="0.0.0",
        files=(ModelFile(role=Role.CONFIG, name=file, cid=root, size_bytes=len(said)),),
        format=format,
        quantisation="unknown",
        licence="unknown",
        modality=modality,
        context=context,
        creator=creator.address,
    )
    return await publish_model(store, sign_manifest(manifest, creator))


async def share_model(store: Store, cid: str) -> None:
    """Let others have a model that is here, all of it. Raises ContentUnavailable if a file is missing."""
    await publish_model(store, decode(SignedManifest, await store.read_block(cid)))


async def pull_model(
    store: Store,
    cid: str,
    sources: Sequence[ContentSource],
    *,
    roles: Collection[Role] = tuple(Role),
    public: bool = False,
    trust: TrustRule = trust_anyone,
    allow_pickled: bool = False,
    more: MoreSources = nowhere_else,
    blame: Blame = forgive,
    progress: OnProgress = quiet,
) -> Manifest:
    """Bring a manifest and its files (of these roles) into the store, every block verified; what is here is kept.

    `trust` is asked before any file is downloaded, `blame` told of each source that sent wrong bytes. Raises what
    `trust` raises, ContentUnavailable, BlockInvalid, DiskFull, EncodingInvalid for a manifest that does not check,
    ModelUntrusted for pickled weights unless `allow_pickled`, ModelFileInvalid for weights of another format than the
    manifest says.
    """
    try:
        block = await store.read_block(cid)
    except ContentUnavailable:
        block = await fetch_block(cid, sources, blame=blame)
    manifest = read_manifest(block)
    trust(manifest)
    if not allow_pickled:
        refuse_pickle(manifest.format, manifest.name)
    wanted = [file for file in manifest.files if file.role in roles]
    with ExitStack() as held:
        for file in sorted(wanted, key=lambda file: file.size_bytes):  # the small ones tell early if it works
            everyone = [*sources, *more(manifest, file)]
            await fetch_file(
                store, file.cid, everyone, size_bytes=file.size_bytes, public=public, progress=progress, blame=blame
            )
            # The next one may need room, and what came just now is not to make it.
            await store.in_thread(held.enter_context, store.using(file.cid))
            if file.role == Role.WEIGHTS:
                await store.in_thread(_check_format, store.path_of(file.cid), file, manifest)
        if len(wanted) == len(manifest.files):
            await _keep_directory(store, manifest, public=public)
        await store.add_block(block, public=public)
    _log.info("model_pulled", manifest=cid, name=manifest.name, version=manifest.version)
    return manifest


async def sign_again(store: Store, cid: str, creator: WalletSigner) -> str:
    """The same model under another wallet, which vouches for it now: a new manifest with the old one as its parent.

    As public as the old one. Raises ContentUnavailable, EncodingInvalid.
    """
    manifest = await model_of(store, cid)
    if manifest.creator == creator.address:
        return cid
    signed = sign_manifest(replace(manifest, creator=creator.address, parent=cid), creator)
    return await publish_model(store, signed, public=await store.in_thread(store.serves, cid))


async def remove_model(store: Store, cid: str) -> int:
    """Forget a manifest and those of its files that no other manifest here names. Returns the bytes that went.

    Raises ContentUnavailable if it is not here.
    """
    manifest = await model_of(store, cid)
    others = [other for key, other in (await _manifests(store)).items() if key != cid]
    needed = {file.cid for other in others for file in other.files} | {other.directory for other in others}
    await store.remove(cid)
    if manifest.directory and manifest.directory not in needed:
        await store.remove(manifest.directory)
    gone = {file.cid: file.size_bytes for file in manifest.files if file.cid not in needed and store.has(file.cid)}
    for root in gone:
        await store.remove(root)
    _log.info("model_removed", manifest=cid, name=manifest.name, bytes=sum(gone.values()))
    return sum(gone.values())


# ---- out -----------------------------------------------------------------------------------------


async def models_in(store: Store, *, roles: Collection[Role] = tuple(Role)) -> Mapping[str, Manifest]:
    """Manifests whose files (of these roles) are all here, by CID; blocks that are no manifest are passed over."""
    return {
        cid: manifest
        for cid, manifest in (await _manifests(store)).items()
        if all(store.has(file.cid) for file in manifest.files if file.role in roles)
    }


async def model_of(store: Store, cid: str) -> Manifest:
    """Raises ContentUnavailable if the manifest is not in the store, EncodingInvalid if it does not check."""
    return read_manifest(await store.read_block(cid))


async def weights_path(store: Store, manifest: Manifest) -> Path:
    """The file that an engine maps, of shards the first in a folder with the others; hashed first if it changed on
    disk. Raises ContentUnavailable, BlockInvalid."""
    if len(manifest.weights) == 1:
        return await store.checked_path(manifest.weights[0].cid)
    return await model_folder(store, manifest) / manifest.weights[0].name


async def model_folder(store: Store, manifest: Manifest) -> Path:
    """All files under their names, as links that take no room. Raises ContentUnavailable, BlockInvalid."""
    return await store.folder_of({file.name: file.cid for file in manifest.files})


async def open_tokenizer(store: Store, manifest: Manifest) -> ModelTokenizer:
    """Raises ContentUnavailable, BlockInvalid, ModelFileInvalid."""
    paths = {role: await store.checked_path(manifest.file(role).cid) for role in WITHOUT_WEIGHTS}
    return await store.in_thread(load_tokenizer, manifest, paths)


async def _manifests(store: Store) -> Mapping[str, Manifest]:
    return await store.in_thread(_read_manifests, store)


def _read_manifests(store: Store) -> Mapping[str, Manifest]:
    found = {}
    for cid, block in store.blocks().items():
        try:
            found[cid] = read_manifest(block)
        except EncodingInvalid:
            continue
    return found


def _check_format(path: Path, file: ModelFile, manifest: Manifest) -> None:
    found = recognise(path, file.name)
    if found != manifest.format:
        raise ModelFileInvalid(
            f"{file.name} of {manifest.name} is {found}, and its manifest says {manifest.format}.",
            next_step="Do not use this model; its publisher describes it wrongly.",
        )


async def _keep_directory(store: Store, manifest: Manifest, *, public: bool) -> None:
    """A manifest's directory is what `build_folder` makes of its files, so that nobody has to send it."""
    if manifest.directory:
        dag = await directory_of(store, manifest.files)
        if str(dag.root) != manifest.directory:
            raise BlockInvalid(f"the directory that the manifest of {manifest.name} names is not made of its files.")
        await store.add_directory(dag, public=public)


async def directory_of(store: Store, files: Sequence[ModelFile]) -> DirectoryDag:
    """What a manifest's `directory` is of these files. Raises ContentUnavailable if one is not in the store."""
    entries = {}
    for file in files:
        cid = parse_cid(file.cid)
        size = file.size_bytes if cid.codec == RAW else total_bytes(await store.read_block(file.cid))
        entries[file.name] = cid, size
    return build_folder(entries)
