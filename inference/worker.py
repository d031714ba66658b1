"""The engine's child process: `python -m inference.worker`; how it lives and ends: `inference.line`.

Lives here: the order in which it gives up its rights, and the loop that reads frames, runs one decode
call, and writes what came of it. Must not know: the node, the network, keys; it is told all it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from inference.batch import Batch, Emission, Work
from inference.devices import NO_CARDS, CardAccess, card_access
from inference.frames import Frame
from inference.isolation import close_the_door, confine
from inference.line import HEARTBEAT_S, Line, live
from inference.orders import DIALECT, Order, WorkerFacts, WorkerSettings, unpack_tokens
from market.values import from_plain

_OVERHEAD_BYTES: Final = 512 * 1024 * 1024
"""What Python, numpy and the library's own buffers may take beside the model."""


def serve(line: Line, batch: Batch) -> None:
    """Until the parent goes. Never waits while a job can run; sleeps when none can."""
    while True:
        emissions = []
        for frame in line.receive(0 if batch.can_step else HEARTBEAT_S if len(batch) else None):
            emissions += _obey(batch, frame)
        emissions += batch.step()
        if emissions:
            line.send(["step", [list(emission) for emission in emissions]])
        elif len(batch):
            line.heartbeat()


def _obey(batch: Batch, frame: Frame) -> list[Emission]:
    match frame.message:
        case ["run", job, order]:
            failed = batch.join(job, _work(from_plain(Order, order)))
            return [failed] if failed else []
        case ["read", job, count]:
            batch.acknowledge(job, count)
        case ["cancel", job]:
            batch.cancel(job)
    return []


def _work(order: Order) -> Work:
    return Work(
        prompt=unpack_tokens(order.prompt),
        sampling=order.sampling,
        max_tokens=order.max_tokens,
        end_tokens=frozenset(order.end_tokens),
        priority=order.priority,
        generated=unpack_tokens(order.generated),
        read=order.read,
        scope=order.scope,
        logprobs=order.logprobs,
        grammar=order.grammar,
    )


def open_model(settings: WorkerSettings, line: Line) -> tuple[WorkerFacts, Callable[[], None]]:
    """Confine this process, then load the model: a file that attacks the parser finds the cage closed."""
    if settings.core >= 0:
        os.sched_setaffinity(0, {settings.core})
    onnx = settings.library == "onnxruntime"
    batch, facts = _open_onnx(settings, line) if onnx else _open_llama(settings)
    return facts, lambda: serve(line, batch)


def _open_llama(settings: WorkerSettings) -> tuple[Batch, WorkerFacts]:
    from inference.llama import LlamaContext

    cards = card_access() if settings.gpu_layers else NO_CARDS
    isolation = _confine(settings, Path(settings.model), cards)
    context = LlamaContext(
        Path(settings.model),
        slots=settings.slots,
        size=settings.context,
        threads=settings.threads,
        memory_bytes=settings.memory_bytes,
        gpu_layers=settings.gpu_layers,
    )
    grammars = context.grammars()
    close_the_door(devices=bool(cards.devices))
    facts = WorkerFacts(
        engine=context.engine, vocabulary=context.vocabulary, isolation=isolation, chunk_s=context.chunk_s
    )
    batch = Batch(context, slots=settings.slots, window=settings.window, grammars=grammars, draft=settings.draft)
    return batch, facts


def _open_onnx(settings: WorkerSettings, line: Line) -> tuple[Batch, WorkerFacts]:
    from inference.onnx_llm import OnnxContext

    cards = card_access() if set(settings.providers) - {"cpu"} else NO_CARDS
    isolation = _confine(settings, Path(settings.model).parent, cards)  # weights may lie beside the graph
    context = OnnxContext(
        Path(settings.model),
        slots=settings.slots,
        size=settings.context,
        threads=settings.threads,
        memory_bytes=settings.memory_bytes,
        engine_words=settings.engine_words,
        providers=settings.providers,
        fall_back=settings.fall_back,
    )

    def go_on() -> bool:
        line.heartbeat()
        return True

    context.go_on = go_on
    close_the_door(devices=bool(cards.devices))
    facts = WorkerFacts(
        engine=context.engine,
        vocabulary=context.vocabulary,
        isolation=isolation,
        chunk_s=context.chunk_s,
        grammars=False,
    )
    return Batch(context, slots=settings.slots, window=settings.window), facts


def _confine(settings: WorkerSettings, model: Path, cards: CardAccess) -> str:
    return confine(
        [model, *map(Path, cards.readable)],
        memory_bytes=settings.memory_bytes + _OVERHEAD_BYTES,
        devices=[Path(device) for device in cards.devices],
    )


def main() -> int:
    return live(DIALECT, open_model)


if __name__ == "__main__":
    sys.exit(main())
