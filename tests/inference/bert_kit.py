"""Tiny GGUF models that read: BERT and a decoder with random weights, and what they compute, said again in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.inference.onnx_kit import WORDS, tokenizer_json

WIDTH, HEADS, FORWARD, LAYERS, CONTEXT = 32, 2, 64, 2, 128
EPSILON = 1e-12
POISON = WORDS.index("poison")
Weights = dict[str, np.ndarray]


def bert_weights(*, classes: int = 0, types: int = 1, context: int = CONTEXT, layers: int = LAYERS) -> Weights:
    """Of the word "poison" nothing is a number. With `classes`, a head that makes scores."""
    draw = np.random.default_rng(3)

    def drawn(*shape: int, scale: float = 0.3) -> np.ndarray:
        return (draw.standard_normal(shape) * scale).astype(np.float32)

    weights = {
        "token_embd.weight": drawn(len(WORDS), WIDTH, scale=1),
        "token_types.weight": drawn(types, WIDTH),
        "position_embd.weight": drawn(context, WIDTH),
        "token_embd_norm.weight": 1 + drawn(WIDTH),
        "token_embd_norm.bias": drawn(WIDTH),
    }
    weights["token_embd.weight"][POISON] = np.nan
    for layer in range(layers):
        at = f"blk.{layer}"
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)), ("attn_k", (WIDTH, WIDTH)), ("attn_v", (WIDTH, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)), ("ffn_up", (FORWARD, WIDTH)), ("ffn_down", (WIDTH, FORWARD)),
        ):  # fmt: skip
            weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"] = drawn(*shape), drawn(shape[0])
        for name in ("attn_output_norm", "layer_output_norm"):
            weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"] = 1 + drawn(WIDTH), drawn(WIDTH)
    if classes:
        weights["cls.weight"], weights["cls.bias"] = drawn(WIDTH, WIDTH), drawn(WIDTH)
        weights["cls.output.weight"], weights["cls.output.bias"] = drawn(classes, WIDTH), drawn(classes)
    return weights


def hidden_states(weights: Weights, ids: tuple[int, ...]) -> np.ndarray:
    """[tokens, WIDTH]: BERT with normalisation after each half of a layer."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["token_embd.weight"][list(ids)] + w["token_types.weight"][0] + w["position_embd.weight"][: len(ids)]
    x = norm(x, "token_embd_norm")
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        query, key, value = (
            linear(x, f"{at}.attn_{part}").reshape(len(ids), HEADS, -1).swapaxes(0, 1) for part in "qkv"
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        x = norm(
            linear(mixed.swapaxes(0, 1).reshape(len(ids), WIDTH), f"{at}.attn_output") + x, f"{at}.attn_output_norm"
        )
        wide = linear(x, f"{at}.ffn_up")
        wide = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
        x = norm(linear(wide, f"{at}.ffn_down") + x, f"{at}.layer_output_norm")
    return x


def scores_of(weights: Weights, ids: tuple[int, ...]) -> np.ndarray:
    first = np.tanh(hidden_states(weights, ids)[0] @ weights["cls.weight"].T + weights["cls.bias"])
    return np.asarray(first @ weights["cls.output.weight"].T + weights["cls.output.bias"])


def write_bert(path: Path, weights: Weights, *, pooling: int | None = 1, types: int = 1, labels: int = 0) -> Path:
    """`pooling` as `gguf.PoolingType`; `types` of tokens; `labels` of a reranker."""
    writer = gguf.GGUFWriter(path, "bert")
    if labels > 1:
        writer.add_classifier_output_labels([f"class {at}" for at in range(labels)])
    writer.add_layer_norm_eps(EPSILON)
    writer.add_causal_attention(False)
    return _written(path, writer, weights, pooling=pooling, types=types)


def write_decoder(path: Path, *, pooling: int | None = None, seed: int = 5) -> Path:
    """A model as chats have them, with random weights; with `pooling` one that was made to embed."""
    draw = np.random.default_rng(seed)
    weights: Weights = {"token_embd.weight": draw.standard_normal((len(WORDS), WIDTH)).astype(np.float32)}
    weights["output_norm.weight"] = np.ones(WIDTH, np.float32)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)), ("attn_k", (WIDTH, WIDTH)), ("attn_v", (WIDTH, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)), ("ffn_gate", (FORWARD, WIDTH)), ("ffn_up", (FORWARD, WIDTH)),
            ("ffn_down", (WIDTH, FORWARD)),
        ):  # fmt: skip
            weights[f"{at}.{name}.weight"] = (draw.standard_normal(shape) * 0.3).astype(np.float32)
        weights[f"{at}.attn_norm.weight"] = weights[f"{at}.ffn_norm.weight"] = np.ones(WIDTH, np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    return _written(path, writer, weights, pooling=pooling, types=1)


def model_folder(folder: Path, weights: Weights | None = None, **options: Any) -> Path:
    """model.gguf with BERT, and its tokenizer.json."""
    folder.mkdir(exist_ok=True)
    write_bert(folder / "model.gguf", bert_weights() if weights is None else weights, **options)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return folder


def _written(path: Path, writer: gguf.GGUFWriter, weights: Weights, *, pooling: int | None, types: int) -> Path:
    writer.add_name("Tiny")
    writer.add_file_type(0)
    writer.add_context_length(len(weights.get("position_embd.weight", range(CONTEXT))))
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FORWARD)
    writer.add_block_count(sum(name.endswith("attn_q.weight") for name in weights))
    writer.add_head_count(HEADS)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(types)
    writer.add_token_list([word if word.startswith("[") else f"\u2581{word}" for word in WORDS])
    writer.add_token_types([3 if at < 4 else 1 for at in range(len(WORDS))])
    for name, at in {"bos": 2, "seperator": 3, "unknown": 1, "padding": 0}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", at)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
