"""The tokenizer inside a GGUF file, as a `tokenizer.json`, a chat template and the tokens that neither of them names.

Lives here: translating llama.cpp's metadata into the `tokenizers` library's terms, so that a buyer can count and
render without the weights. Knows GGUF keys; knows no store. Done once, when a model is published. What does not
translate exactly is refused, never approximated.
Source: llama.cpp, src/llama-vocab.cpp (the pre-tokenizer of each `tokenizer.ggml.pre`, the end-of-generation list).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from inference.models.gguf_metadata import read_gguf_metadata
from inference.models.manifest import SpecialTokens
from market.errors import ModelFileInvalid
from market.values import value

_DIGITS_THEN_GPT2 = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell"))
"""llama.cpp runs the same two expressions for these: every digit by itself, then GPT-2's words."""
_CONTROL, _USER_DEFINED = 3, 4
_END_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "<｜end▁of▁sentence｜>",
        # fill-in-the-middle padding and repository names: no chat answer goes on after one
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    )
)


@value
class GgufTokenizer:
    tokenizer_json: str
    chat_template: str
    tokens: SpecialTokens
    context: int
    name: str


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Blocking. Raises ModelFileInvalid if the file is no GGUF or its tokenizer is of a kind we cannot reproduce."""
    try:
        return _translate(read_gguf_metadata(path))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelFileInvalid(f"{path.name} has no tokenizer that can be read ({type(error).__name__}).") from None


def _translate(fields: dict[str, Any]) -> GgufTokenizer:
    get = fields.get
    kind, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _DIGITS_THEN_GPT2:
        raise ModelFileInvalid(
            f"A tokenizer of kind {kind!r}, pre-tokenizer {pre!r}, cannot be rebuilt exactly.",
            next_step="Publish the model with its own tokenizer.json.",
        )
    texts: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: n for n, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(texts, types, _CONTROL))
    tokenizer.add_tokens(_added(texts, types, _USER_DEFINED))

    named = {name: get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    end = {number for name, number in named.items() if name != "bos" and number is not None}
    end |= {n for n, text in enumerate(texts) if text in _END_TEXTS and types[n] in (_CONTROL, _USER_DEFINED)}
    return GgufTokenizer(
        tokenizer_json=tokenizer.to_str(),
        chat_template=get("tokenizer.chat_template", ""),
        tokens=SpecialTokens(
            bos="" if named["bos"] is None else texts[named["bos"]],
            eos="" if named["eos"] is None else texts[named["eos"]],
            add_bos=bool(get("tokenizer.ggml.add_bos_token", False)),
            end=tuple(sorted(int(number) for number in end)),
        ),
        context=int(fields[f"{get('general.architecture')}.context_length"]),
        name=str(get("general.name", "")),
    )


def _added(texts: list[str], types: list[int], kind: int) -> list[AddedToken]:
    return [
        AddedToken(text, special=kind == _CONTROL, normalized=False)
        for text, its in zip(texts, types, strict=True)
        if its == kind
    ]
