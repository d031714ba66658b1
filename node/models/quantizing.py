"""`octo-node models quantize`, as a story: find the model, refuse what would only harm it, make it, sign it.

Lives here: names, what is refused, one quantisation at a time. The work is `inference.quantize`'s, in a child process;
which files stay as they are, `inference.models.derived`'s.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog

from inference.models.derived import Derivation, NewFile, derive_model
from inference.models.inspection import inspect_file
from inference.models.library import model_of, models_in, weights_path
from inference.models.manifest import Format, Manifest, ModelFile, Role
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.store import Store
from inference.models.transformers_config import read_config
from inference.quantization.config_files import check_config, converted_config, converted_index
from inference.quantization.convert import layout_of
from inference.quantization.plan import plan_quantisation
from inference.quantization.targets import parse_target, warning_of
from inference.quantize import quantize
from market.errors import ContentUnavailable, RequestInvalid
from market.identity import WalletSigner
from node.models.sharing import Sharing
from node.models.view import ModelView

log = structlog.get_logger()

_PRECISION = re.compile(r"[.-](i?q\d\w*|b?f16|f32|fp\d+|int[48])$", re.IGNORECASE)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_INDEX = ".safetensors.index.json"


class Quantizing:
    """One at a time: each may take all memory that is free, and looks at what is free before it begins."""

    def __init__(self, *, store: Store, view: ModelView, sharing: Sharing, wallet: WalletSigner) -> None:
        self._store = store
        self._view = view
        self._sharing = sharing
        self._wallet = wallet
        self._turn = asyncio.Lock()

    async def quantize(
        self,
        model: str,
        to: str,
        *,
        name: str = "",
        version: str = "",
        again: bool = False,
        public: bool | None = None,
        progress: OnProgress = quiet,
    ) -> Mapping[str, Any]:
        """Make a new model, signed by this node's wallet, whose parent is `model`: a name or CID that lies here.

        `again`: though its weights are quantised already. `public`: as its parent is, unless said. Raises
        ModelUnknown, ContentUnavailable, RequestInvalid, DiskFull, NodeMisconfigured, ModelFileInvalid.
        """
        cid = await self._view.find(model)
        manifest = await model_of(self._store, cid)
        if cid not in await models_in(self._store):
            raise ContentUnavailable(
                f"{manifest.name} is here in part only.", next_step=f"First: octo-node models pull {cid}"
            )
        target = parse_target(to, manifest.format).word
        name = name or f"{_PRECISION.sub('', manifest.name)}-{target}"
        version = version or manifest.version
        public = await self._store.in_thread(self._store.serves, cid) if public is None else public
        async with self._turn:
            with ExitStack() as held:
                for file in manifest.files:
                    await self._store.in_thread(held.enter_context, self._store.using(file.cid))
                paths = await self._weights(manifest)
                said = await self._check(manifest, next(iter(paths.values())), target, again=again)
                if (name.lower(), version) == (manifest.name.lower(), manifest.version):
                    raise RequestInvalid(
                        f"the new model cannot have name and version of its parent, {manifest.name}.",
                        next_step="Give it another --name or --version.",
                        param="name",
                    )
                folder = Path(
                    await self._store.in_thread(lambda: tempfile.mkdtemp(prefix="quantize-", dir=self._store.parts))
                )
                try:
                    new = await self._make(manifest, paths, target, folder, progress)
                    made = Derivation(parent=cid, name=name, version=version, quantisation=target, new=new)
                    child = await derive_model(self._store, made, self._wallet, public=public)
                finally:
                    await self._store.in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))
        await self._sharing.refresh()
        return await self._told(child, warning=said)

    async def _weights(self, manifest: Manifest) -> dict[ModelFile, Path]:
        """What a quantiser is started on: each file, but of GGUF shards the first, among the others."""
        if manifest.format == Format.GGUF:
            return {manifest.weights[0]: await weights_path(self._store, manifest)}
        return {file: await self._store.checked_path(file.cid) for file in manifest.weights}

    async def _check(self, manifest: Manifest, weights: Path, target: str, *, again: bool) -> str:
        """The warning that belongs to the result. Raises RequestInvalid."""
        word = manifest.quantisation
        if manifest.format == Format.GGUF:  # the file's own word: the manifest's is its creator's claim
            word = (await self._store.in_thread(inspect_file, weights, manifest.weights[0].name)).quantisation
        for file in manifest.files:
            if manifest.format == Format.SAFETENSORS and file.name.endswith("config.json"):
                check_config(await self._config(file), manifest.name)
        if word.upper() == target:
            raise RequestInvalid(f"{manifest.name} is {target} already.", param="to")
        warning = warning_of(word, target)
        if warning and not again:
            raise RequestInvalid(
                f"{manifest.name}: {warning}", next_step="--again does it all the same.", param="again"
            )
        return warning

    async def _make(
        self, manifest: Manifest, paths: Mapping[ModelFile, Path], to: str, folder: Path, progress: OnProgress
    ) -> dict[str, NewFile | None]:
        """Every new file, in `folder`."""
        new: dict[str, NewFile | None] = {file.name: None for file in manifest.weights}
        scales: dict[str, str] = {}
        before, ahead = 0, sum(file.size_bytes for file in manifest.weights)
        for number, (file, path) in enumerate(paths.items()):
            left = sum(other.size_bytes for other in list(paths)[number + 1 :])

            def heard(done: int, total: int, before: int = before, left: int = left) -> None:
                whole = before + total + int(left * total / max(1, ahead))
                progress(Progress(what=f"{manifest.name} {to}", done_bytes=before + done, total_bytes=whole))

            made = folder / f"weights-{number}"
            plan = await self._store.in_thread(plan_quantisation, path, to)
            await self._store.make_room(plan.target_bytes)
            await quantize(path, made, to, heard=heard)
            before += plan.target_bytes
            name = _file_name(file.name, to, merged=manifest.format == Format.GGUF)
            new[file.name] = NewFile(name=name, path=made)
            if to == "FP8":
                layout = await self._store.in_thread(layout_of, path, to)
                shard = name.rpartition("/")[2]
                scales |= {f"{span.name}_scale": shard for span in layout.spans if span.scale_at >= 0}
        if manifest.format == Format.SAFETENSORS:
            new |= await self._configs(manifest, to, folder, before, scales)
        return new

    async def _configs(
        self, manifest: Manifest, to: str, folder: Path, total: int, scales: Mapping[str, str]
    ) -> dict[str, NewFile | None]:
        """`config.json` and the index of shards, where they say something about the numbers."""
        new: dict[str, NewFile | None] = {}
        for number, file in enumerate(manifest.files):
            bare = file.name.rpartition("/")[2]
            if file.role != Role.CONFIG or not (bare == "config.json" or bare.endswith(_INDEX)):
                continue
            config = await self._config(file)
            changed = converted_config(config, to) if bare == "config.json" else converted_index(config, total, scales)
            if changed != config:
                path = folder / f"config-{number}"
                text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
                await self._store.in_thread(path.write_text, text, "utf-8")
                new[file.name] = NewFile(name=file.name, path=path)
        return new

    async def _config(self, file: ModelFile) -> dict[str, Any]:
        return await self._store.in_thread(read_config, await self._store.checked_path(file.cid))

    async def _told(self, cid: str, *, warning: str) -> dict[str, Any]:
        manifest = await model_of(self._store, cid)
        return {
            "model": cid,
            "name": manifest.name,
            "version": manifest.version,
            "quantisation": manifest.quantisation,
            "size_bytes": manifest.size_bytes,
            "files": len(manifest.files),
            "parent": manifest.parent,
            "warning": warning,
        }


def _file_name(name: str, to: str, *, merged: bool) -> str:
    """`Otter.Q4_0.gguf` becomes `Otter.Q8_0.gguf`; shards of safetensors keep their names, which an index cites."""
    folder, slash, bare = name.rpartition("/")
    stem, dot, suffix = bare.rpartition(".")
    if not merged and _SHARD.search(stem):
        return name
    plain = _PRECISION.sub("", _SHARD.sub("", stem))
    if not merged and plain in ("model", "diffusion_pytorch_model"):
        return name  # engines look for these names
    return f"{folder}{slash}{plain}.{to}{dot}{suffix}"
