"""The default model as a folder that vLLM reads: its GGUF file as bfloat16 safetensors, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

from inference.models.gguf_tokenizer import read_gguf_tokenizer

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write_folder(model: Path, folder: Path, *, layers: int | None = None) -> None:
    """`layers`: only so many of the model's, to be quick; what it says is then nonsense."""
    folder.mkdir(parents=True)
    reader = GGUFReader(model)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    count = layers or facts["llama.block_count"]
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name, count)
        if name is not None:
            weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name.endswith("attn_q.weight"):
                weights = _unpermuted(weights, heads)
            if tensor.name.endswith("attn_k.weight"):
                weights = _unpermuted(weights, kv_heads)
            tensors[name] = _bfloat16(weights)
    _write_safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": count,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": float(facts["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(facts["llama.rope.freq_base"]),
        "max_position_embeddings": facts["llama.context_length"],
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = read_gguf_tokenizer(model)
    (folder / "tokenizer.json").write_text(found.tokenizer_json)
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": found.chat_template}
    said |= {"bos_token": found.tokens.bos, "eos_token": found.tokens.eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def _name(name: str, layers: int) -> str | None:
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    if not name.startswith("blk."):
        return None
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight" if int(layer) < layers else None


def _unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns the rows of q and k for its order of the rotary embedding."""
    shape = (heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def _bfloat16(weights: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to even, as uint16."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(data.shape), "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in tensors.values():
            file.write(data.tobytes())
