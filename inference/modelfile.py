"""A GGUF file as seen from outside: is it there, can it be one. Never parses more: that is the child's risk."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from market.errors import ModelFileInvalid, NodeMisconfigured

GGUF_MAGIC: Final = b"GGUF"


def check_gguf(path: Path) -> None:
    """Raises NodeMisconfigured if `path` cannot be read, ModelFileInvalid if it does not start as a GGUF does."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise NodeMisconfigured(
            f"cannot read the model {path}: {error.strerror}.", next_step="Pull it again, or correct the path."
        ) from None
    if magic != GGUF_MAGIC:
        raise ModelFileInvalid(f"{path.name} is not a GGUF file.", next_step="Pull or convert the model again.")
