"""`octo-node bench quantisation`, as a story: a model of the store, its formats made one after the other, and measured.

Lives here: what of a model can be compared, and over which words. The making and measuring is
`inference.quantization.comparing`'s. Nothing is kept: `models quantize` makes a format to keep.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from inference.models.library import model_of, open_tokenizer, weights_path
from inference.models.manifest import Format, Manifest
from inference.models.store import Store
from inference.quantization.comparing import FORMATS, TEXT, Compared, Whole, compare_formats, make_whole, unheard
from inference.quantization.targets import parse_target
from market.errors import RequestInvalid

RUNS = 3
_LEAST_TOKENS = 64
"""The engine's canonical chunk; of fewer a perplexity says little."""


async def compare_quantisations(
    store: Store,
    model: str,
    formats: Sequence[str] = (),
    *,
    runs: int = RUNS,
    told: Callable[[str], None] = unheard,
) -> tuple[Whole, list[Compared]]:
    """The model (a manifest's CID, whole in the store) in each of `formats`, none: the usual ones, beside F16.

    Raises RequestInvalid for a model that is no GGUF that writes text or a word that is no format; DiskFull,
    NodeMisconfigured, ModelFileInvalid, EngineFailed.
    """
    manifest = await model_of(store, model)
    _check(manifest)
    words = list(dict.fromkeys(parse_target(word, Format.GGUF).word for word in formats or FORMATS))
    source = await weights_path(store, manifest)
    tokenizer = await open_tokenizer(store, manifest)
    tokens = tokenizer.encode(await store.in_thread(TEXT.read_text, "utf-8"))[: manifest.context or None]
    if len(tokens) < _LEAST_TOKENS:
        raise RequestInvalid(f"a context of {manifest.context} tokens is too short to compare formats.")
    folder = Path(await store.in_thread(lambda: tempfile.mkdtemp(prefix="compare-", dir=store.parts)))
    try:
        with store.using(manifest.weights[0].cid):
            whole = await make_whole(source, tokens, folder, heard=told)
            others = [word for word in words if word != "F16"]
            async with aclosing(
                compare_formats(source, others, whole, tokens, folder, runs=runs, heard=told)
            ) as compared:
                return whole, [one async for one in compared]
    finally:
        await store.in_thread(lambda: shutil.rmtree(folder, ignore_errors=True))


def _check(manifest: Manifest) -> None:
    if manifest.format != Format.GGUF or manifest.modality != "text":
        raise RequestInvalid(
            f"{manifest.name} is {manifest.format} for {manifest.modality}: only GGUF models that write text are"
            " compared.",
            next_step="Name another with --model.",
        )
