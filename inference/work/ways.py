"""Where a library computes, and with which numbers: on a card if it can use one, else on the processor.

Lives here: the order, and the way from one to the next. Must not know: what is computed. The libraries come in as
values: they are extras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Way = tuple[str, str]
"""(device, number format)"""


def ctranslate2_ways(library: Any, compute: str, *, cards: bool) -> list[Way]:
    """Best first. `compute` is CTranslate2's type of arithmetic on processors."""
    ways = [("cpu", compute)]
    if cards and library.get_cuda_device_count():
        half = f"{compute}_float16"  # weights as asked for, sums in halves: what cards are fast at
        ways.insert(0, ("cuda", half if half in library.get_supported_compute_types("cuda") else compute))
    return ways


def torch_ways(library: Any, dtype: str, *, cards: bool) -> list[Way]:
    """Best first. Without a `dtype`: halves on a card, with bfloat16's range where it has them; float32 here."""
    ways = [("cpu", dtype or "float32")]
    if cards and library.cuda.is_available():
        half = "bfloat16" if library.cuda.is_bf16_supported() else "float16"
        ways.insert(0, ("cuda", dtype or half))
    return ways


def open_first(ways: Sequence[Way], open_one: Callable[[str, str], T]) -> T:
    """What `open_one` gives on the first way that works. No room on a card, or a library of CUDA that is missing, is a
    RuntimeError, which may come with the first task only: `open_one` runs one. Raises what the last way says."""
    *cards, last = ways
    for way in cards:
        try:
            return open_one(*way)
        except RuntimeError:
            continue
    return open_one(*last)
