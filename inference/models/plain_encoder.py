"""Text to token ids for models that read and do not write: embedding models and rerankers, whose tokenizers are not
llama.cpp's. Both sides of a task run this same code, to count.

Lives here: reading a tokenizer.json with limits, encoding a text or a pair of texts with the special tokens that the
file puts around them. Knows no weights and no engine; chat models have `tokenizer`.

A stranger wrote the file. So only parts whose time is bounded by the text are run (no regular expression of its own),
its wishes to cut and to pad are ignored, and a special token's text inside an input is plain text: a document that
says `[SEP]` does not begin another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as Encoder

from inference.models.manifest import ROLE_LIMIT_BYTES, Role
from market.errors import ModelFileInvalid, RequestInvalid
from market.values import value

CHARACTERS_PER_TOKEN: Final = 16
"""A text with more characters than this for each token that it may have is refused before it is encoded: a word of 100
characters is one token, and a query of them would be encoded anew with each of 2,048 documents. Prose has 4 to 5."""
_MODELS = frozenset(("WordPiece", "Unigram", "BPE", "WordLevel"))
_NORMALIZERS = frozenset(
    ("Sequence", "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt",
     "Precompiled", "Prepend", "Replace")
)  # fmt: skip
_PRE_TOKENIZERS = frozenset(
    ("Sequence", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "ByteLevel", "Digits",
     "Punctuation", "UnicodeScripts", "Split")
)  # fmt: skip
_POST_PROCESSORS = frozenset(("Sequence", "TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel"))
_PADS = ("[PAD]", "<pad>", "<|padding|>")
_WORD_LIMIT = 1000
"""WordPiece takes the square of a word's length; the files that exist say 100."""
_DEPTH_LIMIT = 8


@value
class Encoded:
    """`types` are 0 for the first text's tokens and 1 for the second's."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


class PlainEncoder:
    """Safe to use from several threads. About 10 us for a sentence; `limit` is how many tokens an input may have,
    `pad` what a shorter one is filled up with."""

    def __init__(self, encoder_json: str, *, limit: int) -> None:
        """Raises ModelFileInvalid."""
        self._encoder = _parse(encoder_json)
        self._encoder.encode_special_tokens = True
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self.limit = limit
        self.pad = next((at for name in _PADS if (at := self._encoder.token_to_id(name)) is not None), 0)
        self.vocabulary = int(self._encoder.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str | Sequence[int], second: str | None = None, *, what: str = "the input") -> Encoded:
        """A text with the special tokens around it, or token ids as they came. Raises RequestInvalid for nothing, for
        too much, for half a character, and for ids of another tokenizer as far as that shows."""
        if not isinstance(text, str):
            return self._taken(text, what)
        room = self.limit * CHARACTERS_PER_TOKEN
        if (characters := len(text) + len(second or "")) > room:
            raise RequestInvalid(
                f"{what} has {characters} characters; {self.limit} tokens are the limit.",
                next_step="Send it in parts.",
                param="input",
            )
        try:
            found = self._encoder.encode(text, second) if second is not None else self._encoder.encode(text)
        except (UnicodeEncodeError, TypeError):
            raise RequestInvalid(f"{what} holds half a character (a lone surrogate).", param="input") from None
        if len(found.ids) > self.limit:
            raise RequestInvalid(
                f"{what} has {len(found.ids)} tokens; {self.limit} are the limit.",
                next_step="Send it in parts.",
                param="input",
            )
        if not found.ids:
            raise RequestInvalid(f"{what} is empty.", param="input")
        return Encoded(ids=tuple(found.ids), types=tuple(found.type_ids))

    def _taken(self, ids: Sequence[int], what: str) -> Encoded:
        if not 1 <= len(ids) <= self.limit:
            raise RequestInvalid(
                f"{what} has {len(ids)} tokens; 1 to {self.limit} are allowed.",
                next_step="Send it in parts.",
                param="input",
            )
        if max(ids) >= self.vocabulary or min(ids) < 0:
            raise RequestInvalid(
                f"{what} holds token ids that this model does not have: its vocabulary ends at {self.vocabulary}.",
                next_step="Send the text itself, or the ids of this model's own tokenizer.",
                param="input",
            )
        return Encoded(ids=tuple(ids), types=(0,) * len(ids))


def load_plain_encoder(path: Path, *, limit: int) -> PlainEncoder:
    """Blocking (0.1 s). `limit` is the manifest's context. Raises ModelFileInvalid."""
    try:
        if path.stat().st_size > ROLE_LIMIT_BYTES[Role.TOKENIZER]:
            raise ModelFileInvalid(f"The tokenizer file is over {ROLE_LIMIT_BYTES[Role.TOKENIZER]} bytes.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileInvalid(f"The model's tokenizer file cannot be read ({type(error).__name__}).") from None
    return PlainEncoder(text, limit=limit)


def _parse(encoder_json: str) -> Encoder:
    try:
        tree = json.loads(encoder_json)
        model = tree["model"]
        known = model["type"] in _MODELS and model.get("max_input_chars_per_word", 0) <= _WORD_LIMIT
        for key, kinds in (
            ("normalizer", _NORMALIZERS),
            ("pre_tokenizer", _PRE_TOKENIZERS),
            ("post_processor", _POST_PROCESSORS),
        ):
            known = known and all(part["type"] in kinds and not _searches(part) for part in _parts(tree.get(key)))
        if not known or any(not item["content"] for item in tree.get("added_tokens") or ()):
            raise ModelFileInvalid("The tokenizer file has parts that this node does not run.")
        return Encoder.from_str(encoder_json)
    except ModelFileInvalid:
        raise
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises bare Exception
        raise ModelFileInvalid(f"The tokenizer file cannot be read ({type(error).__name__}).") from None


def _parts(part: Mapping[str, Any] | None, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if depth > _DEPTH_LIMIT:
        raise ModelFileInvalid("The tokenizer file nests its parts too deep.")
    yield part
    for key in ("normalizers", "pretokenizers", "processors"):
        for inner in part.get(key) or ():
            yield from _parts(inner, depth + 1)


def _searches(part: Mapping[str, Any]) -> bool:
    """A regular expression of the file's own could run for ever; SentencePiece's " {2,}" cannot."""
    pattern = part.get("pattern")
    return isinstance(pattern, dict) and pattern.get("Regex", " {2,}") != " {2,}"
