"""The `diffusion` engine: text into images, by diffusers on a card or the processor.

Lives here: how a folder in diffusers' layout becomes a `market.ports.WorkEngine` in supervised children. The libraries
and the weights never touch this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from inference.devices import NO_CARDS, CardAccess
from inference.work.diffusers_folder import check_folder
from inference.work.engine import SupervisedEngine, open_work_engine
from inference.work.image_meter import ImageMeter
from market.work import Work

PIXELS: Final = 1024 * 1024
_URANDOM: Final = Path("/dev/urandom")
"""PyTorch seeds its own generator from it; ours are seeded by the request."""
_MEMORY_BYTES: Final = 4 * 1024**3
"""Libraries and what an image of a million pixels needs on its way, beside the weights."""


@asynccontextmanager
async def open_diffusion_engine(
    folder: Path,
    *,
    packages: Path | None = None,
    cards: CardAccess = NO_CARDS,
    workers: int = 1,
    threads: int = 1,
    dtype: Literal["", "float32", "bfloat16", "float16"] = "",
    pixels: int = PIXELS,
    hang_s: float = 300.0,
) -> AsyncIterator[SupervisedEngine]:
    """Text to image; pieces are PNGs, progress comes with each step.

    `folder` holds model_index.json and its parts, weights as safetensors. `packages` is a folder with diffusers, torch
    and transformers, if they are not installed beside the node (`pip install --target`). It runs on one of `cards` if
    PyTorch can use it, else on the processor; without a `dtype` in halves there, in float32 here. Larger images than
    `pixels` are refused. A step, and the way from the last step to the picture, must not take `hang_s`.
    Raises ModelFileInvalid, also for pickles and code; NodeMisconfigured if diffusers is not installed.
    """
    size = await asyncio.to_thread(_size_bytes, folder)
    async with open_work_engine(
        "inference.work.diffusion_runner",
        folder,
        works=frozenset((Work.IMAGE,)),
        meter=ImageMeter(),
        options={
            "packages": str(packages) if packages else "",
            "cards": bool(cards.devices),
            "dtype": dtype,
            "pixels": pixels,
        },
        readable=(_URANDOM, *((packages,) if packages else ())),
        cards=cards,
        workers=workers,
        slots=1,
        threads=threads,
        memory_bytes=_MEMORY_BYTES + 3 * size,
        hang_s=hang_s,
    ) as engine:
        yield engine


def _size_bytes(folder: Path) -> int:
    """Of the weights. Raises ModelFileInvalid for what is no such folder."""
    check_folder(folder)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
