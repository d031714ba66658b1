"""all-MiniLM-L6-v2 as GGUF in `.cache/models`: the same weights as `bench.minilm`'s ONNX, for llama.cpp.

Written with the gguf package, as llama.cpp's own converter names and shapes things, without PyTorch.
Source: llama.cpp, conversion/bert.py (keys, the phantom space, tensors that are left out).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from bench.minilm import FOLDER, minilm_folder, minilm_safetensors, read_safetensors

FORMATS: Final = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_CONTROL, _NORMAL = 3, 1
_IDS: Final = {"bos": "[CLS]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]", "mask": "[MASK]"}


def minilm_gguf_folder(format: str = "F16") -> Path:
    """A folder with `model.gguf` and the model's own `tokenizer.json`, made if it is not there."""
    folder = FOLDER.with_name(f"{FOLDER.name}-{format}")
    if not (folder / "model.gguf").is_file():
        source = minilm_folder()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        part = folder / "model.gguf.part"
        write_bert(part, read_safetensors(minilm_safetensors()), source, format)
        part.replace(folder / "model.gguf")
    return folder


def write_bert(path: Path, weights: dict[str, np.ndarray], source: Path, format: str) -> None:
    """`source` has config.json and tokenizer.json. Matrices are of `format`, all else stays F32."""
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(FOLDER.name)
    writer.add_license("apache-2.0")
    writer.add_file_type(FORMATS[format])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, json.loads((source / "tokenizer.json").read_bytes()), config["type_vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, values in weights.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue  # the pooler is of BERT's own training; sentences are pooled by the mean
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise ValueError(f"llama.cpp has no name for {name}.")
        is_matrix = values.ndim == 2 and "position" not in name and "token_type" not in name
        if is_matrix and format == "F16":
            writer.add_tensor(called, values.astype(np.float16))
        elif is_matrix and format == "Q8_0":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(called, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(called, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], types: int) -> None:
    special = {item["content"] for item in tokenizer["added_tokens"]}
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])

    def phantom(piece: str) -> str:
        if piece in special:
            return piece
        return piece[2:] if piece.startswith("##") else "\u2581" + piece

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([phantom(piece) for piece in pieces])
    writer.add_token_types([_CONTROL if piece in special else _NORMAL for piece in pieces])
    writer.add_token_type_count(types)
    for name, piece in _IDS.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", vocabulary[piece])
