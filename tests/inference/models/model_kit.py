"""Small model files of every format, sound ones and the parts to make bad ones of."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.models.cid import DAG_CBOR, RAW, cid_of_block
from inference.models.manifest import Format, HardwareNeeds, Manifest, ModelFile, Role, SpecialTokens
from market.signing import Secp256k1Signer

CREATOR = Secp256k1Signer(bytes([1] * 32))
STRANGER = Secp256k1Signer(bytes([2] * 32))
TENSORRT = b"ptrt" + bytes(60)
CTRANSLATE2 = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + bytes(100)
PICKLE = pickle.dumps({"weight": [1.0, 2.0]}, protocol=2)


def a_file(role: Role = Role.WEIGHTS, **changes: Any) -> ModelFile:
    name = changes.pop("name", f"{role}.bin")
    cid = changes.pop("cid", str(cid_of_block(RAW, name.encode())))
    return ModelFile(role=role, name=name, cid=cid, size_bytes=changes.pop("size_bytes", 1000), **changes)


def a_cid(seed: str = "") -> str:
    """Of a manifest that nobody has."""
    return str(cid_of_block(DAG_CBOR, seed.encode()))


def a_manifest(**changes: Any) -> Manifest:
    said: dict[str, Any] = {
        "name": "Tiny-1.5B",
        "version": "1.2.3",
        "files": (a_file(), a_file(Role.TOKENIZER), a_file(Role.CHAT_TEMPLATE)),
        "format": Format.GGUF,
        "quantisation": "Q4_0",
        "licence": "Apache-2.0",
        "modality": "text",
        "context": 2048,
        "source": "pypi:x==1#y",
        "needs": HardwareNeeds(min_ram_bytes=10**9),
        "tokens": SpecialTokens(bos="<s>", eos="</s>", end=(2,)),
        "creator": CREATOR.address,
    }
    return Manifest(**{**said, **changes})


# ---- GGUF --------------------------------------------------------------------------------------------


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words.encode())) + words.encode()


def gguf_value(item: Any) -> bytes:
    """Texts, bools, numbers (u32 or f32) and lists of one of them."""
    if isinstance(item, list):
        inner = [gguf_value(each) for each in item]
        kind = inner[0][:4] if inner else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(inner)) + b"".join(each[4:] for each in inner)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    return struct.pack("<If", 6, item) if isinstance(item, float) else struct.pack("<II", 4, item)


def gguf_bytes(fields: Mapping[str, Any], *, elements: int = 64, cut: int = 0) -> bytes:
    """One F32 tensor of so many elements; `cut` bytes are missing at its end."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(fields))
    head += b"".join(text(key) + gguf_value(item) for key, item in fields.items())
    head += text("w") + struct.pack("<IQIQ", 1, elements, 0, 0)
    data = bytes(elements * 4)
    return head + bytes(-len(head) % 32) + data[: len(data) - cut]


LLAMA: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny Llama",
    "general.license": "mit",
    "general.file_type": 2,
    "llama.context_length": 4096,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
CHAT: Mapping[str, Any] = {
    **LLAMA,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|endoftext|>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
}


# ---- safetensors ---------------------------------------------------------------------------------------


def safetensors_bytes(header: Any = None, data: bytes = bytes(16)) -> bytes:
    if header is None:
        header = {"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


# ---- ONNX ----------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def proto(field: int, item: int | bytes | str) -> bytes:
    if isinstance(item, int):
        return varint(field << 3) + varint(item)
    raw = item.encode() if isinstance(item, str) else item
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def _onnx_value(name: str) -> bytes:
    shape = proto(1, proto(1, 4))
    return proto(1, name) + proto(2, proto(1, proto(1, 1) + proto(2, shape)))


def onnx_bytes(
    *, inputs: Sequence[str] = ("x",), external: str = "", weight: bytes = bytes(16), more: bytes = b""
) -> bytes:
    """`y = x + w`, with `w` four floats of its own, or in a file beside it."""
    tensor = proto(1, 4) + proto(2, 1) + proto(8, "w")
    if external:
        tensor += proto(13, proto(1, "location") + proto(2, external)) + proto(14, 1)
    else:
        tensor += proto(9, weight)
    node = proto(1, inputs[0]) + proto(1, "w") + proto(2, "y") + proto(4, "Add")
    graph = proto(1, node) + proto(2, "g") + proto(5, tensor)
    graph += b"".join(proto(11, _onnx_value(name)) for name in inputs) + proto(12, _onnx_value("y"))
    return proto(1, 8) + proto(2, "octo") + proto(7, graph + more) + proto(8, proto(1, "") + proto(2, 13))


# ---- PyTorch -------------------------------------------------------------------------------------------


class Bomb:
    """What unpickling must never reach: it would write the file it names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self._path, "ran")


def torch_zip(pickled: bytes = PICKLE) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(64))
    return memory.getvalue()


def put_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    """Written below `folder`; name -> path."""
    paths = {}
    for name, data in files.items():
        paths[name] = folder / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(data)
    return paths
