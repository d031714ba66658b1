"""What fits where: layers on cards, workers and slots in memory."""

from __future__ import annotations

import pytest

from inference.shape import ALL_LAYERS, BUFFERS_BYTES, CARD_BYTES, Burden, in_memory, on_cards
from inference.tuning import Setup

GB = 10**9


def setup(workers=8, threads=2, slots=16) -> Setup:
    return Setup(model="m", workers=workers, threads=threads, slots=slots)


def burden(weights_gb: float, layers: int = 32) -> Burden:
    """A tenth of a gigabyte for the keys and values of a slot; the buffers come out of the weights."""
    return Burden(weights_bytes=int(weights_gb * GB) - BUFFERS_BYTES, slot_bytes=GB // 10, layers=layers)


def card(gigabytes: float) -> int:
    return int(gigabytes * GB) + CARD_BYTES


def test_all_layers_go_to_cards_that_hold_them_with_one_worker_for_all_cards():
    cut, layers = on_cards(setup(), burden(4.4), vram_bytes=(card(6),), workers_named=False)
    assert (cut.workers, cut.slots, layers) == (1, 16, ALL_LAYERS)
    assert on_cards(setup(), burden(4.4), vram_bytes=(card(3), card(3)), workers_named=False)[1] == ALL_LAYERS
    assert on_cards(setup(), burden(4.5), vram_bytes=(card(6),), workers_named=False)[1] != ALL_LAYERS


def test_of_a_model_that_is_too_large_as_many_layers_as_fit():
    """16 GB and slots for 1.6: half of it, and of 32 layers, on a card with room for 8.8."""
    assert on_cards(setup(), burden(16), vram_bytes=(card(8.8),), workers_named=False)[1] == 16
    assert on_cards(setup(), burden(16), vram_bytes=(card(0.4),), workers_named=False) == (setup(), 0)
    assert on_cards(setup(), burden(16), vram_bytes=(GB // 2,), workers_named=False) == (setup(), 0)
    assert on_cards(setup(), burden(16, layers=0), vram_bytes=(card(8.8),), workers_named=False) == (setup(), 0)


def test_each_worker_that_somebody_named_has_its_own_copy_on_the_card():
    cut, layers = on_cards(setup(workers=2), burden(4.4), vram_bytes=(card(12),), workers_named=True)
    assert (cut.workers, layers) == (2, ALL_LAYERS)
    assert on_cards(setup(workers=2), burden(4.4), vram_bytes=(card(6),), workers_named=True)[1] == 16


@pytest.mark.parametrize(
    ("ram_gb", "workers", "threads", "slots"),
    [
        (48, 8, 2, 16),
        (47, 7, 2, 16),
        (30, 5, 3, 16),
        (6, 1, 16, 16),
        (5, 1, 16, 6),
        (4.45, 1, 16, 1),
        (3, 1, 16, 1),
    ],
)
def test_as_many_workers_as_fit_share_the_cores_and_then_as_many_slots(ram_gb, workers, threads, slots):
    """Six gigabytes a worker: 4.4 and sixteen slots."""
    cut = in_memory(setup(), burden(4.4), ram_bytes=int(ram_gb * GB), cores=16)
    assert (cut.workers, cut.threads, cut.slots) == (workers, threads, slots)


def test_slots_that_somebody_named_stay_and_the_worker_says_that_they_do_not_fit():
    cut = in_memory(setup(), burden(4.4), ram_bytes=5 * GB, cores=16, slots_named=True)
    assert (cut.workers, cut.slots) == (1, 16)
