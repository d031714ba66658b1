"""What model files say about themselves, and what hostile ones get: an error, soon, and never a run of their code."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models.formats import recognise, refuse_pickle
from inference.models.gguf_metadata import read_gguf_head
from inference.models.inspection import FileFacts, inspect_file
from inference.models.manifest import Format
from inference.models.onnx_header import read_onnx_header
from inference.models.safetensors_header import read_safetensors_header
from market.errors import ModelFileInvalid, ModelUntrusted
from tests.inference.models.model_kit import (
    CTRANSLATE2,
    LLAMA,
    PICKLE,
    TENSORRT,
    Bomb,
    gguf_bytes,
    onnx_bytes,
    proto,
    safetensors_bytes,
    text,
    torch_zip,
    varint,
)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


Put = Callable[[str, bytes], Path]


def test_a_gguf_tells_its_architecture_quantisation_context_and_what_a_token_costs(put: Put) -> None:
    facts = inspect_file(put("a.gguf", gguf_bytes(LLAMA)))
    assert facts == FileFacts(
        format=Format.GGUF,
        name="Tiny Llama",
        architecture="llama",
        quantisation="Q4_0",
        licence="mit",
        modality="text",
        context=4096,
        parameters=64,
        kv_token_bytes=2 * 2 * (16 + 16) * 2,
        layers=2,
    )
    per_layer = {**LLAMA, "llama.attention.head_count_kv": [1, 3]}
    assert inspect_file(put("b.gguf", gguf_bytes(per_layer))).kv_token_bytes == (1 + 3) * 32 * 2
    assert inspect_file(put("c.gguf", gguf_bytes({**LLAMA, "general.architecture": "bert"}))).modality == "embedding"


def test_the_head_is_what_the_reference_writer_wrote(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "r.gguf", "llama")
    writer.add_context_length(1234)
    writer.add_array("words", ["a", "bc", "ü"])
    writer.add_tensor("t1", np.zeros((3, 32), dtype=np.float32))
    writer.add_tensor("t2", np.zeros((7,), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = read_gguf_head(tmp_path / "r.gguf")
    reader = gguf.GGUFReader(tmp_path / "r.gguf")
    assert head.fields["words"] == ["a", "bc", "ü"]
    assert head.data_at == reader.data_offset
    assert [(t.name, t.shape, t.kind) for t in head.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type)) for t in reader.tensors
    ]
    assert inspect_file(tmp_path / "r.gguf").parameters == 96 + 7


def test_a_safetensors_file_tells_its_types(put: Put) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [8, 2], "data_offsets": [4, 36]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "none": {"dtype": "F32", "shape": [0, 9], "data_offsets": [4, 4]},
    }
    path = put("m.safetensors", safetensors_bytes(header, bytes(36)))
    assert (inspect_file(path).quantisation, inspect_file(path).parameters) == ("BF16", 17)
    assert read_safetensors_header(path).metadata == {"format": "pt"}


def test_an_onnx_file_that_a_real_engine_runs_tells_opset_inputs_and_types(put: Put) -> None:
    import onnxruntime

    data = onnx_bytes(weight=struct.pack("<4f", 1, 2, 3, 4))
    path = put("m.onnx", data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # our own bytes, in a test
    assert [each.name for each in session.get_inputs()] == ["x"]
    header = read_onnx_header(path)
    assert (header.ir_version, dict(header.opsets)) == (8, {"": 13})
    assert (header.inputs, header.outputs) == (("x",), ("y",))
    assert (header.parameters, dict(header.bytes_by_dtype), header.external) == (4, {"F32": 16}, ())
    assert inspect_file(path).quantisation == "F32"
    sized = proto(11, proto(1, "z") + proto(2, proto(1, proto(1, 1) + proto(2, proto(1, proto(1, 640))))))
    assert read_onnx_header(put("z.onnx", onnx_bytes(more=sized))).inputs == ("x", "z")  # a shape is no text
    outside = read_onnx_header(put("e.onnx", onnx_bytes(external="m.onnx_data")))
    assert outside.external == ("m.onnx_data",)
    assert inspect_file(put("v.onnx", onnx_bytes(inputs=("pixel_values",)))).modality == "vision"


def test_every_format_is_told_by_its_bytes(put: Put) -> None:
    for name, data, format in [
        ("a", gguf_bytes(LLAMA), Format.GGUF),
        ("b", safetensors_bytes(), Format.SAFETENSORS),
        ("c", onnx_bytes(), Format.ONNX),
        ("d.plan", TENSORRT, Format.TENSORRT),
        ("e.engine", b"ftrt" + bytes(60), Format.TENSORRT),
        ("model.bin", CTRANSLATE2, Format.CTRANSLATE2),
        ("f.pt", PICKLE, Format.PYTORCH),
        ("g.pth", torch_zip(), Format.PYTORCH),
        ("pytorch_model.bin", torch_zip(), Format.PYTORCH),
    ]:
        assert recognise(put(name, data), name) == format
    assert inspect_file(put("model.bin", CTRANSLATE2)).modality == "transcription"


@pytest.mark.parametrize(
    ("name", "data", "really"),
    [
        ("m.gguf", PICKLE, "pytorch"),
        ("m.gguf", torch_zip(), "pytorch"),
        ("m.safetensors", PICKLE, "pytorch"),
        ("m.safetensors", gguf_bytes(LLAMA), "gguf"),
        ("m.onnx", safetensors_bytes(), "safetensors"),
        ("m.plan", onnx_bytes(), "onnx"),
        ("m.bin", gguf_bytes(LLAMA), "gguf"),
    ],
)
def test_a_name_that_says_another_format_than_the_bytes_is_refused(
    put: Put, name: str, data: bytes, really: str
) -> None:
    with pytest.raises(ModelFileInvalid, match=f"its bytes are {really}"):
        inspect_file(put(name, data))


def test_a_pickle_is_recognised_refused_and_never_run(put: Put, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for name, data in [("a.pt", pickle.dumps(Bomb(proof))), ("b.bin", torch_zip(pickle.dumps(Bomb(proof))))]:
        facts = inspect_file(put(name, data))
        with pytest.raises(ModelUntrusted, match="convert it to safetensors"):
            refuse_pickle(facts.format, name)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Bomb(proof)))  # the bomb is live, or this would prove nothing
    assert proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        b"hello, I am no model at all",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        b"\x89HDF\r\n\x1a\n",
        b"PK\x03\x04 but no archive",
        b"PK\x05\x06" + bytes(18),
        b"GGUF",
        b"\x08",
        b"\x08\x08\x12",
        bytes(100),
        b"\xff" * 100,
    ],
)
def test_what_is_no_model_is_refused(put: Put, data: bytes) -> None:
    with pytest.raises(ModelFileInvalid):
        inspect_file(put("m", data))


TWO = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}, bytes(15)),  # cut off
        ({"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}, bytes(17)),  # something behind it
        ({"w": {"dtype": "F16", "shape": [2, 5], "data_offsets": [0, 16]}}, bytes(16)),
        ({"w": {"dtype": "X99", "shape": [8], "data_offsets": [0, 16]}}, bytes(16)),
        ({"w": {"dtype": "F16", "shape": [-8], "data_offsets": [0, -16]}}, b""),
        ({"w": {"dtype": "F16", "shape": [8], "data_offsets": [16, 0]}}, bytes(16)),
        ({"w": {"dtype": "F16", "shape": [1] * 99, "data_offsets": [0, 2]}}, bytes(2)),
        ({"w": {"dtype": "F16", "shape": [True], "data_offsets": [0, 2]}}, bytes(2)),
        ({"w": {"dtype": "F16", "shape": [1 << 50], "data_offsets": [0, 1 << 51]}}, b""),
        ({"w": TWO, "v": TWO}, bytes(2)),  # overlap
        ({"w": TWO, "v": {**TWO, "data_offsets": [4, 6]}}, bytes(6)),  # a hole
        ({"w": {"dtype": "F16"}}, b""),
        ({"w": 5}, b""),
        ({"w": {**TWO, "dtype": ["F16"]}}, bytes(2)),
        ({"__metadata__": {"a": 1}}, b""),
        ({"__metadata__": []}, b""),
        (b'{"w": %b, "w": %b}' % (2 * (json.dumps(TWO).encode(),)), bytes(2)),
        (b'{"w": ' + b"[" * 200_000, b""),
        (b'{"w": ' + b"9" * 10_000 + b"}", b""),
        (b"{\xff\xfe}", b""),
        (b"{", b""),
        (b'[{"w": 1}]', b""),
    ],
)
def test_a_safetensors_header_against_the_rules_is_refused(put: Put, header: Any, data: bytes) -> None:
    with pytest.raises(ModelFileInvalid):
        read_safetensors_header(put("m.safetensors", safetensors_bytes(header, data)))


def test_a_header_that_claims_more_than_the_file_or_the_limit_is_refused(put: Put) -> None:
    for length in (1 << 63, 1 << 40, 25_000_001, 100):
        with pytest.raises(ModelFileInvalid):
            read_safetensors_header(put("m.safetensors", struct.pack("<Q", length) + b"{}" + bytes(20)))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 1 << 40, 0),  # tensors
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 40),  # pairs
        struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),  # version
        struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),  # big-endian
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 60),  # a key's length
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 60),  # an array's
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1) * 50,  # nested arrays
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<I", 99),  # a type
        struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text("t") + struct.pack("<I", 1 << 30),  # dimensions
        gguf_bytes({**LLAMA, "general.alignment": 0}),
        gguf_bytes(LLAMA, cut=1),
    ],
)
def test_a_gguf_with_impossible_counts_or_a_torn_end_is_refused(put: Put, data: bytes) -> None:
    with pytest.raises(ModelFileInvalid):
        inspect_file(put("m.gguf", data))


def test_tensors_and_their_dimensions_are_counted(put: Put) -> None:
    start, one = struct.pack("<4sI", b"GGUF", 3), text("t") + struct.pack("<IQIQ", 1, 1, 0, 0)
    assert inspect_file(put("a.gguf", start + struct.pack("<QQ", 9, 0) + one * 9 + bytes(64))).parameters == 9
    many = start + struct.pack("<QQ", (1 << 16) + 1, 0) + one * ((1 << 16) + 1) + bytes(64)
    deep = start + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I9QIQ", 9, *(1,) * 9, 0, 0) + bytes(64)
    for data in (many, deep):
        with pytest.raises(ModelFileInvalid):
            inspect_file(put("b.gguf", data))


def test_arrays_have_one_budget_together(put: Put) -> None:
    """4 million empty texts twice are 64 MB of file and would be a gigabyte of objects with a limit for each."""
    many = struct.pack("<IIQ", 9, 0, 1 << 22) + bytes(1 << 22)
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + text("a") + many + text("b") + many
    with pytest.raises(ModelFileInvalid):
        inspect_file(put("m.gguf", data))


@pytest.mark.parametrize(
    "data",
    [
        proto(1, 8) + proto(2, "a producer") + proto(7, b""),  # no operator set
        proto(1, 8) + proto(2, "a producer") + proto(8, proto(2, 13)),  # no graph
        onnx_bytes()[:-3],
        onnx_bytes() + proto(6, "words about it")[:-3],
        onnx_bytes() + proto(99, 1),
        onnx_bytes() + b"\x0b",  # a group
        onnx_bytes(more=proto(5, proto(1, 1 << 62) * 8)),  # a weight of 2^496 elements
        onnx_bytes(more=proto(5, proto(8, b"\xff\xfe"))),
        onnx_bytes(more=proto(5, proto(8, "n" * 5000))),
        proto(1, 8) + varint(7 << 3 | 2) + varint(1 << 62) + b"x",
        proto(1, 8) + b"\x80" * 20,
    ],
)
def test_an_onnx_file_that_is_torn_or_impossible_is_refused(put: Put, data: bytes) -> None:
    with pytest.raises(ModelFileInvalid):
        inspect_file(put("m.onnx", data))


def test_a_graph_of_endless_fields_is_given_up(put: Put) -> None:
    with pytest.raises(ModelFileInvalid, match="over 500000 fields"):
        inspect_file(put("m.onnx", onnx_bytes(more=proto(3, 1) * 700_000)))


def test_an_archive_of_too_many_members_is_not_listed(put: Put) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", PICKLE)
    data = memory.getvalue()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    member, last = data[start:end], bytearray(data[end:])
    copies = (5 << 20) // len(member)  # a sound list of 5 MiB
    last[8:16] = struct.pack("<HHI", copies % 65536, copies % 65536, copies * len(member))
    with pytest.raises(ModelFileInvalid, match="oversized zip archive"):
        inspect_file(put("m.pt", data[:start] + member * copies + bytes(last)))
    few = bytearray(data[end:])
    few[8:16] = struct.pack("<HHI", 9, 9, 9 * len(member))
    assert inspect_file(put("few.pt", data[:start] + member * 9 + bytes(few))).format == Format.PYTORCH


def test_headers_that_claim_much_cost_little_memory(put: Put) -> None:
    archive = bytearray(torch_zip())
    end = archive.rindex(b"PK\x05\x06")
    archive[end + 12 : end + 20] = struct.pack("<II", 1 << 31, 0)  # a list of members of 2 GiB
    deep = json.dumps({"__metadata__": {}}).encode().ljust(1 << 20) + b"["
    for name, data in [("b.pt", bytes(archive)), ("d.safetensors", safetensors_bytes(deep))]:
        path = put(name, data)
        tracemalloc.start()
        with pytest.raises(ModelFileInvalid):
            inspect_file(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 32 << 20, name


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_bent_file_gives_facts_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    sound = data.draw(st.sampled_from([gguf_bytes(LLAMA), safetensors_bytes(), onnx_bytes(), torch_zip()]))
    bent = bytearray(sound)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255)), max_size=4)):
        bent[at] = byte
    path = tmp_path_factory.getbasetemp() / "bent"
    path.write_bytes(bytes(bent)[: data.draw(st.integers(0, len(sound)))] if data.draw(st.booleans()) else bytes(bent))
    try:
        inspect_file(path, "m")
    except ModelFileInvalid as error:
        assert error.message  # any other exception fails the test
