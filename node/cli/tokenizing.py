"""A model's tokenizer out of a data folder, for checks that need token ids. No weights, no network, no node."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from market.errors import ContentUnavailable

if TYPE_CHECKING:
    from inference.models.tokenizer import ModelTokenizer


def tokenizer_in(data_dir: Path, model: str) -> ModelTokenizer:
    """The tokenizer of a manifest CID; raises ContentUnavailable if this folder does not have it."""
    from inference.models.library import model_of, open_tokenizer
    from inference.models.store import Store

    root = data_dir / "models"
    if not root.is_dir():
        raise ContentUnavailable(
            f"{data_dir} holds no models.", next_step="Name the data folder of a node that used or served the model."
        )

    async def open_it() -> ModelTokenizer:
        with closing(Store(root)) as store:
            return await open_tokenizer(store, await model_of(store, model))

    return asyncio.run(open_it())
