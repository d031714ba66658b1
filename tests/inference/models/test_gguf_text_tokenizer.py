"""Tokenizers of GGUF files that embed: rebuilt exactly, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.models.draft import Wishes, draft_manifest
from inference.models.gguf_text_tokenizer import read_gguf_text_tokenizer
from inference.models.inspection import inspect_file
from inference.models.manifest import Role
from inference.models.plain_encoder import PlainEncoder
from market.errors import ModelFileInvalid
from tests.inference import bert_kit
from tests.inference.models.model_kit import gguf_bytes
from tests.inference.onnx_kit import tokenizer_json

SPACE = "\u2581"
BERT: dict[str, Any] = {
    "general.architecture": "bert",
    "bert.context_length": 128,
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", f"{SPACE}un", "heard", f"{SPACE}cafe", f"{SPACE}."],
    "tokenizer.ggml.token_type": [3, 3, 3, 3, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.seperator_token_id": 3,
    "tokenizer.ggml.unknown_token_id": 1,
}
WRITER: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 128,
    "llama.pooling_type": 3,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "\u0120"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": True,
}


def drawn(tmp_path: Path, fields: dict[str, Any]) -> PlainEncoder:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(fields))
    return PlainEncoder(read_gguf_text_tokenizer(path), limit=64)


def test_word_pieces_lose_the_spaces_that_llama_cpp_writes(tmp_path):
    encoder = drawn(tmp_path, BERT)
    assert encoder.encode("unheard.").ids == (2, 4, 5, 7, 3)
    assert encoder.encode("UN Café heard").ids == (2, 4, 6, 1, 3)
    assert encoder.encode("un", "cafe").ids == (2, 4, 3, 6, 3)
    assert encoder.encode("un", "cafe").types == (0, 0, 0, 1, 1)
    assert encoder.encode("[SEP]").ids == (2, 1, 1, 1, 3)


def test_words_in_brackets_are_written_in_two_ways(tmp_path):
    more = [*BERT["tokenizer.ggml.tokens"], "[unused1]", f"{SPACE}[unused2]"]
    types = [*BERT["tokenizer.ggml.token_type"], 1, 1]
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes({**BERT, "tokenizer.ggml.tokens": more, "tokenizer.ggml.token_type": types}))
    vocabulary = json.loads(read_gguf_text_tokenizer(path))["model"]["vocab"]
    assert vocabulary["[unused1]"] == 8 and vocabulary["[unused2]"] == 9 and vocabulary["##heard"] == 5


def test_a_model_that_keeps_capitals_must_say_so(tmp_path):
    tokens = [*BERT["tokenizer.ggml.tokens"][:-1], f"{SPACE}Un"]
    cased = {**BERT, "tokenizer.ggml.tokens": tokens}
    with pytest.raises(ModelFileInvalid, match="capital letters") as refused:
        drawn(tmp_path, cased)
    assert "tokenizer.json" in refused.value.next_step
    encoder = drawn(tmp_path, {**cased, "tokenizer.ggml.normalizer.lowercase": False})
    assert encoder.encode("Un un").ids == (2, 7, 4, 3)


def test_a_decoders_tokenizer_gets_the_special_tokens_that_its_file_asks_for(tmp_path):
    assert drawn(tmp_path, WRITER).encode("ab").ids == (0, 4, 1)
    assert drawn(tmp_path, {**WRITER, "tokenizer.ggml.add_eos_token": False}).encode("ab").ids == (0, 4)
    assert drawn(tmp_path, {**WRITER, "tokenizer.ggml.add_bos_token": False}).encode("ab", "b").ids == (4, 1, 3, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", f"{SPACE}a", f"{SPACE}a", "b", "c"]},
        {"tokenizer.ggml.tokens": ["[PAD]"]},
        {"tokenizer.ggml.tokens": 7},
        {"tokenizer.ggml.bos_token_id": 99},
        {"tokenizer.ggml.model": "t5"},
        {"tokenizer.ggml.model": "llama"},
    ],
    ids=["a token twice", "fewer tokens than types", "no list", "a start that is none", "unigram", "sentencepiece"],
)
def test_what_cannot_be_rebuilt_exactly_is_refused(tmp_path, changes):
    with pytest.raises(ModelFileInvalid):
        drawn(tmp_path, {**BERT, **changes})


# ---- into a manifest -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "modality"), [(0, "embedding"), (1, "embedding"), (None, "embedding"), (4, "rerank")]
)
def test_an_encoder_is_added_as_what_it_is_with_its_tokenizer_beside_it(tmp_path, pooling, modality):
    path = bert_kit.write_bert(tmp_path / "Tiny.F32.gguf", bert_kit.bert_weights(), pooling=pooling)
    (tmp_path / "out").mkdir()
    draft = draft_manifest({"Tiny.F32.gguf": path}, tmp_path / "out")
    assert (draft.modality, draft.context, draft.quantisation) == (modality, bert_kit.CONTEXT, "F32")
    [tokenizer] = [file.path for file in draft.files if file.role == Role.TOKENIZER]
    rebuilt, own = (PlainEncoder(said, limit=64) for said in (tokenizer.read_text(), tokenizer_json()))
    for text in ("red green, unheard OF", "[SEP] blue", "octo\u00a0node", "w12 w1 \u4e2d"):
        assert rebuilt.encode(text) == own.encode(text)


def test_its_own_tokenizer_comes_before_one_that_is_rebuilt(tmp_path):
    path = bert_kit.write_bert(tmp_path / "model.gguf", bert_kit.bert_weights())
    own = tmp_path / "tokenizer.json"
    own.write_text(tokenizer_json())
    draft = draft_manifest({"model.gguf": path, "tokenizer.json": own}, tmp_path)
    assert [file.path for file in draft.files if file.role == Role.TOKENIZER] == [own]


def test_a_decoder_is_for_chats_unless_it_says_how_it_pools(tmp_path):
    for pooling, modality in ((None, "text"), (0, "text"), (3, "embedding"), (4, "rerank")):
        assert inspect_file(bert_kit.write_decoder(tmp_path / "d.gguf", pooling=pooling)).modality == modality


def test_a_tokenizer_that_cannot_be_rebuilt_is_told_and_the_model_comes_without(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({**BERT, "tokenizer.ggml.model": "t5"}))
    draft = draft_manifest({"m.gguf": path}, tmp_path, Wishes(modality="rerank"))
    assert "own tokenizer.json" in draft.left_out["tokenizer.json"] and draft.modality == "rerank"
