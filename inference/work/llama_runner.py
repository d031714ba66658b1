"""What an `llama_text` child runs: opens the GGUF file of a model's folder for embedding or reranking.

Options: `kind`; `model`, the name of the first file with weights; `tokenizer`; `context` in tokens; `loose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.work.llama_text import open_llama_texts
from inference.work.runner import Runner


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> Runner:
    return open_llama_texts(
        folder / options["model"],
        folder / options["tokenizer"],
        kind=options["kind"],
        context=options["context"],
        threads=threads,
        loose=options["loose"],
    )
