"""Which parts of a `tokenizer.json` are run here: a list of those that are known, everything else is refused.

Lives here: the check, pure. A tokenizer file is a stranger's, and it may bring regular expressions of its own: one
like `(a+)+$` runs for ever on a line of text. So expressions are taken only if they are, letter for letter, those of
models that are widely used. What a post-processor adds (a first token, offsets) is the chat template's business here,
so it is checked and left out.
Source: https://huggingface.co/docs/tokenizers, "Components"; the tokenizer files of the models named below.
"""

from __future__ import annotations

from typing import Any, Final

from market.errors import ModelFileInvalid

_CL100K: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD_PATTERNS: Final = frozenset((_CL100K % r"\p{N}{1,3}", _CL100K % r"\p{N}"))
"""Llama 3's, with up to three digits together, and Qwen 2's and 3's, with each digit by itself."""
_PLAIN: Final = frozenset(("Digits", "ByteLevel"))
_ADDING: Final = frozenset(("ByteLevel", "TemplateProcessing"))


def known_parts(tree: dict[str, Any]) -> dict[str, Any]:
    """The file's tree without its post-processor. Only byte-level BPE: other kinds are untested against the engines.

    Raises ModelFileInvalid for a part that is not run here, KeyError, TypeError or AttributeError for a tree that is no
    tokenizer's."""
    strange = [
        *(_word(part) for part in (tree["model"],) if part["type"] != "BPE"),
        *(_word(part) for part in _flat(tree["pre_tokenizer"], "pretokenizers") if not _is_known(part)),
        *(_word(part) for part in _flat(tree["normalizer"], "normalizers") if part["type"] != "NFC"),
        *(_word(part) for part in _flat(tree["post_processor"], "processors") if part["type"] not in _ADDING),
    ]
    if strange:
        raise ModelFileInvalid(
            f"The tokenizer file has parts that this node does not run: {', '.join(strange)[:200]}.",
            next_step="Byte-level BPE as GPT-2, Llama 3, Qwen and SmolLM have it is run; choose such a model.",
        )
    return {**tree, "post_processor": None}


def _flat(part: Any, inside: str) -> list[Any]:
    """A part, or those of a sequence; a sequence inside of a sequence is itself a part, and of no known kind."""
    if part is None:
        return []
    return list(part[inside]) if part["type"] == "Sequence" else [part]


def _is_known(part: Any) -> bool:
    if part["type"] != "Split":
        return part["type"] in _PLAIN
    return part["pattern"].get("Regex") in WORD_PATTERNS and part["behavior"] == "Isolated" and part["invert"] is False


def _word(part: Any) -> str:
    kind = str(part["type"])[:40]
    return f"{kind} by an unknown expression" if kind == "Split" else kind
