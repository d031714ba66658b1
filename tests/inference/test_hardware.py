"""Tiers by example; readings that make sense on whatever machine this is."""

import pytest

from inference.hardware import (
    NO_LIMIT,
    available_ram,
    cgroup_limit,
    cgroup_room,
    cpu_flags,
    detect_hardware,
    isa_word,
    tier_for,
)
from market.offer import Tier

MIB = 1 << 20


@pytest.mark.parametrize(
    ("vram_bytes", "tier"),
    [
        (0, Tier.CONSUMER),
        (8188 * MIB, Tier.CONSUMER),  # RTX 4060
        (16376 * MIB, Tier.CONSUMER),  # RTX 4080
        (23034 * MIB, Tier.PROSUMER),  # L4, with error correction
        (24564 * MIB, Tier.PROSUMER),  # RTX 4090
        (49140 * MIB, Tier.PROSUMER),  # RTX 6000 Ada
        (2 * 24564 * MIB, Tier.PROSUMER),
        (81251 * MIB, Tier.ENTERPRISE),  # A100 80 GB
        (81559 * MIB, Tier.ENTERPRISE),  # H100
        (143771 * MIB, Tier.ENTERPRISE),  # H200
    ],
)
def test_the_tier_follows_the_memory_of_the_cards(vram_bytes, tier):
    assert tier_for(vram_bytes) is tier


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"fpu", "avx", "avx2", "avx512f"}, "avx512"),
        ({"avx", "avx2", "avx512"}, "avx512"),
        ({"sse3", "avx", "avx2"}, "avx2"),
        ({"avx"}, "avx"),
        ({"pni"}, "sse3"),
        ({"asimd", "sve"}, "sve"),
        ({"neon"}, "neon"),
        (set(), "generic"),
    ],
)
def test_the_best_instruction_set_names_the_engine_class(flags, word):
    assert isa_word(flags) == word


def test_cpu_flags_are_those_of_the_first_processor_on_x86_and_arm():
    assert cpu_flags("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n") == {"fpu", "avx2"}
    assert cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert cpu_flags("") == frozenset()


def test_this_machine_is_described():
    hardware = detect_hardware()
    assert hardware.cores >= 1
    assert 0 < available_ram() <= hardware.ram_bytes
    assert hardware.tier is tier_for(sum(gpu.vram_bytes for gpu in hardware.gpus))


@pytest.mark.parametrize(
    ("files", "limit", "room"),
    [
        ({}, NO_LIMIT, NO_LIMIT),
        ({"memory.max": "max"}, NO_LIMIT, NO_LIMIT),
        ({"memory.max": "800\n", "memory.current": "300\n", "memory.stat": "anon 9\ninactive_file 100\n"}, 800, 600),
        ({"memory.max": "800", "memory.current": "900"}, 800, 0),
        ({"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "100", "memory.stat": "torn"}, 500, 400),
    ],
)
def test_a_containers_limit_counts_and_its_page_cache_does_not(tmp_path, files, limit, room):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert (cgroup_limit(tmp_path), cgroup_room(tmp_path)) == (limit, room)
