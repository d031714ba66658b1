"""What an `onnx` child runs: opens the graphs of a model's folder for the kind of work that its manifest names.

Options: `kind`; `models`, the names of the graphs, most used first; `context` in tokens; `providers`, most wanted
first, and `fall_back`, whether those that the library lacks are left out; `engine_words`, what the engine class says
of processor and precision; `loose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from inference.models.plain_encoder import load_plain_encoder
from inference.work.onnx_session import CPU, Session
from inference.work.onnx_text import open_onnx_texts
from inference.work.runner import Runner
from market.errors import ModelFileInvalid

TEXT = frozenset(("embed", "rerank"))


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> Runner:
    onnxruntime.disable_telemetry_events()
    providers, fall_back = options["providers"], options["fall_back"]
    sessions = [
        Session(folder / name, threads=threads, providers=providers, fall_back=fall_back) for name in options["models"]
    ]
    kind = options["kind"]
    runner = _text(folder, sessions[0], options) if kind in TEXT else _look(folder, kind, sessions)
    on = (
        "cpu" if sessions[0].providers == (CPU,) else sessions[0].providers[0].removesuffix("ExecutionProvider").lower()
    )
    runner.engine = f"onnxruntime/{onnxruntime.__version__}/{on}{options['engine_words']}"
    return runner


def _text(folder: Path, session: Session, options: Mapping[str, Any]) -> Runner:
    encoder = load_plain_encoder(folder / "tokenizer.json", limit=options["context"])
    return open_onnx_texts(folder, session, encoder, kind=options["kind"], loose=options["loose"])


def _look(folder: Path, kind: str, sessions: list[Session]) -> Runner:
    from inference.work.detection import Detector
    from inference.work.onnx_look import Classifier, LookRunner, labels_of
    from inference.work.reading import Reader

    if kind == "read":
        if len(sessions) != 2:
            raise ModelFileInvalid("reading takes two graphs: one that finds text, one that reads a line.")
        return LookRunner(Reader(*sessions))
    if kind == "detect":
        return LookRunner(Detector(sessions[0], labels_of(folder, sessions[0])))
    return LookRunner(Classifier(folder, sessions[0]))
