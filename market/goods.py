"""What a seller delivers: a stream of tokens, or of pieces. The half of `market.delivery` that differs between them.

An item counts for so many units and has bytes that the transcript hashes; frames carry items over the wire. Knows
engines by their ports, and no money.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal, Protocol

from market.errors import EncodingInvalid, EngineFailed, RequestInvalid, WorkImpossible
from market.message import (
    PART_LIMIT_BYTES,
    TOKENS_PER_FRAME_LIMIT,
    Body,
    Likely,
    Logprobs,
    Piece,
    Progress,
    Queued,
    Tokens,
)
from market.ports import Engine, Generated, Job, Meter, Tokenizer, TokenLogprobs, WorkEngine, WorkJob
from market.task import MICRO
from market.text import TextAssembler
from market.values import value

Ending = Literal["", "stop", "length"]


@value
class Item:
    """`number` is a token id, or the units of a piece; `data` the text of one or the bytes of the other."""

    number: int
    data: bytes
    units: int
    logprobs: Logprobs | None = None


class Goods(Protocol):
    pieces: bool
    buffer_limit: int
    """So many items wait for a slow reader; then the engine does."""

    def stream(self) -> AsyncGenerator[tuple[Sequence[Item], Ending]]:
        """Closing it cancels the work. Raises what the engine raises."""

    def take(self, item: Item) -> bool:
        """Count an item as delivered; whether it was the last that was asked for."""

    def frames(self, items: Sequence[Item], head: bytes | None) -> Iterator[Body]:
        """Messages that carry the items; with `head`, the open chunk closes after them."""

    def alive(self) -> Body:
        """What to say while nothing comes."""

    def waiting(self) -> int: ...


class TokenGoods:
    """A text, token by token, up to the first stop string."""

    pieces = False
    buffer_limit = 128

    def __init__(self, engine: Engine, job: Job, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._engine = engine
        self._job = job
        self._tokenizer = tokenizer
        self._text = TextAssembler(stop)
        self._sent = 0

    async def stream(self) -> AsyncGenerator[tuple[Sequence[Item], Ending]]:
        with _at_work():
            async with aclosing(self._engine.generate(self._job)) as stream:
                async for generated in stream:
                    yield self._items(generated), generated.finish

    def take(self, item: Item) -> bool:
        self._text.feed(item.data)
        return self._text.stopped

    def frames(self, items: Sequence[Item], head: bytes | None) -> Iterator[Body]:
        for at in range(0, len(items), TOKENS_PER_FRAME_LIMIT):
            some = items[at : at + TOKENS_PER_FRAME_LIMIT]
            last = at + len(some) == len(items)
            yield Tokens(
                start=self._sent,
                tokens=tuple(item.number for item in some),
                head=head if last else None,
                logprobs=tuple(item.logprobs for item in some if item.logprobs is not None),
            )
            self._sent += len(some)

    def alive(self) -> Body:
        return Queued(position=self.waiting())

    def waiting(self) -> int:
        return self._engine.load().waiting

    def _items(self, generated: Generated) -> list[Item]:
        told = generated.logprobs or (None,) * len(generated.tokens)
        if len(told) != len(generated.tokens):
            raise EngineFailed("the engine gave logprobs for other tokens than it drew.")
        return [
            Item(number=token, data=self._tokenizer.token_bytes(token), units=1, logprobs=_micro(logprobs))
            for token, logprobs in zip(generated.tokens, told, strict=True)
        ]


class PieceGoods:
    """Work in pieces, each whole in itself."""

    pieces = True
    buffer_limit = 4  # of up to 16 MiB each

    def __init__(self, engine: WorkEngine, job: WorkJob, meter: Meter) -> None:
        self._engine = engine
        self._job = job
        self._meter = meter
        self._index = 0
        self._made = 0
        self._progress = 0

    async def stream(self) -> AsyncGenerator[tuple[Sequence[Item], Ending]]:
        with _at_work():
            async with aclosing(self._engine.make(self._job)) as stream:
                async for made in stream:
                    self._progress = max(self._progress, made.progress)
                    yield [self._item(piece) for piece in made.pieces], made.finish

    def take(self, item: Item) -> bool:  # noqa: ARG002 - pieces have no stop string
        return False

    def frames(self, items: Sequence[Item], head: bytes | None) -> Iterator[Body]:
        for number, item in enumerate(items):
            for start in range(0, len(item.data), PART_LIMIT_BYTES):
                part = item.data[start : start + PART_LIMIT_BYTES]
                ends = start + len(part) == len(item.data)
                yield Piece(
                    index=self._index,
                    units=item.number,
                    size=len(item.data),
                    start=start,
                    data=part,
                    head=head if ends and number + 1 == len(items) else None,
                )
            self._index += 1

    def alive(self) -> Body:
        return Progress(percent=self._progress) if self._engine.load().running else Queued(position=self.waiting())

    def waiting(self) -> int:
        return self._engine.load().waiting

    def _item(self, piece: bytes) -> Item:
        try:
            units = self._meter.units_of(self._job.request, piece)
        except EncodingInvalid as error:
            raise EngineFailed(f"the engine made something else than was asked for: {error.message}") from None
        self._made += units
        if self._made > self._job.max_units:
            raise EngineFailed("the engine made more than was agreed.")
        return Item(number=units, data=piece, units=units)


@contextmanager
def _at_work() -> Iterator[None]:
    """Tells what the engine finds wrong with the request from what admission finds wrong with the deal."""
    try:
        yield
    except RequestInvalid as error:
        raise WorkImpossible(error.message, next_step=error.next_step, param=error.param) from None


def _micro(told: TokenLogprobs | None) -> Logprobs | None:
    """Millionths: what is signed or canonical knows no fractions."""
    if told is None:
        return None
    top = tuple(Likely(token=token, micro=_in_micro(share)) for token, share in told.top)
    return Logprobs(own_micro=_in_micro(told.logprob), top=top)


def _in_micro(logprob: float) -> int:
    return min(0, max(-(2**40), round(max(logprob, -1e6) * MICRO)))
