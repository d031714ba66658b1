"""Which of a place's files belong to a model, and as what: decided by their names alone.

Lives here: the choice, pure. It is made before anything is downloaded, and again when a manifest is drafted. Bytes are
not looked at: `formats` does that. Knows no place and no manifest's fields.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from inference.models.filenames import check_file_name
from inference.models.formats import SUFFIXES
from inference.models.manifest import Format, Role
from market.errors import EncodingInvalid, RequestInvalid
from market.values import value

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema)(?=[.-])")
_BY_NAME = {"tokenizer.json": Role.TOKENIZER, "chat_template.jinja": Role.CHAT_TEMPLATE}
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
_NAMED = 8


@value
class Choice:
    """`roles` by name, in the order of a manifest; `left_out` says why, by name."""

    roles: Mapping[str, Role]
    left_out: Mapping[str, str]


def choose_files(names: Iterable[str]) -> Choice:
    """Raises RequestInvalid if there are no weights, or several models to choose from."""
    roles: dict[str, Role] = {}
    left_out: dict[str, str] = {}
    for name in sorted(names):
        role = _role_of(name)
        if isinstance(role, Role):
            roles[name] = role
        else:
            left_out[name] = role
    _prefer_safe_files(roles, left_out)
    _prefer_one_variant(roles, left_out)
    weights = [name for name, role in roles.items() if role == Role.WEIGHTS]
    _check_one_model(weights)
    order = list(Role)
    return Choice(
        roles=dict(sorted(roles.items(), key=lambda item: (order.index(item[1]), item[0]))), left_out=left_out
    )


def name_of_model(weights: Sequence[str]) -> str:
    """What the first weights file is called, without folder, shard and quantisation; empty if that says nothing."""
    stem = _SHARD.sub("", PurePosixPath(weights[0]).name).rsplit(".", 1)[0]
    stem = re.sub(r"[.-](i?q\d\w*|[bf]?f(16|32)|int[48]|mxfp4)$", "", stem, flags=re.IGNORECASE)
    return "" if stem.lower() in ("model", "weights", "member", "pytorch_model", "diffusion_pytorch_model") else stem


def _role_of(name: str) -> Role | str:
    """A role, or why the file is left out."""
    try:
        check_file_name(name)
    except EncodingInvalid:
        return "its name is hidden, or not safe"
    path = PurePosixPath(name.lower())
    if name in _BY_NAME:  # at the top only: a diffusion model has tokenizers in folders of their own
        return _BY_NAME[name]
    if path.suffix in SUFFIXES:
        if path.name.startswith("mmproj"):
            return Role.PROJECTOR
        return Role.ADAPTER if path.name.startswith(("adapter_model.", "pytorch_lora_weights.")) else Role.WEIGHTS
    if path.name.startswith(_LICENCES):
        return Role.EXTRA
    for suffix, role in _BY_SUFFIX.items():
        if path.name.endswith(suffix):
            return role
    return "it is code, or nothing that an engine here reads"


def _prefer_safe_files(roles: dict[str, Role], left_out: dict[str, str]) -> None:
    """Pickled twins go where the same weights lie beside them in a format that cannot run code."""
    kinds = {name: SUFFIXES[PurePosixPath(name.lower()).suffix] for name in _weights(roles)}
    if any(Format.PYTORCH not in formats for formats in kinds.values()):
        for name, formats in kinds.items():
            if Format.PYTORCH in formats:
                _leave_out(name, "it may be a pickle, and safe weights are there", roles, left_out)


def _prefer_one_variant(roles: dict[str, Role], left_out: dict[str, str]) -> None:
    names = _weights(roles)
    for name in names:
        if _VARIANT.sub("", name) != name and _VARIANT.sub("", name) in names:
            _leave_out(name, "it is another precision of the same weights", roles, left_out)
        elif PurePosixPath(name).name.startswith("consolidated") and len(names) > 1:
            _leave_out(name, "it holds the same weights as the others", roles, left_out)
    for name in [name for name, role in roles.items() if role == Role.PROJECTOR][1:]:
        _leave_out(name, "it is another precision of the projector", roles, left_out)


def _leave_out(name: str, why: str, roles: dict[str, Role], left_out: dict[str, str]) -> None:
    del roles[name]
    left_out[name] = why


def _weights(roles: Mapping[str, Role]) -> list[str]:
    return [name for name, role in roles.items() if role == Role.WEIGHTS]


def _check_one_model(weights: Collection[str]) -> None:
    if not weights:
        raise RequestInvalid(
            "There are no weights among the files.",
            next_step=f"A weights file ends in one of {', '.join(sorted(SUFFIXES))}.",
        )
    suffixes = {PurePosixPath(name.lower()).suffix for name in weights}
    ggufs = {_SHARD.sub("", name) for name in weights if name.lower().endswith(".gguf")}
    if len(suffixes) > 1 or len(ggufs) > 1:
        shown = ", ".join(list(weights)[:_NAMED]) + (" …" if len(weights) > _NAMED else "")
        raise RequestInvalid(
            f"There is more than one model: {shown}.", next_step="Name one file or one folder of them."
        )
    for name in weights:
        shard = _SHARD.search(name)
        if shard and sum(_SHARD.sub("", name) == _SHARD.sub("", other) for other in weights) != int(shard[2]):
            raise RequestInvalid(
                f"Shards of {_SHARD.sub('', name)} are missing: there should be {int(shard[2])}.",
                next_step="Name the folder that holds all of them.",
            )
