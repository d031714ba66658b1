"""What was measured is found again on the same machine, model and engine, and nowhere else; and what a start makes of
it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inference.hardware import Gpu, Hardware
from inference.measuring import Measured
from inference.speed import Speed
from inference.tuning import Setup
from market.offer import Tier
from node.measurements import (
    FILE,
    Entry,
    engine_version,
    hardware_words,
    key_of,
    known_speed,
    load_entries,
    remembered,
    save_entry,
    setup_for,
)
from node.settings import EngineSettings

GIB = 1 << 30
LAPTOP = Hardware(tier=Tier.CONSUMER, gpus=(), cores=4, ram_bytes=16 * GIB, isa="avx2")
SETUP = Setup(model="m", workers=4, threads=1, slots=8)
MEASURED = Measured(
    tokens_per_s={"1": 90.5, "16": 400.0},
    first_token_ms={"64": 80.0},
    prefill_tokens_per_s={"64": 800.0},
    memory_bytes=10**9,
)


def entry(hardware=LAPTOP, model="m", **changes):
    words = hardware_words(hardware)
    said = {
        "key": key_of(words, model, engine_version()),
        "model": model,
        "hardware": words,
        "engine": f"{engine_version()}/cpu-avx2/q4_0",
        "measured_ms": 1,
        "setup": SETUP,
        "measured": MEASURED,
        "tuned": Setup(model="m", workers=2, threads=2, slots=16),
    }
    return Entry(**{**said, **changes})


def test_what_was_saved_is_found_by_the_same_machine_and_model(tmp_path):
    save_entry(tmp_path, entry())
    save_entry(tmp_path, entry(model="other", measured_ms=2))
    assert remembered(tmp_path, hardware=LAPTOP, model="m") == entry()
    assert remembered(tmp_path, hardware=LAPTOP, model="other").measured_ms == 2
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    save_entry(tmp_path, entry(measured_ms=3))
    assert [each.measured_ms for each in load_entries(tmp_path).values()] == [2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"cores": 8},
        {"ram_bytes": 32 * GIB},
        {"isa": "avx512"},
        {"gpus": (Gpu(name="NVIDIA L4", vram_bytes=23034 << 20),)},
    ],
)
def test_another_machine_finds_nothing(tmp_path, change):
    save_entry(tmp_path, entry())
    assert remembered(tmp_path, hardware=replace(LAPTOP, **change), model="m") is None


def test_some_mib_less_after_an_update_are_the_same_machine(tmp_path):
    save_entry(tmp_path, entry())
    assert remembered(tmp_path, hardware=replace(LAPTOP, ram_bytes=16 * GIB + (9 << 20)), model="m") is not None
    assert key_of("a", "m", "llama.cpp/1") != key_of("a", "m", "llama.cpp/2")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "entries": []}', '{"entries": [{"key": "x"}]}', "[" * 9999]
)
def test_a_torn_file_counts_as_none_and_is_written_anew(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert load_entries(tmp_path) == {}
    save_entry(tmp_path, entry())
    assert remembered(tmp_path, hardware=LAPTOP, model="m") == entry()


def test_a_number_that_is_none_is_refused(tmp_path):
    save_entry(tmp_path, entry())
    book = json.loads((tmp_path / FILE).read_text())
    book["entries"][0]["measured"]["tokens_per_s"]["1"] = float("nan")
    (tmp_path / FILE).write_text(json.dumps(book))
    assert load_entries(tmp_path) == {}


def test_the_oldest_go_first(tmp_path):
    save_entry(tmp_path, entry())
    (only,) = json.loads((tmp_path / FILE).read_text())["entries"]
    many = [only | {"key": f"{number:032x}"} for number in range(256)]
    (tmp_path / FILE).write_text(json.dumps({"version": 1, "entries": many}))
    save_entry(tmp_path, entry())
    keys = list(load_entries(tmp_path))
    assert len(keys) == 256
    assert (keys[0], keys[-1]) == (f"{1:032x}", entry().key)


def test_a_start_takes_what_was_tuned_unless_the_settings_name_any_of_it():
    took = setup_for(EngineSettings(context=512), entry(), model="m", cores=4)
    assert (took.workers, took.threads, took.slots) == (2, 2, 16)
    for named in ({"workers": 1}, {"threads": 1}, {"slots": 8}):
        named_ = EngineSettings(**named)
        assert setup_for(named_, entry(), model="m", cores=4) == setup_for(named_, None, model="m", cores=4)


def test_a_figure_of_another_model_of_the_family_is_not_taken_for_this_one():
    assert setup_for(EngineSettings(), entry(), model="n", cores=4).model == "n"


@pytest.mark.parametrize(
    ("cores", "named", "workers", "threads", "slots"),
    [
        (1, {}, 1, 1, 8),
        (2, {}, 1, 2, 16),
        (3, {}, 1, 2, 16),
        (8, {}, 4, 2, 16),
        (8, {"workers": 8}, 8, 1, 8),
        (2, {"workers": 5}, 5, 1, 8),
        (8, {"threads": 4}, 2, 4, 32),
        (2, {"threads": 4}, 1, 4, 32),
        (2, {"slots": 3}, 1, 2, 3),
    ],
)
def test_nobody_named_or_tuned_anything(cores, named, workers, threads, slots):
    expected = Setup(model="m", workers=workers, threads=threads, slots=slots)
    assert setup_for(EngineSettings(**named), entry(tuned=None), model="m", cores=cores) == expected


def test_a_speed_is_known_for_the_very_setup_it_was_measured_with():
    assert known_speed(SETUP, entry()) == Speed(tokens_per_s=90.5, first_token_ms=80.0)
    assert known_speed(replace(SETUP, workers=8), entry()) is None
    assert known_speed(replace(SETUP, slots=4), entry()) is None
    assert known_speed(SETUP, None) is None
    assert known_speed(SETUP, entry(measured=None)) is None
