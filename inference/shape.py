"""How an engine is cut so that a model fits: fewer workers of more threads, layers on the cards.

Lives here: the sums, pure. Must not know: settings, files, how anything is loaded. They are rough and end below what a
machine has; loading is the proof.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inference.tuning import Setup
from market.values import value

ALL_LAYERS: Final = -1
BUFFERS_BYTES: Final = 160 << 20
"""A worker's graph and output buffers, for which 60 MB were seen, and Python with its libraries, for which 49 were."""
CARD_BYTES: Final = 1 << 30
"""Of each card: CUDA's context, buffers of a call, and whatever shows the desktop."""
HOST_BYTES: Final = 2 << 30
"""What a worker takes of the machine's memory whose layers are all on cards: the driver's buffers, and CUDA's
libraries. Reckoned, not measured."""


@value
class Burden:
    """What a model takes: its weights, the keys and values of one slot, and over how many layers both are spread (0:
    the file does not say)."""

    weights_bytes: int
    slot_bytes: int
    layers: int = 0

    def of(self, slots: int) -> int:
        return self.weights_bytes + slots * self.slot_bytes + BUFFERS_BYTES


def on_cards(setup: Setup, burden: Burden, *, vram_bytes: tuple[int, ...], workers_named: bool) -> tuple[Setup, int]:
    """One worker (unless somebody named how many) that has all cards, and how many layers go there: all of them (-1),
    as many as fit, or none."""
    workers = setup.workers if workers_named else 1
    room = sum(max(0, card - CARD_BYTES) for card in vram_bytes)
    needed = workers * burden.of(setup.slots)
    layers = ALL_LAYERS if needed <= room else burden.layers * room // needed
    return (replace(setup, workers=workers), layers) if layers else (setup, 0)


def in_memory(setup: Setup, burden: Burden, *, ram_bytes: int, cores: int, slots_named: bool = False) -> Setup:
    """As many workers as fit, which share the cores; if not even one does, it has as many slots as fit (unless
    somebody named how many), and one at least: then it says itself what is missing."""
    workers = max(1, min(setup.workers, ram_bytes // burden.of(setup.slots)))
    if workers < setup.workers:
        setup = replace(setup, workers=workers, threads=max(setup.threads, cores // workers))
    if burden.of(setup.slots) <= ram_bytes or slots_named:
        return setup
    return replace(setup, slots=max(1, (ram_bytes - burden.of(0)) // max(1, burden.slot_bytes)))
