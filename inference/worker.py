"""The engine's child process: `python -m inference.worker`, its end of a socket pair as standard input.

Lives here: the order in which it gives up its rights, and the loop that reads frames, runs one decode
call, and writes what came of it. Must not know: the node, the network, keys; it is told all it needs.

It ends when its parent does: by the end of the stream, by SIGKILL from the kernel (PR_SET_PDEATHSIG) if
it is in the middle of a call. One thread speaks, so a heartbeat means that the loop really turns, or that a call is not
late (`inference.work.onnx_session`).
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from inference.batch import Batch, Emission, Work
from inference.devices import NO_CARDS, CardAccess, card_access
from inference.frames import FrameBuffer, Order, WorkerFacts, WorkerSettings, pack, unpack_tokens
from inference.isolation import close_the_door, confine, die_with_parent
from market.errors import OctoError
from market.values import from_plain, to_plain

HEARTBEAT_S: Final = 0.25
_READ_BYTES: Final = 1 << 16
_INHERITED_LIMIT: Final = 4096
_OVERHEAD_BYTES: Final = 512 * 1024 * 1024
"""What Python, numpy and the library's own buffers may take beside the model."""


class Gone(Exception):
    """The parent closed its end."""


class Line:
    """Our end of the socket pair, blocking for writes: if the node is stuck, so are we, and nothing piles up."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._buffer = FrameBuffer()
        self._sent_at = 0.0

    def receive(self, timeout_s: float | None) -> list[Any]:
        """Frames that have arrived; waits up to `timeout_s` for the first, for ever if None."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        data = self._end.recv(_READ_BYTES)
        if not data:
            raise Gone
        return list(self._buffer.feed(data))

    def send(self, message: Sequence[Any]) -> None:
        self._end.sendall(pack(message))
        self._sent_at = time.monotonic()

    def heartbeat(self) -> None:
        if time.monotonic() - self._sent_at >= HEARTBEAT_S:
            self.send(["alive"])

    def alive(self) -> bool:
        """A heartbeat from within a call, which goes on."""
        self.heartbeat()
        return True


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


def _obey(batch: Batch, frame: Any) -> list[Emission]:
    match frame:
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


def open_batch(settings: WorkerSettings, line: Line) -> tuple[Batch, WorkerFacts]:
    """Confine this process, then load the model: a file that attacks the parser finds the cage closed."""
    return _open_onnx(settings, line) if settings.library == "onnxruntime" else _open_llama(settings)


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
    context.go_on = line.alive
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
    die_with_parent()
    os.closerange(3, _INHERITED_LIMIT)  # uvloop leaves second copies of 0, 1 and 2
    line = Line(socket.socket(fileno=0))
    try:
        frames: list[Any] = []
        while not frames:
            frames = line.receive(None)
        settings = from_plain(WorkerSettings, frames[0])
        if os.getppid() != settings.parent:  # it died before die_with_parent could see
            return 0
        if settings.core >= 0:
            os.sched_setaffinity(0, {settings.core})
        try:
            batch, facts = open_batch(settings, line)
        except OctoError as error:
            line.send(["fail", error.code, error.message, error.next_step])
            return 1
        line.send(["ready", to_plain(WorkerFacts, facts)])
        serve(line, batch)
    except (Gone, BrokenPipeError, ConnectionResetError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
