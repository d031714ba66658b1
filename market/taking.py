"""What a buyer takes: tokens that become text, or pieces. The half of `market.reception` that differs between them.

Everything that arrives is counted here for ourselves before the transcript hears of it. Pure: knows no money, no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from market.errors import EncodingInvalid, PeerBrokeProtocol
from market.message import Body, Logprobs, Piece, Tokens
from market.ports import Meter, Tokenizer
from market.text import TextAssembler
from market.values import value
from market.work import WorkRequest


@value
class Delta:
    """A piece of an answer: text that may be shown now, and how many tokens it took. `tokens` and `logprobs` are
    theirs, if logprobs were asked for."""

    text: str
    tokens: int
    ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()


@value
class Part:
    """A whole piece of work, and what it counts for."""

    data: bytes
    units: int


Shown = Delta | Part


@value
class Taken:
    """What a message brought: items for the transcript as (number, bytes), and what may be shown. `closes`: the open
    chunk ends here, with this chain head."""

    items: Sequence[tuple[int, bytes]]
    shown: Sequence[Shown]
    closes: bytes | None = None


class Taking(Protocol):
    pieces: bool

    def take(self, body: Body, *, limit: int) -> Taken | None:
        """None for a message that carries nothing (yet). Raises PeerBrokeProtocol, also beyond `limit` units."""

    def finish(self) -> Sequence[Shown]:
        """What was held back, at the end."""


class TokenTaking:
    pieces = False

    def __init__(self, peer: str, tokenizer: Tokenizer, stop: Sequence[str], *, logprobs: bool) -> None:
        self._peer = peer
        self._tokenizer = tokenizer
        self._text = TextAssembler(stop)
        self._logprobs = logprobs
        self._taken = 0
        self._last: int | None = None

    def take(self, body: Body, *, limit: int) -> Taken | None:
        if not isinstance(body, Tokens):
            return None
        if body.start != self._taken:
            raise PeerBrokeProtocol(f"tokens from position {body.start}, expected {self._taken}.", peer=self._peer)
        self._taken += len(body.tokens)
        if self._taken > limit:
            raise PeerBrokeProtocol(f"more than the {limit} tokens asked for.", peer=self._peer)
        if len(body.logprobs) != (len(body.tokens) if self._logprobs else 0):
            raise PeerBrokeProtocol("the tokens come with other logprobs than were asked for.", peer=self._peer)
        self._check_cut(body.tokens)
        items = [(token, self._tokenizer.token_bytes(token)) for token in body.tokens]
        text = "".join(self._text.feed(data) for _, data in items)
        ids = body.tokens if self._logprobs else ()
        shown = Delta(text=text, tokens=len(items), ids=ids, logprobs=body.logprobs)
        return Taken(items=items, shown=(shown,), closes=body.head)

    def finish(self) -> Sequence[Shown]:
        text = self._text.finish()
        return (Delta(text=text, tokens=0),) if text else ()

    def _check_cut(self, tokens: Sequence[int]) -> None:
        before = (*(() if self._last is None else (self._last,)), *tokens[:-1])
        if not all(self._tokenizer.may_precede(token) for token in before):
            raise PeerBrokeProtocol("the text is cut into more tokens than it has; not paid.", peer=self._peer)
        self._last = tokens[-1]


class PieceTaking:
    """Puts parts together again; one piece at a time, so that a liar costs at most one piece of memory."""

    pieces = True

    def __init__(self, peer: str, request: WorkRequest, meter: Meter) -> None:
        self._peer = peer
        self._request = request
        self._meter = meter
        self._index = 0
        self._units = 0
        self._parts = bytearray()

    def take(self, body: Body, *, limit: int) -> Taken | None:
        if not isinstance(body, Piece):
            return None
        if (body.index, body.start) != (self._index, len(self._parts)) or body.start + len(body.data) > body.size:
            raise PeerBrokeProtocol("a part of a piece is not the one that comes next.", peer=self._peer)
        self._parts += body.data
        if len(self._parts) < body.size:
            if body.head is not None:
                raise PeerBrokeProtocol("a chunk closed in the middle of a piece.", peer=self._peer)
            return None
        data = bytes(self._parts)
        self._parts.clear()
        self._index += 1
        self._check(data, body.units, limit)
        return Taken(items=((body.units, data),), shown=(Part(data=data, units=body.units),), closes=body.head)

    def finish(self) -> Sequence[Shown]:
        if self._parts:
            raise PeerBrokeProtocol("the last piece is not whole.", peer=self._peer)
        return ()

    def _check(self, data: bytes, units: int, limit: int) -> None:
        try:
            ours = self._meter.units_of(self._request, data)
        except EncodingInvalid as error:
            raise PeerBrokeProtocol(f"a piece is not what was asked for: {error.message}", peer=self._peer) from None
        if ours != units:
            raise PeerBrokeProtocol(f"a piece of {ours} units was counted as {units}.", peer=self._peer)
        self._units += units
        if self._units > limit:
            raise PeerBrokeProtocol(f"more than the {limit} units asked for.", peer=self._peer)
