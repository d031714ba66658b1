"""The tokenizer inside a GGUF file of a model that reads and does not write, as a `tokenizer.json`.

Lives here: WordPiece in llama.cpp's terms to the `tokenizers` library's, and the special tokens that stand around a
text, so that a buyer can count without the weights. Knows GGUF keys; knows no store. Done once, when a model is
published. What does not translate exactly is refused, never approximated.
Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_wpm, BERT's default ids), conversion/bert.py (the phantom space).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from inference.models.gguf_metadata import read_gguf_metadata
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from market.errors import ModelFileInvalid

_CONTROL: Final = 3
_SPACE: Final = "\u2581"
"""llama.cpp writes a word's first piece with it, and the others without WordPiece's `##`."""
_BERT_IDS: Final[Mapping[str, int]] = {"bos": 101, "unknown": 100, "seperator": 102}
"""What llama.cpp takes where a file says nothing. (The key is spelt so.)"""
_WORD_LIMIT: Final = 100
"""Characters of a word that BERT's own tokenizer reads; a longer one is unknown."""


def read_gguf_text_tokenizer(path: Path) -> str:
    """Blocking. Raises ModelFileInvalid if the file is no GGUF or its tokenizer is of a kind we cannot reproduce."""
    try:
        fields: dict[str, Any] = read_gguf_metadata(path)
        if fields.get("tokenizer.ggml.model") != "bert":
            return _with_special_tokens(read_gguf_tokenizer(path).tokenizer_json, fields)
        return json.dumps(_wordpiece(fields))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelFileInvalid(f"{path.name} has no tokenizer that can be read ({type(error).__name__}).") from None


def _wordpiece(fields: Mapping[str, Any]) -> dict[str, Any]:
    texts: Sequence[str] = fields["tokenizer.ggml.tokens"]
    types: Sequence[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(texts)
    pieces = [_piece(text, kind) for text, kind in zip(texts, types, strict=True)]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise _refused("two of its tokens have the same text")
    ids = {name: int(fields.get(f"tokenizer.ggml.{name}_token_id", other)) for name, other in _BERT_IDS.items()}
    start, unknown, end = (pieces[ids[name]] for name in ("bos", "unknown", "seperator"))
    lowercase = _lowercase(fields, pieces)
    special = {at for at, kind in enumerate(types) if kind == _CONTROL} | set(ids.values())
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(at, pieces[at]) for at in sorted(special)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": bool(fields.get("tokenizer.ggml.normalizer.strip_accents", lowercase)),
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template({start: ids["bos"]}, {end: ids["seperator"]}),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": _WORD_LIMIT,
            "vocab": vocabulary,
        },
    }


def _piece(text: str, kind: int) -> str:
    """Older converters left everything in brackets alone, newer ones control tokens only."""
    if text.startswith(_SPACE) and len(text) > 1:
        return text[1:]
    if kind == _CONTROL or (len(text) > 2 and text[0] == "[" and text[-1] == "]"):
        return text
    return "##" + text


def _lowercase(fields: Mapping[str, Any], pieces: Sequence[str]) -> bool:
    said = fields.get("tokenizer.ggml.normalizer.lowercase")
    if isinstance(said, bool):
        return said
    # Without the key llama.cpp makes every text lower case, which a model that learnt capitals never saw.
    if any(piece != piece.lower() and piece[:1] != "[" for piece in pieces):
        raise _refused("it knows capital letters, and does not say that it keeps them")
    return True


def _with_special_tokens(tokenizer_json: str, fields: Mapping[str, Any]) -> str:
    """A chat's special tokens come from its template; a text to be embedded gets those that the file asks for."""
    texts: Sequence[str] = fields["tokenizer.ggml.tokens"]

    def around(name: str) -> dict[str, int]:
        if fields.get(f"tokenizer.ggml.add_{name}_token") is not True:
            return {}
        at = int(fields[f"tokenizer.ggml.{name}_token_id"])
        return {texts[at]: at}

    before, after = around("bos"), around("eos")
    tree: dict[str, Any] = json.loads(tokenizer_json)
    if before or after:
        tree["post_processor"] = _template(before, after)
    return json.dumps(tree)


def _template(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Around a text; of a pair, the second text follows the first one's end and has an end of its own."""

    def tokens(names: Mapping[str, int], kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": kind}} for name in names]

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": kind}}]

    single = [*tokens(before, 0), *text("A", 0), *tokens(after, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *text("B", 1), *tokens(after, 1)],
        "special_tokens": {
            name: {"id": name, "ids": [at], "tokens": [name]} for name, at in {**before, **after}.items()
        },
    }


def _added(at: int, text: str) -> dict[str, Any]:
    return {
        "id": at, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False,
    }  # fmt: skip


def _refused(why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"Its tokenizer cannot be rebuilt exactly: {why}.", next_step="Publish the model with its own tokenizer.json."
    )
