"""What is remembered of a model, and what is expected of one that nobody loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inference.hardware import Hardware
from inference.models.compatibility import EngineKind
from inference.models.manifest import Format, HardwareNeeds, Manifest, ModelFile, Role
from inference.tuning import Setup
from market.offer import Tier
from market.work import Work
from node.figures import FILE, Figures, FiguresBook, expected_bytes, figures_key, size_words, slots_that_fit
from node.settings import EngineSettings, Settings, VllmSettings

MIB = 1 << 20
FIGURES = Figures(
    key="0" * 32, engine="e/1", context=512, slots=2, features=("grammar",), isolation="landlock", leaves_host=False,
    works=(Work.CHAT,), tokens_per_s=7, size_bytes=9,
)  # fmt: skip
HARDWARE = Hardware(tier=Tier.CONSUMER, gpus=(), cores=2, ram_bytes=8 << 30, isa="avx2")
SETUP = Setup(model="bafy", workers=2, threads=1, slots=4)
CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def manifest(**changes) -> Manifest:
    file = ModelFile(role=Role.WEIGHTS, name="m.gguf", cid=CID, size_bytes=100 * MIB)
    base = Manifest(
        name="m", version="1.0.0", files=(file,), format=Format.GGUF, quantisation="Q4_0", licence="mit",
        modality="text", context=4096, creator=bytes(20),
    )  # fmt: skip
    return replace(base, **changes)


async def test_figures_outlive_the_node(tmp_path) -> None:
    await FiguresBook(tmp_path).keep(FIGURES)
    assert FiguresBook(tmp_path).get(FIGURES.key) == FIGURES
    assert FIGURES.info().features == {"grammar"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "entries": []}', "[" * 100_000])
async def test_a_file_that_makes_no_sense_counts_as_none_and_is_written_anew(tmp_path, text) -> None:
    (tmp_path / FILE).write_text(text)
    book = FiguresBook(tmp_path)
    assert book.get(FIGURES.key) is None
    await book.keep(FIGURES)
    assert len(json.loads((tmp_path / FILE).read_text())["entries"]) == 1


async def test_of_too_many_the_oldest_go(tmp_path) -> None:
    book = FiguresBook(tmp_path)
    for number in range(3):
        await book.keep(replace(FIGURES, key=f"{number:032x}"))
    await book.keep(replace(FIGURES, key=f"{0:032x}", size_bytes=1))
    keys = [entry["key"][-1] for entry in json.loads((tmp_path / FILE).read_text())["entries"]]
    assert keys == ["1", "2", "0"]


@pytest.mark.parametrize(
    "other",
    [
        (replace(HARDWARE, ram_bytes=16 << 30), SETUP, Settings()),
        (HARDWARE, replace(SETUP, slots=5), Settings()),
        (HARDWARE, replace(SETUP, model="bafz"), Settings()),
        (HARDWARE, SETUP, Settings(engine=EngineSettings(context=4096))),
    ],
)
def test_another_machine_model_or_setting_finds_nothing(other) -> None:
    assert figures_key(*other) != figures_key(HARDWARE, SETUP, Settings())


def test_each_worker_is_expected_to_hold_weights_buffers_and_all_slots() -> None:
    needs = HardwareNeeds(min_ram_bytes=(100 + 96 + 40) * MIB)  # 40 MiB are one slot of 2,048 tokens
    settings = Settings(engine=EngineSettings(context=1024))
    told = expected_bytes(manifest(needs=needs), EngineKind.LLAMA_CPP, SETUP, settings)
    assert told == 2 * (100 + 96 + 40 + 4 * 20) * MIB


def test_over_ray_only_what_surely_lies_here_is_expected() -> None:
    model = manifest(format=Format.SAFETENSORS, needs=HardwareNeeds(min_ram_bytes=900_000 * MIB))
    alone, spread = VllmSettings(memory=8 << 30), VllmSettings(memory=8 << 30, ray="auto")
    assert expected_bytes(model, EngineKind.VLLM, SETUP, Settings(vllm=alone)) == 908_192 * MIB
    assert expected_bytes(model, EngineKind.VLLM, SETUP, Settings(vllm=spread)) == 2048 * MIB
    assert expected_bytes(manifest(), EngineKind.VLLM, SETUP, Settings(vllm=VllmSettings(ray="auto"))) == 1124 * MIB


def test_the_slots_that_would_fit_are_told() -> None:
    needs = HardwareNeeds(min_ram_bytes=(100 + 96 + 40) * MIB)
    settings = Settings(engine=EngineSettings(context=2048))
    for room, slots in ((236 + 3 * 40, 3), (236 + 40, 1), (236, 0), (10_000, 4)):
        assert slots_that_fit(manifest(needs=needs), SETUP, settings, room * MIB) == slots


def test_sizes_are_told_in_words() -> None:
    assert (size_words(49_000_000), size_words(2_460_000_000)) == ("49 MB", "2.5 GB")
