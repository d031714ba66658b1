"""Drafts: what a manifest says without anybody having typed it, and which files belong to a model at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.models.draft import Draft, Wishes, draft_manifest
from inference.models.manifest import Format, Role
from inference.models.roles import name_of_model, roles_of
from market.errors import ModelFileInvalid, ModelUntrusted, RequestInvalid
from tests.inference.models.model_kit import (
    CHAT,
    CTRANSLATE2,
    LLAMA,
    PICKLE,
    TENSORRT,
    gguf_bytes,
    onnx_bytes,
    put_files,
    safetensors_bytes,
    torch_zip,
)

MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 1000,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 512,
}


def draft(folder: Path, files: Mapping[str, bytes], **wishes: Any) -> Draft:
    made = folder / "made"
    made.mkdir(parents=True, exist_ok=True)
    return draft_manifest(put_files(folder / "in", files), made, Wishes(**wishes))


def roles(found: Draft) -> dict[str, Role]:
    return {file.name: file.role for file in found.files}


def as_json(thing: Any) -> bytes:
    return json.dumps(thing).encode()


def test_a_gguf_alone_becomes_weights_tokenizer_and_template(tmp_path: Path) -> None:
    found = draft(tmp_path, {"Tiny-Llama.Q4_0.gguf": gguf_bytes(CHAT)})
    assert (found.name, found.version, found.format, found.quantisation) == (
        "Tiny-Llama",
        "1.0.0",
        Format.GGUF,
        "Q4_0",
    )
    assert (found.licence, found.modality, found.context) == ("mit", "text", 4096)
    assert roles(found) == {
        "Tiny-Llama.Q4_0.gguf": Role.WEIGHTS,
        "tokenizer.json": Role.TOKENIZER,
        "chat_template.jinja": Role.CHAT_TEMPLATE,
    }
    assert (found.tokens.bos, found.tokens.end) == ("<|endoftext|>", (0,))
    assert found.needs.min_ram_bytes == 97 * MIB  # 96 for the engine, 256 bytes of weights, 0.5 for 2,048 tokens
    assert {file.path.name for file in found.files if file.path.parent == tmp_path / "made"} == {
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_what_the_publisher_says_goes_before_what_the_files_say(tmp_path: Path) -> None:
    found = draft(
        tmp_path, {"x.gguf": gguf_bytes(LLAMA)}, name="My Model!", version="2.0.0", licence="own", modality="embedding"
    )
    assert (found.name, found.version, found.licence, found.modality) == ("My-Model", "2.0.0", "own", "embedding")


def test_a_tokenizer_that_cannot_be_rebuilt_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found = draft(tmp_path, {"x.gguf": gguf_bytes({**CHAT, "tokenizer.ggml.pre": "llama-bpe"})})
    assert Role.TOKENIZER not in roles(found).values()
    assert "tokenizer.json" in found.left_out["tokenizer.json"]
    own = draft(tmp_path, {"x.gguf": gguf_bytes({**CHAT, "tokenizer.ggml.pre": "?"}), "tokenizer.json": b"{}"})
    assert roles(own)["tokenizer.json"] == Role.TOKENIZER


def test_safetensors_shards_are_described_by_the_files_beside_them(tmp_path: Path) -> None:
    files = {
        "model-00001-of-00002.safetensors": safetensors_bytes(),
        "model-00002-of-00002.safetensors": safetensors_bytes(),
        "model.safetensors.index.json": b"{}",
        "config.json": as_json(CONFIG),
        "generation_config.json": as_json({"eos_token_id": [2, 7]}),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": as_json(
            {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True, "chat_template": "{{ x }}"}
        ),
        "LICENSE": b"do as you like",
        "modeling_evil.py": b"import os",
    }
    found = draft(tmp_path, files, name="Big")
    assert [file.name for file in found.files if file.role == Role.WEIGHTS] == list(files)[:2]
    assert (found.modality, found.context, found.quantisation) == ("text", 1000, "F16")
    assert found.tokens == type(found.tokens)(bos="<s>", eos="</s>", add_bos=True, end=(2, 7))
    assert roles(found)["chat_template.jinja"] == Role.CHAT_TEMPLATE
    assert "modeling_evil.py" in found.left_out
    assert found.needs.min_vram_bytes == 106 * MIB  # 10 layers, 4 heads of 64, twice, f16: 10,240,000 bytes


@pytest.mark.parametrize(
    ("generation", "config", "eos", "end"),
    [
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 3}, "<turn>", (2, 7, 9)),
        ({}, {"eos_token_id": 3}, "<turn>", (3, 9)),
        ({}, {"eos_token_id": [3, True, -1, "4"]}, {"content": "<turn>"}, (3, 9)),
        ({"eos_token_id": 2}, {}, "<none such>", (2,)),
        ({}, {}, "", ()),
    ],
)
def test_an_answer_ends_where_generation_config_or_model_and_tokenizer_say(
    tmp_path: Path, generation: dict, config: dict, eos: object, end: tuple[int, ...]
) -> None:
    files = {
        "model.safetensors": safetensors_bytes(),
        "config.json": as_json({**CONFIG, **config}),
        "generation_config.json": as_json(generation),
        "tokenizer_config.json": as_json({"eos_token": eos}),
        "tokenizer.json": as_json({"added_tokens": [{"content": "", "id": 1}, 5, {"content": "<turn>", "id": 9}]}),
    }
    assert draft(tmp_path, files).tokens.end == end


@pytest.mark.parametrize(
    ("said", "template"),
    [
        ("{{ x }}", "{{ x }}"),
        ([{"name": "tool_use", "template": "{{ t }}"}, {"name": "default", "template": "{{ d }}"}], "{{ d }}"),
        ([{"name": "tool_use", "template": "{{ t }}"}, 3], None),
        ({"default": "{{ x }}"}, None),
    ],
)
def test_of_several_chat_templates_the_default_one_counts(tmp_path: Path, said: object, template: str | None) -> None:
    files = {
        "model.safetensors": safetensors_bytes(),
        "config.json": as_json(CONFIG),
        "tokenizer_config.json": as_json({"chat_template": said}),
    }
    found = {file.role: file.path for file in draft(tmp_path, files).files}
    assert (found[Role.CHAT_TEMPLATE].read_text() if Role.CHAT_TEMPLATE in found else None) == template


def test_a_diffusion_model_keeps_its_folders(tmp_path: Path) -> None:
    files = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": safetensors_bytes(),
        "vae/diffusion_pytorch_model.safetensors": safetensors_bytes(),
        "vae/diffusion_pytorch_model.fp16.safetensors": safetensors_bytes(),
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"a b",
    }
    found = draft(tmp_path, files, name="Painter")
    assert found.modality == "image"
    assert sum(role == Role.WEIGHTS for role in roles(found).values()) == 2
    assert roles(found)["tokenizer/merges.txt"] == Role.VOCABULARY
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in found.left_out


def test_an_onnx_file_brings_the_weights_that_lie_beside_it(tmp_path: Path) -> None:
    files = {"onnx/model.onnx": onnx_bytes(external="odd name"), "onnx/odd name": bytes(16), "onnx/x.exe": b"MZ"}
    found = draft(tmp_path, files, name="Odd")
    assert roles(found) == {"model.onnx": Role.WEIGHTS, "odd name": Role.EXTRA}  # the common folder says nothing


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "absent", "", "a/../../secret"])
def test_an_onnx_file_that_points_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    files = {"model.onnx": onnx_bytes(external=location or "x/.."), "secret": b"s"}
    with pytest.raises(ModelFileInvalid, match="not among the files"):
        draft(tmp_path, files)


def test_not_even_a_place_that_lists_such_a_name_gets_it_in(tmp_path: Path) -> None:
    paths = put_files(tmp_path, {"model.onnx": onnx_bytes(external="../secret"), "secret": b"s"})
    with pytest.raises(ModelFileInvalid, match="not among the files"):
        draft_manifest({"model.onnx": paths["model.onnx"], "../secret": paths["secret"]}, tmp_path)


def test_other_formats_are_drafted_too(tmp_path: Path) -> None:
    plan = draft(tmp_path / "a", {"m.plan": TENSORRT})
    assert (plan.format, plan.needs.accelerators, plan.needs.min_ram_bytes) == (Format.TENSORRT, ("cuda",), 0)
    whisper = draft(tmp_path / "b", {"model.bin": CTRANSLATE2, "vocabulary.txt": b"a", "config.json": b"{}"})
    assert (whisper.format, whisper.modality, whisper.name) == (Format.CTRANSLATE2, "transcription", "model")
    eyes = draft(tmp_path / "c", {"m.gguf": gguf_bytes(CHAT), "mmproj-m.gguf": gguf_bytes(LLAMA)})
    assert (eyes.modality, roles(eyes)["mmproj-m.gguf"]) == ("vision", Role.PROJECTOR)


def test_pickles_are_refused_unless_they_are_asked_for(tmp_path: Path) -> None:
    for number, data in enumerate((PICKLE, torch_zip())):
        with pytest.raises(ModelUntrusted, match="convert it to safetensors"):
            draft(tmp_path / str(number), {"pytorch_model.bin": data})
        asked = draft(tmp_path / str(number), {"pytorch_model.bin": data}, allow_pickled=True)
        assert asked.format == Format.PYTORCH
    safe = draft(tmp_path / "both", {"pytorch_model.bin": PICKLE, "model.safetensors": safetensors_bytes()})
    assert "pytorch_model.bin" in safe.left_out


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["README.md"],
        ["config.json", "tokenizer.json"],
        ["a.Q4_0.gguf", "a.Q8_0.gguf"],
        ["a.onnx", "b.onnx"],
        ["m-00001-of-00003.safetensors", "m-00002-of-00003.safetensors"],
        ["a.plan", "b.bin"],
        ["../../model.gguf"],
        [".hidden.gguf"],
    ],
)
def test_what_is_no_model_or_more_than_one_is_refused(names: list[str]) -> None:
    with pytest.raises(RequestInvalid):
        roles_of(names)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_0.gguf", "SmolLM2-135M-Instruct"),
        ("Qwen2-7B-q4_k_m-00001-of-00002.gguf", "Qwen2-7B"),
        ("a/b/thing-F16.gguf", "thing"),
        ("model.safetensors", ""),
        ("model-00001-of-00002.safetensors", ""),
    ],
)
def test_a_name_loses_folder_shard_and_precision(file: str, name: str) -> None:
    assert name_of_model([file]) == name


@pytest.mark.parametrize(
    "config",
    [
        b"not json",
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_broken_configuration_is_an_error(tmp_path: Path, config: bytes) -> None:
    with pytest.raises(ModelFileInvalid, match=r"config.json is not JSON"):
        draft(tmp_path, {"model.safetensors": safetensors_bytes(), "config.json": config})


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"max_position_embeddings": 1 << 60, "num_hidden_layers": -1, "architectures": 7},
        {"architectures": [], "text_config": "x", "quantization_config": [1]},
        {"max_position_embeddings": True, "hidden_size": "9", "num_attention_heads": 0},
    ],
)
def test_odd_values_in_a_configuration_count_as_not_said(tmp_path: Path, config: Any) -> None:
    found = draft(tmp_path, {"model.safetensors": safetensors_bytes(), "config.json": as_json(config)})
    assert (found.context, found.modality, found.needs.min_ram_bytes) == (0, "unknown", 97 * MIB)
