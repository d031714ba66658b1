"""Which files of a repository are its model: weights in one format, what describes them, tokenizer, chat template.

Lives here: the rules, over names alone. Never code and never pickles. Where several models lie side by side (one
repository with twenty quantisations is the rule for GGUF) nobody guesses: the error lists them.

- `model_index.json` (a diffusers pipeline): the weights, JSON and text files of every folder of it.
- Otherwise the first of safetensors, GGUF, ONNX that is there, out of the folder nearest to the root:
  safetensors: all of them, without copies in another precision (`.fp16.`) or layout (`consolidated`);
  GGUF: one file or one set of shards, and a projector (`mmproj`) if there is just one;
  ONNX: `model.onnx`, or the only one there is, with its external data;
  CTranslate2: `model.bin` beside a vocabulary, as faster-whisper's models have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from inference.models.references import is_pickle, is_safe_path
from market.errors import RequestInvalid

_SHARD = re.compile(r"(.*)-[0-9]{5}-of-[0-9]{5}(\.[A-Za-z0-9]+)")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema)(?=[.-])")
_COMPANIONS = frozenset(
    {
        "config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json",
        "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json", "params.json",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
        "chat_template.jinja", "chat_template.json", "modules.json", "config_sentence_transformers.json",
        "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE",
    }
)  # fmt: skip
_PIPELINE = (".safetensors", ".json", ".txt", ".model", ".onnx")


def model_files(names: Sequence[str], path: str = "") -> list[str]:
    """The names to bring, sorted. `path` is a file (its shards come along, even pickles: somebody asked for it), a
    folder, or empty for everything. Raises RequestInvalid if there is nothing, or a choice to be made."""
    safe = [name for name in names if is_safe_path(name)]
    if path in safe:
        return sorted(name for name in safe if _set_of(name) == _set_of(path))
    inside = [name for name in safe if not path or name.startswith(path + "/")]
    if not inside:
        raise RequestInvalid(f"There is no {path or 'file'} there.", next_step=f"There are: {_some(safe)}.")
    base = path + "/" if path else ""
    if f"{base}model_index.json" in inside:
        return _pipeline(inside, base)
    for suffix, pick in _FORMATS:
        found = [name for name in inside if name.lower().endswith(suffix)]
        if found:
            folder = _nearest(found)
            weights = pick([name for name in found if _folder(name) == folder], inside)
            about = [n for n in inside if _folder(n) in (folder, path) and _is_companion(n, suffix)]
            return sorted({*weights, *about})
    if (converted := _ctranslate2(inside)) is not None:
        return converted
    if any(is_pickle(name) for name in inside):
        raise RequestInvalid(
            "The weights there are Python pickles only, and loading one runs its author's code.",
            next_step="Look for a conversion to safetensors or GGUF; or name the file, if you trust its author.",
        )
    raise RequestInvalid("There are no model weights there.", next_step=f"There are: {_some(inside)}.")


def _pipeline(inside: Sequence[str], base: str) -> list[str]:
    wanted = [name for name in inside if name.endswith(_PIPELINE) or _is_companion(name, ".safetensors")]
    wanted = [name for name in wanted if name.removeprefix(base).count("/") <= 1]
    weights = _safetensors([name for name in wanted if name.endswith(".safetensors")], inside)
    loose = {n for n in weights if _folder(n) == base.rstrip("/")}  # one file with all in it, beside the parts
    parts = [name for name in weights if name not in loose]
    return sorted({*(parts or weights), *(name for name in wanted if not name.endswith((".safetensors", ".onnx")))})


def _ctranslate2(inside: Sequence[str]) -> list[str] | None:
    """What CTranslate2's converters write: `model.bin` beside a vocabulary. The bytes decide later whether it is one
    (`formats.recognise`): a pickle in its place is refused like any other."""
    for weights in sorted(name for name in inside if name.rsplit("/", 1)[-1] == "model.bin"):
        folder = _folder(weights)
        beside = [name for name in inside if _folder(name) == folder]
        vocabularies = [n for n in beside if re.fullmatch(r"(shared_)?vocabulary\.(txt|json)", n.rsplit("/", 1)[-1])]
        if vocabularies:
            return sorted({weights, *vocabularies, *(name for name in beside if _is_companion(name, ".bin"))})
    return None


def _safetensors(found: Sequence[str], _: Sequence[str]) -> list[str]:
    plain = [name for name in found if not _VARIANT.search(name)]
    kept = plain or list(found)
    original = [name for name in kept if not name.rsplit("/", 1)[-1].startswith("consolidated")]
    return original or kept


def _gguf(found: Sequence[str], _: Sequence[str]) -> list[str]:
    projectors = [name for name in found if "mmproj" in name.lower()]
    sets = sorted({_set_of(name) for name in found if name not in projectors})
    if len(sets) != 1:
        raise _choose(sorted(found))
    return [name for name in found if _set_of(name) == sets[0]] + (projectors if len(projectors) == 1 else [])


def _onnx(found: Sequence[str], inside: Sequence[str]) -> list[str]:
    picked = [name for name in found if name.rsplit("/", 1)[-1] == "model.onnx"] or list(found)
    if len(picked) != 1 and not _reads(picked):
        raise _choose(sorted(found))
    outside = tuple(f"{name}{end}" for name in picked for end in ("_data", ".data"))
    return [name for name in inside if name.startswith(outside)] + picked


def _reads(names: Sequence[str]) -> bool:
    """Whether these are the two halves of one reader (OCR): what finds lines of text, and what reads them."""
    words = [set(re.split(r"[^a-z]+", name.rsplit("/", 1)[-1].lower())) for name in sorted(names)]
    return len(words) == 2 and "det" in words[0] and "rec" in words[1]


_FORMATS: tuple[tuple[str, Callable[[Sequence[str], Sequence[str]], list[str]]], ...] = (
    (".safetensors", _safetensors),
    (".gguf", _gguf),
    (".onnx", _onnx),
)


def _is_companion(name: str, suffix: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last in _COMPANIONS or (suffix == ".safetensors" and last.endswith(".safetensors.index.json"))


def _nearest(found: Sequence[str]) -> str:
    depth = min(name.count("/") for name in found)
    folders = sorted({_folder(name) for name in found if name.count("/") == depth})
    if len(folders) > 1:
        raise _choose(folders)
    return folders[0]


def _set_of(name: str) -> str:
    match = _SHARD.fullmatch(name)
    return match[1] + match[2] if match else name


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _choose(names: Sequence[str]) -> RequestInvalid:
    return RequestInvalid(
        f"There are {len(names)} models there: {_some(names)}.", next_step="Put one of these behind the reference."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:20]) + (" and more" if len(names) > 20 else "")
