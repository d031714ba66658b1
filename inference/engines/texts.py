"""Models that embed or rerank texts, whatever library runs them: what their manifests say, and how both sides count.

Lives here: kinds, context and meter. Loads no weights and knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inference.models.manifest import Manifest, Role
from inference.models.plain_encoder import load_plain_encoder
from inference.work.meters import EmbedMeter, RerankMeter
from market.errors import ModelFileInvalid, NodeMisconfigured
from market.ports import Meter
from market.work import Work

TEXT_KINDS: Final[Mapping[str, str]] = {"embedding": "embed", "rerank": "rerank", "reranking": "rerank"}
"""By a manifest's modality."""
TEXT_WORKS: Final[Mapping[str, Work]] = {"embed": Work.EMBED, "rerank": Work.RERANK}
CONTEXT: Final = 512
"""Of a text model whose manifest says none: BERT's positions."""
CONTEXT_LIMIT: Final = 8192


def text_context(manifest: Manifest) -> int:
    """In tokens. Buyer and seller both refuse an input that has more."""
    return min(manifest.context or CONTEXT, CONTEXT_LIMIT)


def text_meter(manifest: Manifest, paths: Mapping[Role, Path], work: Work) -> Meter:
    """Blocking (0.1 s). `paths` has the manifest's tokenizer; no weights are needed. Raises ModelFileInvalid."""
    if Role.TOKENIZER not in paths:
        raise ModelFileInvalid(f"{manifest.name} has no tokenizer.", next_step="Add its tokenizer.json to the model.")
    encoder = load_plain_encoder(paths[Role.TOKENIZER], limit=text_context(manifest))
    return EmbedMeter(encoder) if work == Work.EMBED else RerankMeter(encoder)


def check_numbers(*, workers: int, threads: int, slots: int, context: int) -> None:
    """Raises NodeMisconfigured."""
    limits = (("workers", workers, 256), ("threads", threads, 1024), ("slots", slots, 1024))
    for name, number, most in (*limits, ("context", context, CONTEXT_LIMIT)):
        if not 1 <= number <= most:
            raise NodeMisconfigured(f"{name} = {number} is not possible.", next_step=f"Choose 1 to {most}.")
