"""Embedding and reranking inside a child, whatever library encodes: texts to batches, batches to pieces.

Lives here: the loop, whose texts share a call, and the trial whether they may. Knows no library.

Equal bytes. A receipt binds the bytes of a vector, so a text's must not depend on what else was in its batch. A model
says how its rows may share calls; it is tried when it is loaded, and if rows together differ from rows alone, its rows
run alone, unless the engine's owner says `loose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from inference.models.plain_encoder import Encoded, PlainEncoder
from inference.work.rows import ROWS_LIMIT, Pending, Row, Rows
from inference.work.runner import Desk, GoOn, RanTooLong, Task, always
from inference.work.text_heads import Array, Head
from market.errors import EngineFailed, ModelFileInvalid, OctoError

TASKS_LIMIT: Final = 256
"""Tokenised at once; a newcomer beyond them waits for a place."""


class TextModel(Protocol):
    """`tokens_limit` in one call; `padded` says that a call is a rectangle. `probes` are lengths of rows that are tried
    together, each a call of its own."""

    tokens_limit: int

    @property
    def padded(self) -> bool: ...

    @property
    def probes(self) -> Sequence[Sequence[int]]: ...

    def outputs(self, texts: Sequence[Encoded], go_on: GoOn) -> list[Array]:
        """What its head wants, for each text. Asks `go_on` now and then if it takes long. Raises EngineFailed, also if
        it shall not go on; RanTooLong."""


class TextRunner:
    """Implements `inference.work.runner.Runner`. `together` is whether rows share calls."""

    def __init__(self, model: TextModel, encoder: PlainEncoder, head: Head, *, loose: bool = False) -> None:
        """Raises ModelFileInvalid, EngineFailed."""
        self.engine = ""
        self.context = encoder.limit
        self._model = model
        self._encoder = encoder
        self._head = head
        self.together = self._is_exact() or loose

    def run(self, desk: Desk) -> None:
        rows = Rows(
            rows_limit=ROWS_LIMIT if self.together else 1,
            tokens_limit=self._model.tokens_limit,
            padded=self._model.padded,
        )
        while True:
            for task in desk.take(TASKS_LIMIT - len(rows)):
                self._begin(task, rows, desk)
            rows.drop_cancelled()
            if not len(rows):
                return
            for pending, pieces in self._compute(rows.batch(), rows, desk):
                self._hand_out(pending, pieces, rows, desk)

    def _begin(self, task: Task, rows: Rows, desk: Desk) -> None:
        try:
            encoded = []
            for at, (first, second) in enumerate(self._head.texts(task)[: task.max_units]):
                encoded.append(self._encoder.encode(first, second, what=f"input {at}"))
                if at % 64 == 63:
                    desk.beat()
        except OctoError as error:
            desk.refuse(task, error)
        else:
            rows.add(task, encoded)

    def _compute(
        self, batch: Sequence[tuple[Pending, Row]], rows: Rows, desk: Desk
    ) -> Sequence[tuple[Pending, list[bytes]]]:
        """Pieces that are ready to go out, by task. A row on which the model fails costs its own task alone."""

        def go_on() -> bool:
            desk.beat()
            return not all(pending.task.cancelled for pending, _ in batch)

        try:
            made = self._model.outputs([row.tokens for _, row in batch], go_on)
        except EngineFailed as error:
            if len(batch) > 1 and not isinstance(error, RanTooLong):
                return [ready for one in batch for ready in self._compute([one], rows, desk)]
            for pending in dict.fromkeys(pending for pending, _ in batch):
                desk.refuse(pending.task, error)
                rows.leave(pending)
            return []
        touched: dict[int, Pending] = {}
        for (pending, row), output in zip(batch, made, strict=True):
            try:
                pending.done[row.at] = self._head.piece(pending.task, row.at, output)
                touched[pending.task.number] = pending
            except OctoError as error:
                desk.refuse(pending.task, error)
                rows.leave(pending)
                touched.pop(pending.task.number, None)
        return [(pending, ready) for pending in touched.values() if (ready := pending.ready())]

    def _hand_out(self, pending: Pending, pieces: list[bytes], rows: Rows, desk: Desk) -> None:
        if pending.sent < pending.count:
            desk.made(pending.task, pieces, progress=pending.sent * 100 // pending.count)
            return
        whole = pending.count == len(self._head.texts(pending.task))
        desk.made(pending.task, pieces, progress=100, finish="stop" if whole else "length")
        rows.leave(pending)

    def _is_exact(self) -> bool:
        """Whether rows together give what they give alone; at the same time the model's first run.

        Raises ModelFileInvalid if it cannot run at all.
        """
        try:
            return all(self._agrees(probe) for probe in self._model.probes)
        except EngineFailed as error:
            raise ModelFileInvalid(
                f"the model does not run: {error.message}", next_step="Its kind is not what its manifest says."
            ) from None

    def _agrees(self, probe: Sequence[int]) -> bool:
        lengths = [min(length, self._encoder.limit) for length in probe]
        texts = [
            Encoded(
                ids=tuple((n * 37 + row * 101) % self._encoder.vocabulary for n in range(1, length + 1)),
                types=(0,) * length,
            )
            for row, length in enumerate(lengths)
        ]
        together = [self._probed(row) for row in self._model.outputs(texts, always)]
        if not any(together):
            raise EngineFailed("what it makes is no numbers.")
        return together == [self._probed(self._model.outputs([text], always)[0]) for text in texts]

    def _probed(self, row: Array) -> bytes:
        """Empty where the model makes no numbers, as a few have tokens that they never learnt."""
        try:
            return self._head.piece(None, 0, row)
        except EngineFailed:
            return b""
