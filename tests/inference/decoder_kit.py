"""A llama-like decoder as an ONNX graph, written out here in the layout of the common exporters: with few random
weights, or with those of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.models.gguf_tokenizer import read_gguf_tokenizer
from tests.inference.models.model_kit import proto
from tests.inference.onnx_kit import FLOAT, INT64, model, node, port, work_for

FLOAT16, INT32 = 10, 6
_LOWEST = np.float32(np.finfo(np.float32).min)


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    width: int = 8
    """Of a head."""
    hidden: int = 32
    feed: int = 48
    vocabulary: int = 64
    theta: float = 10_000.0
    epsilon: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Export:
    """How the exporter went about it. `external`: weights in a file of that name beside the graph."""

    cache: int = FLOAT
    positions: bool = True
    external: str = ""
    present: str = "present"
    past: str = "past_key_values"
    sociable: bool = False
    """Rows of one call change one another, as dynamic quantisation makes them."""
    fused: bool = False
    """Attention is onnxruntime's own node, which counts the past by the mask and puts new keys right behind it. It
    wants heads of 16, 32, ... numbers."""
    drifting: bool = False
    """Longer holes give other bits."""
    blind: bool = False
    """Positions are reckoned by the length of the past, and its mask is not looked at."""
    more: str = ""
    """An input besides."""
    said_width: int = 0
    """What the inputs for keys and values say of a head's width, if not the truth."""
    without: tuple[str, ...] = ()
    """Names of inputs and outputs that are left out of the lists."""
    metadata: Mapping[str, str] | None = None
    rounds: int = 0
    """`onnx_kit.work_for` each token."""


class _Graph:
    def __init__(self, export: Export) -> None:
        self.parts: list[bytes] = []
        self.data = bytearray()
        self._export = export
        self._count = 0
        self._known: dict[tuple[Any, ...], str] = {}

    def weight(self, name: str, values: np.ndarray) -> str:
        kind = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64}[values.dtype]
        body = b"".join(proto(1, size) for size in values.shape) + proto(2, kind) + proto(8, name)
        if self._export.external and values.nbytes > 1024:
            place = {"location": self._export.external, "offset": len(self.data), "length": values.nbytes}
            body += b"".join(proto(13, proto(1, key) + proto(2, str(value))) for key, value in place.items())
            body += proto(14, 1)
            self.data += values.tobytes()
        else:
            body += proto(9, values.tobytes())
        self.parts.append(proto(5, body))
        return name

    def ints(self, *values: int) -> str:
        key = ("ints", *values)
        if key not in self._known:
            self._known[key] = self.weight(f"ints{len(self._known)}", np.array(values, np.int64))
        return self._known[key]

    def scalar(self, value: float, kind: type = np.float32) -> str:
        key = ("scalar", kind, float(value))
        if key not in self._known:
            self._known[key] = self.weight(f"scalar{len(self._known)}", np.array(value, kind))
        return self._known[key]

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        self._count += 1
        name = name or f"n{self._count}"
        self.parts.append(node(kind, list(inputs), name, **attributes))
        return name


def random_weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Large enough that the argmax of a step depends on what came before."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * 1.5 / np.sqrt(columns)).astype(np.float32)

    weights = {"embed": matrix(shape.vocabulary, shape.hidden) * 6, "norm": np.ones(shape.hidden, np.float32)}
    for layer in range(shape.layers):
        weights |= {
            f"{layer}.attn_norm": np.ones(shape.hidden, np.float32),
            f"{layer}.ffn_norm": np.ones(shape.hidden, np.float32),
            f"{layer}.attn_q": matrix(shape.heads * shape.width, shape.hidden) * 2,
            f"{layer}.attn_k": matrix(shape.kv_heads * shape.width, shape.hidden) * 2,
            f"{layer}.attn_v": matrix(shape.kv_heads * shape.width, shape.hidden),
            f"{layer}.attn_output": matrix(shape.hidden, shape.heads * shape.width),
            f"{layer}.ffn_gate": matrix(shape.feed, shape.hidden),
            f"{layer}.ffn_up": matrix(shape.feed, shape.hidden),
            f"{layer}.ffn_down": matrix(shape.hidden, shape.feed),
        }
    return weights


def decoder(shape: Shape, weights: Mapping[str, np.ndarray], export: Export = Export()) -> tuple[bytes, bytes]:
    """(the graph, what belongs into the file `export.external`)."""
    g = _Graph(export)
    kv = export.cache
    # shapes
    size = g.op("Shape", "input_ids")
    batch, rows = (g.op("Gather", size, g.ints(at)) for at in (0, 1))
    total = g.op("Gather", g.op("Shape", "attention_mask"), g.ints(1))
    past = g.op("Sub", total, rows)
    # the mask: what comes later, and what attention_mask leaves out
    count = g.op("Range", g.scalar(0, np.int64), g.op("Squeeze", total, g.ints(0)), g.scalar(1, np.int64))
    at = g.op("Slice", count, past, total)
    later = g.op("Greater", g.op("Unsqueeze", count, g.ints(0)), g.op("Unsqueeze", at, g.ints(1)))
    absent = g.op("Equal", g.op("Unsqueeze", "attention_mask", g.ints(1, 2)), g.ints(0))
    barred = later if export.blind else g.op("Or", later, absent)
    mask = g.op("Where", barred, g.scalar(float(_LOWEST)), g.scalar(0.0))
    # rotary embedding, the two halves of a head against one another
    if export.positions:
        position = "position_ids"
    else:
        counted = g.op("Add", g.op("Mul", "attention_mask", g.ints(0)), g.ints(1)) if export.blind else "attention_mask"
        position = g.op("Sub", g.op("CumSum", counted, g.scalar(1, np.int64)), g.ints(1))
        position = g.op("Slice", position, past, total, g.ints(1))
    half = shape.width // 2
    turns = (1.0 / shape.theta ** (np.arange(half, dtype=np.float64) * 2 / shape.width)).astype(np.float32)
    angle = g.op("Mul", g.op("Unsqueeze", g.op("Cast", position, to=FLOAT), g.ints(1, 3)), g.weight("turns", turns))
    angle = g.op("Concat", angle, angle, axis=3)
    cos, sin = g.op("Cos", angle), g.op("Sin", angle)

    def turned(x: str) -> str:
        first = g.op("Slice", x, g.ints(0), g.ints(half), g.ints(3))
        second = g.op("Slice", x, g.ints(half), g.ints(shape.width), g.ints(3))
        other = g.op("Concat", g.op("Neg", second), first, axis=3)
        return g.op("Add", g.op("Mul", x, cos), g.op("Mul", other, sin))

    def normed(x: str, name: str) -> str:
        square = g.op("ReduceMean", g.op("Mul", x, x), axes=[2], keepdims=1)
        root = g.op("Sqrt", g.op("Add", square, g.scalar(shape.epsilon)))
        return g.op("Mul", g.op("Div", x, root), g.weight(name, weights[name]))

    def linear(x: str, name: str) -> str:
        return g.op("MatMul", x, g.weight(name, np.ascontiguousarray(weights[name].T)))

    def in_heads(x: str, heads: int) -> str:
        return g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, heads, shape.width)), perm=[0, 2, 1, 3])

    def repeated(x: str) -> str:
        times = shape.heads // shape.kv_heads
        if times == 1:
            return x
        wide = g.op("Concat", batch, g.ints(shape.kv_heads, times), total, g.ints(shape.width), axis=0)
        every = g.op("Expand", g.op("Unsqueeze", x, g.ints(2)), wide)
        return g.op("Reshape", every, g.ints(0, shape.heads, -1, shape.width))

    def fed(x: str, layer: int) -> str:
        h = normed(x, f"{layer}.ffn_norm")
        gate = linear(h, f"{layer}.ffn_gate")
        gate = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), linear(h, f"{layer}.ffn_up"))
        return g.op("Add", x, linear(gate, f"{layer}.ffn_down"))

    def cached(x: str, layer: int, part: str) -> str:
        before = f"{export.past}.{layer}.{part}"
        if kv != FLOAT:
            x = g.op("Cast", x, to=kv)
        x = g.op("Concat", before, x, name=f"{export.present}.{layer}.{part}", axis=2)
        return g.op("Cast", x, to=FLOAT) if kv != FLOAT else x

    def attended(h: str, layer: int) -> str:
        q, k, v = (linear(h, f"{layer}.attn_{part}") for part in "qkv")
        names = [f"{layer}.{part}" for part in ("key", "value")]
        inputs = [q, k, v, *(f"{export.past}.{name}" for name in names), *counts, *tables]
        outputs = [f"{layer}.mixed", *(f"{export.present}.{name}" for name in names)]
        said = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "do_rotary": 1}
        body = b"".join([*(proto(1, name) for name in inputs), *(proto(2, name) for name in outputs)])
        body += proto(4, "GroupQueryAttention") + proto(7, "com.microsoft")
        body += b"".join(proto(5, proto(1, key) + proto(3, value) + proto(20, 2)) for key, value in said.items())
        g.parts.append(proto(1, body))
        return outputs[0]

    if export.fused:
        held = g.op("ReduceSum", "attention_mask", g.ints(1), keepdims=0)
        counts = [g.op("Cast", g.op("Sub", held, g.ints(1)), to=INT32), g.op("Cast", g.op("Squeeze", total), to=INT32)]
        at_all = np.outer(np.arange(1024), turns).astype(np.float32)
        tables = [g.weight("cosines", np.cos(at_all)), g.weight("sines", np.sin(at_all))]

    x = g.op("Gather", g.weight("embed", weights["embed"]), "input_ids")
    if export.sociable:
        x = g.op("Add", x, g.op("Mul", g.op("ReduceMax", x, axes=[0, 1, 2], keepdims=1), g.scalar(0.01)))
    if export.drifting:
        x = g.op("Add", x, g.op("Mul", g.op("Cast", total, to=FLOAT), g.scalar(1e-6)))
    for layer in range(shape.layers):
        h = normed(x, f"{layer}.attn_norm")
        if export.fused:
            x = g.op("Add", x, linear(attended(h, layer), f"{layer}.attn_output"))
            x = fed(x, layer)
            continue
        q = turned(in_heads(linear(h, f"{layer}.attn_q"), shape.heads))
        k = cached(turned(in_heads(linear(h, f"{layer}.attn_k"), shape.kv_heads)), layer, "key")
        v = cached(in_heads(linear(h, f"{layer}.attn_v"), shape.kv_heads), layer, "value")
        scores = g.op("MatMul", q, g.op("Transpose", repeated(k), perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", scores, g.scalar(shape.width**-0.5)), mask)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=3), repeated(v))
        mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, 0, shape.heads * shape.width))
        x = g.op("Add", x, linear(mixed, f"{layer}.attn_output"))
        x = fed(x, layer)
    head = g.weight("head", np.ascontiguousarray(weights.get("output", weights["embed"]).T))
    made = g.op("MatMul", normed(x, "norm"), head, name="made" if export.rounds else "logits")
    if export.rounds:
        g.parts += work_for("input_ids", rounds=export.rounds)
        g.op("Add", made, "nothing", name="logits")

    cache = ["b", shape.kv_heads, "p", export.said_width or shape.width]
    names = [f"{layer}.{part}" for layer in range(shape.layers) for part in ("key", "value")]
    ports = {
        "input_ids": port(11, "input_ids", INT64, ["b", "s"]),
        "attention_mask": port(11, "attention_mask", INT64, ["b", "t"]),
        **({"position_ids": port(11, "position_ids", INT64, ["b", "s"])} if export.positions else {}),
        **({export.more: port(11, export.more, FLOAT, ["b", "s"])} if export.more else {}),
        **{f"{export.past}.{name}": port(11, f"{export.past}.{name}", kv, cache) for name in names},
        "logits": port(12, "logits", FLOAT, ["b", "s", shape.vocabulary]),
        **{f"{export.present}.{name}": port(12, f"{export.present}.{name}", kv, cache) for name in names},
    }
    listed = [said for name, said in ports.items() if name not in export.without]
    graph = model(*g.parts, *listed, metadata=dict(export.metadata or {}))
    return graph + proto(8, proto(1, "com.microsoft") + proto(2, 1)), bytes(g.data)


def gguf_decoder(path: Path) -> tuple[Shape, dict[str, np.ndarray]]:
    """A llama model of a GGUF file. llama.cpp keeps the rows of a head's queries and keys in another order."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)

    def said(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads, hidden = said("attention.head_count"), said("attention.head_count_kv"), said("embedding_length")
    weights = {}
    for item in reader.tensors:
        values = np.ascontiguousarray(dequantize(item.data, item.tensor_type), np.float32)
        name = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "output"}.get(item.name)
        name = name or item.name.removeprefix("blk.").removesuffix(".weight")
        if name.endswith(("attn_q", "attn_k")):
            many = heads if name.endswith("q") else kv_heads
            values = values.reshape(many, -1, 2, hidden).swapaxes(1, 2).reshape(values.shape)
        weights[name] = values
    shape = Shape(
        layers=said("block_count"),
        heads=heads,
        kv_heads=kv_heads,
        width=hidden // heads,
        hidden=hidden,
        feed=said("feed_forward_length"),
        vocabulary=len(weights["embed"]),
        theta=float(said("rope.freq_base")),
        epsilon=float(said("attention.layer_norm_rms_epsilon")),
    )
    return shape, weights


def config_json(shape: Shape, **changes: Any) -> str:
    """As the transformers library writes it."""
    said = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 512,
    }
    return json.dumps(said | changes)


def write_gguf_export(folder: Path, source: Path, export: Export = Export(external="model.onnx_data")) -> Path:
    """The folder that an exporter would make of the model in the GGUF file `source`: 540 MB for the default model."""
    shape, weights = gguf_decoder(source)
    graph, data = decoder(shape, weights, export)
    inside = read_gguf_tokenizer(source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(graph)
    if export.external:
        (folder / export.external).write_bytes(data)
    (folder / "config.json").write_text(config_json(shape, max_position_embeddings=inside.context))
    (folder / "tokenizer.json").write_text(inside.tokenizer_json)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": inside.chat_template, "bos_token": inside.tokens.bos, "eos_token": inside.tokens.eos}
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(inside.tokens.end)}))
    return folder
