"""When a card counts, how an engine is cut for it, and what is offered instead of a model that does not fit."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inference" / "models"))

from model_kit import a_manifest

from inference.hardware import Gpu, Hardware
from inference.models.compatibility import machine_of
from inference.models.draft import Wishes
from inference.models.library import import_model, model_of, publish_model
from inference.models.manifest import Format, HardwareNeeds, sign_manifest
from inference.models.store import Store
from inference.shape import ALL_LAYERS
from inference.tuning import Setup
from market.errors import NodeMisconfigured
from market.offer import Tier
from market.signing import Secp256k1Signer
from node.serving import choose_engine, open_serving
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.shaping import Shape, cards_of, shape_in_vllm, shape_of, usable
from node.wiring import open_node

ROOT = Path(__file__).resolve().parents[2]
Q4_0 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
OWNER = Secp256k1Signer(bytes([1] * 32))
GB = 10**9
BARE = Hardware(tier=Tier.CONSUMER, gpus=(), cores=8, ram_bytes=32 * GB, isa="avx2")
CARD = replace(BARE, gpus=(Gpu(name="H200", vram_bytes=141 * GB),))
SETUP = Setup(model="m", workers=4, threads=2, slots=16)


async def able() -> bool:
    return True


async def unable() -> bool:
    return False


async def never_asked() -> bool:
    raise AssertionError("it costs a second")


async def test_a_card_counts_if_the_library_was_built_for_it_and_the_settings_do_not_forbid_it():
    gguf, onnx = a_manifest(), a_manifest(format=Format.ONNX)
    assert await usable(EngineSettings(), gguf, CARD, offload=able) == CARD
    assert (await usable(EngineSettings(), gguf, CARD, offload=unable)).gpus == ()
    assert (await usable(EngineSettings(gpu_layers=0), gguf, CARD, offload=never_asked)).gpus == ()
    assert (await usable(EngineSettings(gpu_layers=0), onnx, CARD, offload=never_asked)).gpus == ()
    assert await usable(EngineSettings(gpu_layers=20), gguf, CARD, offload=never_asked) == CARD
    assert await usable(EngineSettings(), onnx, CARD, offload=never_asked) == CARD, "its library says what it can"
    assert await usable(EngineSettings(), gguf, BARE, offload=never_asked) == BARE
    assert (await cards_of(BARE)).devices == ()


@pytest.mark.model
async def test_settings_that_name_layers_or_workers_are_obeyed():
    async def shaped(settings: EngineSettings, hardware: Hardware, setup: Setup = SETUP) -> Shape:
        return await shape_of(setup, settings, hardware, a_manifest(), weights=Q4_0, ram_bytes=16 * GB)

    on_card = await shaped(EngineSettings(), CARD)
    assert (on_card.setup.workers, on_card.gpu_layers, on_card.vram_bytes) == (1, ALL_LAYERS, 141 * GB)
    some = await shaped(EngineSettings(gpu_layers=7), CARD)
    assert (some.setup.workers, some.gpu_layers) == (1, 7)
    two = await shaped(EngineSettings(workers=4, gpu_layers=7), CARD)
    assert (two.setup, two.gpu_layers) == (SETUP, 7)
    small = replace(CARD, gpus=(Gpu(name="GT 710", vram_bytes=2 * GB),))
    part = await shaped(EngineSettings(), small, replace(SETUP, slots=60))
    assert 0 < part.gpu_layers < 30
    assert part.setup.threads == 8, "the layers that stay have all cores"
    assert await shaped(EngineSettings(workers=4), BARE) == Shape(setup=SETUP)
    crowded = await shaped(EngineSettings(), BARE, replace(SETUP, workers=256))
    assert crowded.setup.workers == 17, "each takes 0.94 GB, as this manifest tells nothing of weights"


def test_what_vllm_has_on_cards_is_not_reckoned_against_the_machines_memory():
    cards, bare = shape_in_vllm(SETUP, replace(CARD, gpus=CARD.gpus * 2)), shape_in_vllm(SETUP, BARE)
    assert (cards.gpu_layers, cards.vram_bytes, cards.in_ram(140 * GB)) == (ALL_LAYERS, 282 * GB, 2 << 30)
    assert bare == Shape(setup=SETUP) and bare.in_ram(140 * GB) == 140 * GB


def test_a_card_makes_room_for_what_memory_does_not_hold():
    large = a_manifest(needs=HardwareNeeds(min_ram_bytes=80 * GB, min_vram_bytes=80 * GB))
    assert choose_engine(large, Settings(), CARD, {}) == "llama_cpp"
    with pytest.raises(NodeMisconfigured, match=r"32\.0 GB of memory and 0\.0 GB on graphics cards"):
        choose_engine(large, Settings(), BARE, {})


def test_a_model_that_does_not_fit_is_refused_with_the_format_and_the_models_that_would():
    needs = HardwareNeeds(min_ram_bytes=40 * GB, min_vram_bytes=40 * GB)
    weights = replace(a_manifest().files[0], size_bytes=38 * GB)
    large = a_manifest(name="Otter-20B", quantisation="F16", files=(weights, *a_manifest().files[1:]), needs=needs)
    with pytest.raises(NodeMisconfigured) as caught:
        choose_engine(large, Settings(), BARE, {"a": a_manifest(name="Mouse"), "b": large})
    assert "As Q8_0 it would fit" in caught.value.next_step
    assert "models quantize Otter-20B --to Q8_0" in caught.value.next_step
    assert "small enough: Mouse Q4_0" in caught.value.next_step


def test_a_model_that_no_engine_reads_is_not_offered_in_fewer_bits():
    """Its size is not what is wrong with it."""
    needs = HardwareNeeds(min_ram_bytes=40 * GB, min_vram_bytes=40 * GB)
    odd = a_manifest(format=Format.SAFETENSORS, modality="speech", quantisation="F16", needs=needs)
    with pytest.raises(NodeMisconfigured) as caught:
        choose_engine(odd, Settings(), BARE, {})
    assert "models show" in caught.value.next_step
    assert machine_of(BARE).vram_bytes == 0


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "models")
    yield opened
    opened.close()


@pytest.mark.model
async def test_layers_for_a_card_that_the_build_does_not_know_are_refused_before_anything_is_loaded(store, tmp_path):
    model = await import_model(store, {"a.gguf": Q4_0}, OWNER, wishes=Wishes(name="Otter"))
    settings = Settings(data_dir=tmp_path, engine=EngineSettings(workers=1, slots=1, context=128, gpu_layers=3))
    with pytest.raises(NodeMisconfigured, match="computes on the CPU alone") as caught:
        async with open_serving(model, await model_of(store, model), store=store, settings=settings):
            pass
    assert "GGML_CUDA" in caught.value.next_step


@pytest.mark.model
async def test_a_start_that_names_no_slots_takes_as_many_as_fit_and_offers_what_it_measured(tmp_path):
    """600 MB hold the weights and half of the sixteen slots that two threads would have."""
    settings = Settings(
        data_dir=tmp_path,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(memory=600_000_000),
    )
    for _ in range(2):  # what it was seen to take at the first start does not forbid the second
        async with open_node(settings, prepared=[Q4_0]) as node:
            (served,) = node.providing.served().values()
            assert 4 <= served.engine.info.slots <= 8
            assert len(node.providing.worker_pids()) == 1
            (offered,) = node.providing.offers()
            assert min(offered.tokens_per_s, offered.first_token_ms) > 0, "measured at start, for its offer"
            assert 50 << 20 < offered.memory_bytes < 900_000_000


@pytest.mark.model
@pytest.mark.processes
async def test_start_refuses_a_model_that_cannot_fit_and_says_what_would(store, tmp_path):
    """The whole program, with a manifest whose model needs more than any machine has."""
    small = await import_model(store, {"a.gguf": Q4_0}, OWNER, wishes=Wishes(name="Mouse"))
    mouse = await model_of(store, small)
    needs = HardwareNeeds(min_ram_bytes=1 << 51, min_vram_bytes=1 << 51)
    whale = replace(mouse, name="Whale", needs=needs, creator=OWNER.address)
    cid = await publish_model(store, sign_manifest(whale, OWNER))
    store.close()
    said = await refused_start(tmp_path, cid)
    assert "Whale 1.0.0 cannot run here" in said
    assert "it needs 2251799.8 GB of memory" in said
    assert "small enough: Mouse Q4_0" in said


async def refused_start(folder: Path, model: str) -> str:
    """What it says, in one line."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("OCTO_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli", "start", "--model", model, "--data-dir", str(folder), "--port", "0",
        "--listen", "/ip4/127.0.0.1/tcp/0", "--json",
        cwd=ROOT, env=own, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode != 0
    return " ".join(said.decode().split())
