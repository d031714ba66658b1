"""A model's manifest as far as its files tell it, before anything has a CID or a signature.

Lives here: what names, heads and configuration files give together, and taking tokenizer and chat template out of the
files that hold them, so that a buyer can count tokens without the weights. Reads files, writes what it takes out into
a folder that the caller gives. Knows no store, no wallet and no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.models.formats import refuse_pickle
from inference.models.gguf_text_tokenizer import read_gguf_text_tokenizer
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.models.inspection import FileFacts, inspect_file
from inference.models.manifest import Format, HardwareNeeds, Role, SpecialTokens
from inference.models.roles import name_of_model, roles_of
from inference.models.transformers_config import (
    context_of,
    kv_token_bytes,
    language_part,
    modality_of,
    quantisation_of,
    read_config,
    special_tokens,
)
from market.errors import ModelFileInvalid, RequestInvalid
from market.values import value

SLOT_TOKENS = 2048
"""The context of a slot that needs are reckoned with (DESIGN section 8), or the model's own if that is shorter."""
UNKNOWN = "unknown"
_ENGINE_BYTES = 96 * 1024 * 1024
"""Graph and output buffers; 60 MB were seen for the default model."""
_MIB = 1024 * 1024
_READERS = frozenset(("embedding", "rerank", "reranking"))
"""Modalities of models that read and write nothing: their tokenizer puts special tokens around a text by itself."""
_IN_MEMORY = (Role.WEIGHTS, Role.PROJECTOR, Role.ADAPTER, Role.EXTRA)


@value
class DraftFile:
    role: Role
    name: str
    path: Path


@value
class Draft:
    """All that a Manifest says except CIDs, creator, parent and source. `left_out` says why a file is not in it."""

    name: str
    version: str
    files: tuple[DraftFile, ...]
    format: Format
    quantisation: str
    licence: str
    modality: str
    context: int
    needs: HardwareNeeds
    tokens: SpecialTokens
    left_out: Mapping[str, str]


@value
class Wishes:
    """What the publisher says itself; empty: whatever the files say. `allow_pickled` takes pickled weights, which
    only a sandboxed engine may ever load."""

    name: str = ""
    version: str = ""
    licence: str = ""
    modality: str = ""
    context: int = 0
    allow_pickled: bool = False


NO_WISHES = Wishes()


def draft_manifest(files: Mapping[str, Path], folder: Path, wishes: Wishes = NO_WISHES, *, place: str = "") -> Draft:
    """`files` by their names in the manifest; what is taken out of them goes into `folder`. `place` names the model
    where no file does. Blocking.

    Raises ModelFileInvalid, ModelUntrusted (pickles), RequestInvalid (no weights, several models), OSError.
    """
    parts = _Parts(_without_common_folder(files), folder, wishes)
    weights = parts.names(Role.WEIGHTS)
    facts = parts.inspect()
    config = parts.config("config.json")
    described = language_part(config)
    modality = wishes.modality or _modality(facts, parts, config)
    tokens = _take_out_tokenizer(facts, parts, modality)
    context = wishes.context or facts.context or context_of(described)
    return Draft(
        name=_plain_name(wishes.name or name_of_model(weights) or facts.name or place),
        version=wishes.version or "1.0.0",
        files=tuple(DraftFile(role=role, name=name, path=parts.paths[name]) for name, role in parts.roles.items()),
        format=facts.format,
        quantisation=_word(quantisation_of(config) or facts.quantisation),
        licence=_word(wishes.licence or facts.licence),
        modality=_word(modality),
        context=context,
        needs=_needs(facts, parts, (facts.kv_token_bytes or kv_token_bytes(described)) * min(context, SLOT_TOKENS)),
        tokens=tokens,
        left_out=parts.left_out,
    )


class _Parts:
    """The files of the model as they are sorted out: roles and paths by name, and why the others are not in it."""

    def __init__(self, files: Mapping[str, Path], folder: Path, wishes: Wishes) -> None:
        found = roles_of(files)
        self.roles = dict(found.of)
        self.paths = {name: files[name] for name in found.of}
        self.left_out = dict(found.left_out)
        self._files = files
        self._folder = folder
        self._wishes = wishes

    def names(self, *roles: Role) -> list[str]:
        return [name for name, role in self.roles.items() if role in roles]

    def config(self, name: str) -> dict[str, Any]:
        """A JSON object beside the weights or at the top of the model's folder; empty if there is none."""
        folder = self.names(Role.WEIGHTS)[0].rpartition("/")[0]
        for place in (f"{folder}/{name}", name):
            if self.roles.get(place) == Role.CONFIG:
                return read_config(self.paths[place])
        return {}

    def take_out(self, name: str, role: Role, text: str) -> None:
        self.roles[name], self.paths[name] = role, self._folder / name
        self.paths[name].write_text(text, encoding="utf-8")

    def inspect(self) -> FileFacts:
        """Every file with tensors in it; the facts of the first of the weights, which speaks for its shards."""
        weights = {name: self._inspected(name) for name in self.names(Role.WEIGHTS)}
        for name in self.names(Role.PROJECTOR, Role.ADAPTER):
            self._inspected(name)
        if len({facts.format for facts in weights.values()}) > 1:
            raise RequestInvalid(
                "The weights are of several formats.", next_step="Name one file or one folder of them."
            )
        for name, facts in weights.items():
            for location in facts.external:
                self._bring_external(name, location)
        return next(iter(weights.values()))

    def _inspected(self, name: str) -> FileFacts:
        facts = inspect_file(self.paths[name], name)
        if not self._wishes.allow_pickled:
            refuse_pickle(facts.format, name)
        return facts

    def _bring_external(self, name: str, location: str) -> None:
        """An ONNX file may keep weights in files beside it: they belong to the model whatever they are called, and
        none may lie elsewhere: the engine would read `../…` from outside of the model's folder."""
        folder = name.rpartition("/")[0]
        beside = f"{folder}/{location}" if folder else location
        if beside not in self._files or ".." in location.split("/"):
            raise ModelFileInvalid(
                f"{name} keeps weights in {location[:80]!r}, which is not among the files.",
                next_step="Name the folder that holds both.",
            )
        self.left_out.pop(beside, None)
        self.roles[beside], self.paths[beside] = Role.EXTRA, self._files[beside]


def _without_common_folder(files: Mapping[str, Path]) -> Mapping[str, Path]:
    """`onnx/model.onnx` and `onnx/config.json` are the whole of a model whose folder's name says nothing more."""
    firsts = {name.partition("/")[0] for name in files}
    if len(firsts) == 1 and all("/" in name for name in files):
        return _without_common_folder({name.partition("/")[2]: path for name, path in files.items()})
    return files


def _take_out_tokenizer(facts: FileFacts, parts: _Parts, modality: str) -> SpecialTokens:
    """The special tokens; tokenizer and template become files of their own where they are inside of others."""
    said = parts.config("tokenizer_config.json")
    own = parts.names(Role.TOKENIZER)
    tokens = special_tokens(
        said,
        generation=parts.config("generation_config.json"),
        config=language_part(parts.config("config.json")),
        tokenizer=read_config(parts.paths[own[0]], Role.TOKENIZER) if own else {},
    )
    template = _default_template(said.get("chat_template"))
    if facts.format == Format.GGUF and not own:
        weights = parts.paths[parts.names(Role.WEIGHTS)[0]]
        try:
            if modality in _READERS:
                parts.take_out("tokenizer.json", Role.TOKENIZER, read_gguf_text_tokenizer(weights))
            else:
                inside = read_gguf_tokenizer(weights)
                parts.take_out("tokenizer.json", Role.TOKENIZER, inside.tokenizer_json)
                tokens, template = inside.tokens, template or inside.chat_template
        except ModelFileInvalid as error:
            parts.left_out["tokenizer.json"] = str(error)
    if template and not parts.names(Role.CHAT_TEMPLATE):
        parts.take_out("chat_template.jinja", Role.CHAT_TEMPLATE, template)
    return tokens


def _default_template(said: object) -> str:
    """A model may name several templates, for tools or retrieval beside plain chats."""
    for item in said if isinstance(said, list) else ():
        if isinstance(item, dict) and item.get("name") == "default":
            said = item.get("template")
    return said if isinstance(said, str) else ""


def _modality(facts: FileFacts, parts: _Parts, config: Mapping[str, Any]) -> str:
    if "model_index.json" in parts.roles:  # what the diffusers library writes
        return "image"
    return "vision" if parts.names(Role.PROJECTOR) else facts.modality or modality_of(config)


def _needs(facts: FileFacts, parts: _Parts, cache_bytes: int) -> HardwareNeeds:
    """All weights in memory, keys and values of one slot, and the engine's buffers; in whole MiB."""
    held = sum(parts.paths[name].stat().st_size for name in parts.names(*_IN_MEMORY))
    total = min(-(-(held + cache_bytes + _ENGINE_BYTES) // _MIB) * _MIB, 2**52)
    if facts.format == Format.TENSORRT:
        return HardwareNeeds(min_vram_bytes=total, accelerators=("cuda",))
    return HardwareNeeds(min_ram_bytes=total, min_vram_bytes=total)


def _plain_name(text: str) -> str:
    """As the manifest's rule for names has it."""
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._+-]+", "-", text)).strip("-._+")[:128]
    return plain or "model"


def _word(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9 ._+/-]+", "-", text).strip(" ._+/-")[:64]
    return plain or UNKNOWN
