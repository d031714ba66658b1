"""Small ONNX graphs and a small tokenizer, written out here: what they compute can be said in a line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.inference.models.model_kit import proto

FLOAT, INT64, BOOL = 1, 7, 9
ENDLESS = "w299"
WIDTH = 8
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "red",
    "green",
    "blue",
    "poison",
    "octo",
    "node",
    *"abcdefghij",
    *(f"w{at}" for at in range(300)),
)


def tokenizer_json(**changes: object) -> str:
    """WordPiece over WORDS, with [CLS] and [SEP] around a text or two."""
    special = [
        {"id": at, "content": WORDS[at], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for at in range(4)
    ]  # fmt: skip

    def around(*names: str) -> list[dict[str, object]]:
        return [
            {"Sequence" if len(name) == 1 else "SpecialToken": {"id": name, "type_id": int(at > 2)}}
            for at, name in enumerate(names)
        ]

    tree = {
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": around("[CLS]", "A", "[SEP]"),
            "pair": around("[CLS]", "A", "[SEP]", "B", "[SEP]"),
            "special_tokens": {
                name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {word: at for at, word in enumerate(WORDS)}},
    }  # fmt: skip
    return json.dumps(tree | changes)


# ---- graphs ----------------------------------------------------------------------------------------


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = INT64 if values.dtype == np.int64 else FLOAT
    body = b"".join(proto(1, size) for size in values.shape) + proto(2, kind) + proto(8, name)
    return proto(5, body + proto(9, values.tobytes()))


def node(kind: str, inputs: list[str], output: str, **attributes: int | float | list[int] | bytes) -> bytes:
    """An attribute in bytes is a graph."""
    body = b"".join(proto(1, name) for name in inputs) + proto(2, output) + proto(4, kind)
    for name, value in attributes.items():
        if isinstance(value, float):
            said = b"\x15" + struct.pack("<f", value) + proto(20, 1)
        elif isinstance(value, int):
            said = proto(3, value) + proto(20, 2)
        elif isinstance(value, bytes):
            said = proto(6, value) + proto(20, 5)
        else:
            said = b"".join(proto(8, one) for one in value) + proto(20, 7)
        body += proto(5, proto(1, name) + said)
    return proto(1, body)


def port(field: int, name: str, kind: int, shape: list[int | str]) -> bytes:
    dims = b"".join(proto(1, proto(1, size) if isinstance(size, int) else proto(2, size)) for size in shape)
    return proto(field, proto(1, name) + proto(2, proto(1, proto(1, kind) + proto(2, dims))))


def model(*parts: bytes, metadata: dict[str, str] | None = None) -> bytes:
    graph = proto(2, "g") + b"".join(parts)
    said = b"".join(proto(14, proto(1, key) + proto(2, value)) for key, value in (metadata or {}).items())
    return proto(1, 8) + proto(7, graph) + proto(8, proto(1, "") + proto(2, 13)) + said


def table() -> np.ndarray:
    """A vector for each word; that of "poison" is no number."""
    values = np.random.default_rng(7).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
    values[WORDS.index("poison")] = np.nan
    return values


def _text_ports(output: str, shape: list[int | str]) -> list[bytes]:
    return [
        *(port(11, name, INT64, ["b", "t"]) for name in ("input_ids", "attention_mask", "token_type_ids")),
        port(12, output, FLOAT, shape),
    ]


def embedder() -> bytes:
    """Each token's vector: pooling them is left to the engine."""
    return model(
        tensor("table", table()),
        node("Gather", ["table", "input_ids"], "last_hidden_state"),
        *_text_ports("last_hidden_state", ["b", "t", WIDTH]),
    )


def work_for(ids: str, *, rounds: int) -> list[bytes]:
    """The scalar `nothing`, which is 0, after `rounds` products of matrices for each token; after any number of them
    if the word ENDLESS is among the tokens."""
    body = (
        proto(2, "round"),
        node("Identity", ["go_on"], "goes_on"),
        node("MatMul", ["m", "one"], "m_next"),
        port(11, "at", INT64, []),
        port(11, "go_on", BOOL, []),
        port(11, "m", FLOAT, ["i", "j"]),
        port(12, "goes_on", BOOL, []),
        port(12, "m_next", FLOAT, ["i", "j"]),
    )
    return [
        tensor("one", np.eye(256, dtype=np.float32)),
        tensor("rounds", np.array(rounds, np.int64)),
        tensor("for_ever", np.array(1 << 60, np.int64)),
        tensor("endless", np.array(WORDS.index(ENDLESS), np.int64)),
        tensor("none", np.array(0, np.float32)),
        node("Size", [ids], "tokens"),
        node("Mul", ["tokens", "rounds"], "enough"),
        node("Equal", [ids, "endless"], "hits"),
        node("Cast", ["hits"], "hits_f", to=FLOAT),
        node("ReduceMax", ["hits_f"], "hit_f", keepdims=0),
        node("Cast", ["hit_f"], "hit", to=BOOL),
        node("Where", ["hit", "for_ever", "enough"], "trips"),
        node("Loop", ["trips", "", "one"], "m_last", body=b"".join(body)),
        node("ReduceMean", ["m_last"], "m_mean", keepdims=0),
        node("Mul", ["m_mean", "none"], "nothing"),
    ]


def slow_embedder(rounds: int) -> bytes:
    """`embedder`, with `work_for` each token."""
    return model(
        tensor("table", table()),
        *work_for("input_ids", rounds=rounds),
        node("Gather", ["table", "input_ids"], "h"),
        node("Add", ["h", "nothing"], "last_hidden_state"),
        *_text_ports("last_hidden_state", ["b", "t", WIDTH]),
    )


def pooling_embedder() -> bytes:
    """The mean of all tokens' vectors, padding included."""
    return model(
        tensor("table", table()),
        node("Gather", ["table", "input_ids"], "h"),
        node("ReduceMean", ["h"], "sentence_embedding", axes=[1], keepdims=0),
        *_text_ports("sentence_embedding", ["b", WIDTH]),
    )


def sociable_embedder() -> bytes:
    """A text's vectors depend on who else is in the batch, as with dynamic quantisation."""
    return model(
        tensor("table", table()),
        node("Gather", ["table", "input_ids"], "h"),
        node("ReduceMean", ["h"], "m", axes=[0, 1, 2], keepdims=1),
        node("Add", ["h", "m"], "last_hidden_state"),
        *_text_ports("last_hidden_state", ["b", "t", WIDTH]),
    )


def reranker() -> bytes:
    """The logit is the share of tokens that belong to the document, times 10."""
    return model(
        tensor("ten", np.array(10, np.float32)),
        node("Cast", ["token_type_ids"], "f", to=FLOAT),
        node("ReduceMean", ["f"], "m", axes=[1], keepdims=1),
        node("Mul", ["m", "ten"], "logits"),
        *_text_ports("logits", ["b", 1]),
    )


def _means() -> list[bytes]:
    return [node("ReduceMean", ["x"], "means", axes=[2, 3], keepdims=0)]


def colour_classifier() -> bytes:
    """How red, green and blue the image is."""
    return model(
        *_means(),
        node("Identity", ["means"], "logits"),
        port(11, "x", FLOAT, [1, 3, 8, 8]),
        port(12, "logits", FLOAT, [1, 3]),
    )


def colour_detector() -> bytes:
    """One box in the left upper quarter (and the same again, a little shifted), of the colours that are there."""
    box = np.array([[[8, 9], [8, 8], [16, 16], [16, 16]]], np.float32)
    return model(
        tensor("box", box),
        tensor("last", np.array([2], np.int64)),
        *_means(),
        node("Unsqueeze", ["means", "last"], "score"),
        node("Concat", ["score", "score"], "scores", axis=2),
        node("Concat", ["box", "scores"], "output0", axis=1),
        port(11, "x", FLOAT, [1, 3, 32, 32]),
        port(12, "output0", FLOAT, [1, 7, 2]),
        metadata={"names": "{0: 'red', 1: 'green', 2: 'blue'}"},
    )


def ink_finder() -> bytes:
    """How dark each pixel is, 0 to 1."""
    return model(
        tensor("half", np.array(0.5, np.float32)),
        tensor("minus", np.array(-0.5, np.float32)),
        node("ReduceMean", ["x"], "m", axes=[1], keepdims=1),
        node("Mul", ["m", "minus"], "d"),
        node("Add", ["d", "half"], "map"),
        port(11, "x", FLOAT, [1, 3, "h", "w"]),
        port(12, "map", FLOAT, [1, 1, "h", "w"]),
    )


def ink_reader() -> bytes:
    """Reads "I" for a dark stroke and nothing for paper."""
    return model(
        tensor("half", np.array(0.5, np.float32)),
        tensor("minus", np.array(-0.5, np.float32)),
        tensor("one", np.array(1, np.float32)),
        tensor("zero", np.array(0, np.float32)),
        tensor("last", np.array([2], np.int64)),
        node("ReduceMean", ["x"], "m", axes=[1, 2], keepdims=0),
        node("Mul", ["m", "minus"], "d"),
        node("Add", ["d", "half"], "ink"),
        node("Sub", ["one", "ink"], "paper"),
        node("Mul", ["ink", "zero"], "space"),
        *(node("Unsqueeze", [name, "last"], f"{name}3") for name in ("paper", "ink", "space")),
        node("Concat", ["paper3", "ink3", "space3"], "y", axis=2),
        port(11, "x", FLOAT, [1, 3, 48, "w"]),
        port(12, "y", FLOAT, [1, "w", 3]),
        metadata={"character": "I\n"},
    )


def write_model(folder: Path, **files: bytes | str) -> Path:
    """`model_onnx=…` becomes model.onnx."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


# ---- images ----------------------------------------------------------------------------------------


def png(width: int, height: int, pixels: np.ndarray | None = None, *, depth: int = 8) -> bytes:
    """[height, width, 3] bytes as a PNG; without pixels a black one, of which a giant has no rows."""
    if pixels is None:
        rows = bytes(height * (width * 3 + 1)) if width * height < 1 << 20 else b""
    else:
        rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body
