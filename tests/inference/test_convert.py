"""Safetensors in other number formats: what each tensor becomes, byte for byte; what is refused."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from inference.models.safetensors_header import read_safetensors_header
from inference.quantization.convert import SLICE, convert, layout_of
from inference.quantization.rounding import from_bf16, from_e4m3
from market.errors import ModelFileInvalid, RequestInvalid

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "F8_E4M3": "|u1", "U8": "|u1"}


def write(path, tensors, metadata=None):
    """Name -> (dtype, array of the stored type)."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array, dtype=np.dtype(TYPES[dtype])).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    raw_header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw_header)) + raw_header + data)
    return path


def read(path):
    """Name -> (dtype, array of the stored type), and the metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    found = {}
    for name, entry in header.items():
        start, _ = entry["data_offsets"]
        kind = np.dtype(TYPES[entry["dtype"]])
        assert start % kind.itemsize == 0
        array = np.frombuffer(data, kind, math.prod(entry["shape"]), 8 + length + start)
        found[name] = entry["dtype"], array.reshape(entry["shape"])
    return found, metadata


@pytest.fixture
def weights():
    rng = np.random.default_rng(7)
    return {
        "model.embed_tokens.weight": ("F32", rng.standard_normal((16, 8)).astype(np.float32)),
        "model.layers.0.mlp.up_proj.weight": ("F32", (rng.standard_normal((8, 12)) * 0.02).astype(np.float32)),
        "model.layers.0.zero.weight": ("F32", np.zeros((4, 4), np.float32)),
        "model.layers.0.input_layernorm.weight": ("F32", np.ones(8, np.float32)),
        "model.position_ids": ("I64", np.arange(5)),
    }


@pytest.mark.parametrize(("to", "decoded"), [("F16", lambda a: a.astype(np.float32)), ("BF16", from_bf16)])
def test_every_float_is_rounded_and_every_integer_kept(tmp_path, weights, to, decoded):
    source = write(tmp_path / "a.safetensors", weights, {"format": "pt"})
    target = tmp_path / "b.safetensors"
    moved = []
    convert(source, target, to, moved=moved.append)
    found, metadata = read(target)
    assert metadata == {"format": "pt"}
    assert set(found) == set(weights)
    assert found["model.position_ids"][0] == "I64"
    assert found["model.position_ids"][1].tolist() == [0, 1, 2, 3, 4]
    bits = 11 if to == "F16" else 8
    for name, (dtype, before) in weights.items():
        if dtype != "I64":
            assert found[name][0] == to
            assert np.abs(decoded(found[name][1]) - before).max() <= np.abs(before).max() * 2.0**-bits
    assert read_safetensors_header(target).parameters == read_safetensors_header(source).parameters
    assert layout_of(source, to).file_bytes == target.stat().st_size
    assert sum(moved) < target.stat().st_size


def test_fp8_scales_each_matrix_and_leaves_the_rest_in_16_bits(tmp_path, weights):
    source, target = write(tmp_path / "a.safetensors", weights), tmp_path / "b.safetensors"
    convert(source, target, "FP8")
    found, _ = read(target)
    kinds = {name: dtype for name, (dtype, _) in found.items()}
    assert kinds == {
        "model.embed_tokens.weight": "BF16",
        "model.layers.0.mlp.up_proj.weight": "F8_E4M3",
        "model.layers.0.mlp.up_proj.weight_scale": "F32",
        "model.layers.0.zero.weight": "F8_E4M3",
        "model.layers.0.zero.weight_scale": "F32",
        "model.layers.0.input_layernorm.weight": "BF16",
        "model.position_ids": "I64",
    }
    name = "model.layers.0.mlp.up_proj.weight"
    before, codes, scale = weights[name][1], found[name][1], found[f"{name}_scale"][1]
    assert scale.shape == ()
    assert float(scale) == np.float32(np.abs(before).max() / 448)
    # Half a step: 2^-4 of the number itself, or of the smallest normal one.
    bound = np.maximum(np.abs(before), float(scale) * 2.0**-6) * 2.0**-4
    assert (np.abs(from_e4m3(codes) * scale - before) <= bound * 1.0001).all()
    assert not found["model.layers.0.zero.weight"][1].any()
    assert float(found["model.layers.0.zero.weight_scale"][1]) == 1


@pytest.mark.parametrize("at", [0, -1])
def test_a_tensor_larger_than_a_slice_is_whole(tmp_path, at):
    """The largest number, which sets the scale, lies in the first slice or in the last."""
    matrix = np.full((SLICE // 1024 + 3, 1024), 0.5, np.float16)
    matrix[at, at] = 2.0
    source = write(tmp_path / "a.safetensors", {"up.weight": ("F16", matrix)})
    target = tmp_path / "b.safetensors"
    convert(source, target, "FP8")
    found, _ = read(target)
    scale = float(found["up.weight_scale"][1])
    assert scale == np.float32(2 / 448)
    values = from_e4m3(found["up.weight"][1]) * np.float32(scale)
    assert values[at, at] == 2
    assert np.unique(values).tolist() == [0.5, 2.0]
    assert (values == 2).sum() == 1


def test_bf16_and_f64_come_from_their_bits(tmp_path):
    tensors = {
        "a.weight": ("BF16", np.array([[0x3F80, 0xC000]])),
        "b.weight": ("F64", np.array([[1 + 2.0**-8 + 2.0**-40]])),
    }
    source, target = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    convert(source, target, "F16")
    assert read(target)[0]["a.weight"][1].tolist() == [[1.0, -2.0]]
    convert(source, target, "BF16")
    found, _ = read(target)
    assert found["a.weight"][1].tolist() == [[0x3F80, 0xC000]]
    assert from_bf16(found["b.weight"][1].copy()).tolist() == [[1 + 2.0**-7]]


def test_a_number_that_f16_cannot_say_is_named_and_bf16_offered(tmp_path):
    source = write(tmp_path / "a.safetensors", {"w": ("F32", np.array([1e6], np.float32))})
    with pytest.raises(RequestInvalid, match=r"above 65504.*BF16"):
        convert(source, tmp_path / "b.safetensors", "F16")


def test_what_is_not_finite_cannot_be_scaled(tmp_path):
    source = write(tmp_path / "a.safetensors", {"w.weight": ("F32", np.array([[np.nan, 1]], np.float32))})
    with pytest.raises(ModelFileInvalid, match="not finite"):
        convert(source, tmp_path / "b.safetensors", "FP8")


def test_eight_bits_without_scales_are_refused(tmp_path):
    source = write(tmp_path / "a.safetensors", {"w": ("F8_E4M3", np.zeros((2, 2), np.uint8))})
    with pytest.raises(RequestInvalid, match="8-bit"):
        layout_of(source, "BF16")


def test_a_scale_that_is_there_already_is_not_overwritten(tmp_path):
    tensors = {"w.weight": ("F32", np.ones((2, 2))), "w.weight_scale": ("F32", np.ones(1))}
    source = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ModelFileInvalid, match="scales"):
        layout_of(source, "FP8")


def test_a_torn_file_is_refused_before_anything_is_written(tmp_path, weights):
    source = write(tmp_path / "a.safetensors", weights)
    source.write_bytes(source.read_bytes()[:-9])
    with pytest.raises(ModelFileInvalid, match="cut off"):
        convert(source, tmp_path / "b.safetensors", "BF16")
    assert not (tmp_path / "b.safetensors").exists()
