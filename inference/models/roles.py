"""What each of a model's files is for, decided by their names alone.

Lives here: roles and the order of a manifest, pure. Which files of a large place belong to the model is `choice`'s to
say, what their bytes are `formats`'. Knows no place and no manifest's fields.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from inference.models.choice import model_files
from inference.models.filenames import check_file_name
from inference.models.formats import SUFFIXES
from inference.models.manifest import Format, Role
from market.errors import EncodingInvalid, RequestInvalid
from market.values import value

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
_PRECISION = re.compile(r"[.-](i?q\d\w*|b?f16|f32|fp\d+|int[48]|mxfp4)$", re.IGNORECASE)
_SAYS_NOTHING = frozenset(("model", "weights", "member", "pytorch_model", "diffusion_pytorch_model"))
_BY_SUFFIX = {
    ".json": Role.CONFIG,
    ".txt": Role.VOCABULARY,
    ".model": Role.VOCABULARY,
    ".tiktoken": Role.VOCABULARY,
    ".spm": Role.VOCABULARY,
    ".onnx_data": Role.EXTRA,
    ".onnx.data": Role.EXTRA,
    ".jinja": Role.EXTRA,
    ".npy": Role.EXTRA,
    ".wav": Role.EXTRA,
}
_LICENCES = ("license", "licence", "notice", "copying")
_WHOLE = (".safetensors", ".gguf", ".onnx")
"""Formats of which a place often holds several copies: `choice` knows how to pick among them."""


@value
class Roles:
    """`of` by name, in the order of a manifest; `left_out` says why, by name."""

    of: Mapping[str, Role]
    left_out: Mapping[str, str]


def roles_of(names: Iterable[str]) -> Roles:
    """Raises RequestInvalid if there are no weights, several models to choose from, or shards are missing."""
    given = sorted(names)
    whole = any(name.lower().endswith(_WHOLE) for name in given)
    picked = set(model_files(given)) if whole and len(given) > 1 else set(given)
    roles: dict[str, Role] = {}
    left_out = {name: "the model is whole without it" for name in given if name not in picked}
    for name in given:
        role = _role_of(name)
        if not isinstance(role, Role):
            left_out[name] = role
        elif name in picked:
            roles[name] = role
    weights = [name for name, role in roles.items() if role == Role.WEIGHTS]
    _check_weights(weights)
    for name in ("tokenizer.json", "chat_template.jinja"):
        _one_of_a_kind(name, PurePosixPath(weights[0]).parent, roles)
    order = list(Role)
    return Roles(of=dict(sorted(roles.items(), key=lambda item: (order.index(item[1]), item[0]))), left_out=left_out)


def name_of_model(weights: Sequence[str]) -> str:
    """What the first weights file is called, without folder, shard and quantisation; empty if that says nothing."""
    stem = _PRECISION.sub("", _SHARD.sub("", PurePosixPath(weights[0]).name).rsplit(".", 1)[0])
    return "" if stem.lower() in _SAYS_NOTHING else stem


def _role_of(name: str) -> Role | str:
    """A role, or why the file is left out."""
    try:
        check_file_name(name)
    except EncodingInvalid:
        return "its name is hidden, or not safe"
    path = PurePosixPath(name.lower())
    if path.suffix in SUFFIXES:
        if "mmproj" in path.name:
            return Role.PROJECTOR
        return Role.ADAPTER if path.name.startswith(("adapter_model.", "pytorch_lora_weights.")) else Role.WEIGHTS
    if path.name.startswith(_LICENCES):
        return Role.EXTRA
    for suffix, role in _BY_SUFFIX.items():
        if path.name.endswith(suffix):
            return role
    return "it is code, or nothing that an engine here reads"


def _one_of_a_kind(name: str, folder: PurePosixPath, roles: dict[str, Role]) -> None:
    """The one beside the weights, or at the top; a diffusion model has several, in folders of their own."""
    kind = Role.TOKENIZER if name == "tokenizer.json" else Role.CHAT_TEMPLATE
    nearest = next((place for place in (str(folder / name), name) if place in roles), None)
    if nearest is not None:
        roles[nearest] = kind


def _check_weights(weights: Collection[str]) -> None:
    if not weights:
        raise RequestInvalid(
            "There are no weights among the files.",
            next_step=f"A weights file ends in one of {', '.join(sorted(SUFFIXES))}.",
        )
    kinds = {SUFFIXES[PurePosixPath(name.lower()).suffix] for name in weights}
    if len(kinds) > 1 and any(Format.PYTORCH not in kind for kind in kinds):
        raise RequestInvalid("The weights are of several formats.", next_step="Name one file or one folder of them.")
    for name in weights:
        shard = _SHARD.search(name)
        if shard and sum(_SHARD.sub("", name) == _SHARD.sub("", other) for other in weights) != int(shard[2]):
            raise RequestInvalid(
                f"Shards of {_SHARD.sub('', name)} are missing: there should be {int(shard[2])}.",
                next_step="Name the folder that holds all of them.",
            )
