"""What NVIDIA's library answers, and which cards we make of it. Answers have the shape and sizes that nvidia-smi and
NVIDIA's MIG user guide show of these machines."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from inference.hardware import Gpu, read_nvml, tier_for
from market.offer import Tier

MIB = 1 << 20
Failure = pynvml.NVMLError


def error(code):
    """The library's own error: it makes a class of each code."""
    return pynvml.NVMLError(code)


class Answers:
    """An NVML that says what was written down: cards as (name, MiB), with slices by place in MIG mode."""

    def __init__(self, *cards, init=None, count=None):
        self.cards = cards
        self.shut_down = 0
        self._init = init
        self._count = count

    def nvmlInit(self):
        if self._init is not None:
            raise self._init

    def nvmlShutdown(self):
        self.shut_down += 1

    def nvmlDeviceGetCount(self):
        if isinstance(self._count, Exception):
            raise self._count
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, at):
        if isinstance(self.cards[at], Exception):
            raise self.cards[at]
        return self.cards[at]

    def nvmlDeviceGetName(self, card):
        return card["name"]

    def nvmlDeviceGetMemoryInfo(self, card):
        if isinstance(card["mib"], Exception):
            raise card["mib"]
        return SimpleNamespace(total=card["mib"] * MIB)

    def nvmlDeviceGetMigMode(self, card):
        if "mig" not in card:
            raise error(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card["mig"]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return len(card["slices"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, at):
        if card["slices"][at] is None:
            raise error(pynvml.NVML_ERROR_NOT_FOUND)
        return {"name": card["name"] + " MIG", "mib": card["slices"][at]}


def card(name, mib, **more):
    return {"name": name, "mib": mib, **more}


def seen(*cards, **more):
    nvml = Answers(*cards, **more)
    found = read_nvml(nvml, Failure)
    assert nvml.shut_down == (0 if more.get("init") else 1)
    return found


RTX_4090 = card("NVIDIA GeForce RTX 4090", 24564)
H100 = card("NVIDIA H100 80GB HBM3", 81559, mig=(0, 0))
SLICED = card("NVIDIA A100-SXM4-80GB", 81920, mig=(1, 1), slices=[40192, 19968, None, 9728, None, None, None])


def test_a_card_that_has_no_mig_is_a_card():
    assert seen(RTX_4090) == (Gpu(name="NVIDIA GeForce RTX 4090", vram_bytes=24564 * MIB),)


def test_several_cards_count_together():
    found = seen(RTX_4090, RTX_4090, H100)
    assert [gpu.name for gpu in found] == [RTX_4090["name"], RTX_4090["name"], H100["name"]]
    assert tier_for(sum(gpu.vram_bytes for gpu in seen(*[RTX_4090] * 4))) is Tier.ENTERPRISE


def test_of_a_sliced_card_the_largest_slice_counts_and_not_the_card():
    (largest,) = seen(SLICED)
    assert largest == Gpu(name="NVIDIA A100-SXM4-80GB MIG", vram_bytes=40192 * MIB)
    assert tier_for(largest.vram_bytes) is Tier.PROSUMER
    assert seen(SLICED, SLICED) == (largest,)


def test_slices_beside_a_whole_card_do_not_count():
    assert [gpu.name for gpu in seen(SLICED, H100)] == [H100["name"]]


def test_mig_that_is_to_come_after_a_reset_is_not_there_yet():
    pending = card("NVIDIA H100 80GB HBM3", 81559, mig=(0, 1))
    assert [gpu.vram_bytes for gpu in seen(pending)] == [81559 * MIB]


def test_a_sliced_card_without_slices_is_nothing():
    assert seen(card("NVIDIA A100", 81920, mig=(1, 1), slices=[None] * 7)) == ()


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,  # the driver was updated, and the machine not restarted
        pynvml.NVML_ERROR_NO_PERMISSION,
    ],
)
def test_without_a_driver_that_answers_there_are_no_cards(code):
    assert seen(RTX_4090, init=error(code)) == ()


def test_a_card_that_fell_off_the_bus_does_not_take_the_others_with_it():
    assert [gpu.name for gpu in seen(error(pynvml.NVML_ERROR_GPU_IS_LOST), RTX_4090)] == [RTX_4090["name"]]


def test_a_chip_that_shares_the_machines_memory_has_none_of_its_own():
    shared = card("NVIDIA GB10", error(pynvml.NVML_ERROR_NOT_SUPPORTED))
    assert seen(shared) == ()
    assert len(seen(shared, RTX_4090)) == 1


def test_old_libraries_give_names_as_bytes():
    assert seen(card(b"Tesla P100-PCIE-16GB", 16384))[0].name == "Tesla P100-PCIE-16GB"


def test_a_count_that_fails_is_no_cards():
    assert seen(count=error(pynvml.NVML_ERROR_UNKNOWN)) == ()
