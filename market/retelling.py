"""Telling an answer again: what a seller records while it delivers, what it delivers from its cache, and how either
side sees that the two are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence

from market.caching import Original
from market.errors import OctoError
from market.goods import Ending, Goods, Item
from market.kept import KEPT_LIMIT_BYTES, Kept
from market.message import Body
from market.ports import Tokenizer, Verifier
from market.receipt import Receipt
from market.task import TaskId

_BATCH = 64
"""Items told at once: a frame's worth, and the buffer between generating and metering stays bounded."""
_TOKEN_BYTES = 6
"""A token id in CBOR, with what stands around it; logprobs take more."""
_LIKELY_BYTES = 32


class Echo:
    """Grows an original's transcript again from what is told now; the same tokens and bytes give the same root."""

    def __init__(self, original: Original, receipt: Receipt, verifier: Verifier, *, pieces: bool) -> None:
        self._receipt = receipt
        self._sizes = original.chunk_sizes
        self._at = 0
        self._open = 0
        self._transcript = verifier.open_transcript(
            task=TaskId(receipt.task),
            quote=receipt.quote,
            prompt=receipt.prompt,
            sampling=receipt.sampling,
            pieces=pieces,
        )

    def add(self, number: int, data: bytes) -> None:
        self._transcript.add(number, data)
        self._open += 1
        if self._at < len(self._sizes) and self._open == self._sizes[self._at]:
            self._transcript.close_chunk()
            self._at, self._open = self._at + 1, 0

    def holds(self, finish: str) -> bool:
        """Whether all that was added, and how it ended, is what the original's receipt is for."""
        told, receipt = self._transcript.close_chunk(), self._receipt
        committed = (receipt.tokens_out, receipt.chunks, receipt.chain_head, receipt.transcript_root)
        return (told.tokens, told.chunks, told.head, told.root) == committed and finish == receipt.finish


class KeptGoods:
    """Delivers a kept answer as `inner` would deliver it from an engine."""

    buffer_limit = 2 * _BATCH

    def __init__(self, inner: Goods, items: Sequence[Item], finish: Ending) -> None:
        self.pieces = inner.pieces
        self._inner = inner
        self._items = items
        self._finish: Ending = finish

    async def stream(self) -> AsyncGenerator[tuple[Sequence[Item], Ending]]:
        for start in range(0, len(self._items), _BATCH):
            yield self._items[start : start + _BATCH], ""
        yield (), self._finish

    def take(self, item: Item) -> bool:
        return self._inner.take(item)

    def frames(self, items: Sequence[Item], head: bytes | None) -> Iterator[Body]:
        return self._inner.frames(items, head)

    def alive(self) -> Body:
        return self._inner.alive()

    def waiting(self) -> int:
        return 0


class RecordedGoods:
    """Remembers what `inner` delivers; too much of it is not remembered at all."""

    def __init__(self, inner: Goods) -> None:
        self.pieces = inner.pieces
        self.buffer_limit = inner.buffer_limit
        self._inner = inner
        self._items: list[Item] | None = []
        self._bytes = 0

    @property
    def items(self) -> Sequence[Item] | None:
        return self._items

    def stream(self) -> AsyncGenerator[tuple[Sequence[Item], Ending]]:
        return self._inner.stream()

    def take(self, item: Item) -> bool:
        self._bytes += len(item.data) if self.pieces else _TOKEN_BYTES
        self._bytes += _LIKELY_BYTES * (1 + len(item.logprobs.top)) if item.logprobs else 0
        if self._bytes > KEPT_LIMIT_BYTES // 2:
            self._items = None
        if self._items is not None:
            self._items.append(item)
        return self._inner.take(item)

    def frames(self, items: Sequence[Item], head: bytes | None) -> Iterator[Body]:
        return self._inner.frames(items, head)

    def alive(self) -> Body:
        return self._inner.alive()

    def waiting(self) -> int:
        return self._inner.waiting()


def items_of(kept: Kept, tokenizer: Tokenizer | None) -> list[Item] | None:
    """The items of a kept answer: pieces, or tokens that `tokenizer` can read. None if it cannot be whole."""
    if tokenizer is None:
        if len(kept.pieces) != len(kept.numbers):
            return None
        return [
            Item(number=units, data=data, units=units) for units, data in zip(kept.numbers, kept.pieces, strict=True)
        ]
    if kept.pieces or len(kept.logprobs) not in (0, len(kept.numbers)):
        return None
    logprobs = kept.logprobs or (None,) * len(kept.numbers)
    try:
        return [
            Item(number=token, data=tokenizer.token_bytes(token), units=1, logprobs=told)
            for token, told in zip(kept.numbers, logprobs, strict=True)
        ]
    except (OctoError, LookupError, ValueError):  # an id that the model does not have
        return None


def is_as_receipted(kept: Kept, items: Sequence[Item], receipt: Receipt, verifier: Verifier, *, pieces: bool) -> bool:
    """Whether the kept items are those that the original's receipt was signed for: a file on disk proves nothing."""
    echo = Echo(kept.original, receipt, verifier, pieces=pieces)
    for item in items:
        echo.add(item.number, item.data)
    return echo.holds(kept.finish)
