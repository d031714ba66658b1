"""Asks peers over `/octo/blocks`, trio side. Every wait has an end, and nothing a peer says makes us hold much.

What a peer may say wrong (a longer answer, a frame that is none) is BlockInvalid: whoever asked may blame it.
Silence, refusal and a broken stream are ContentUnavailable: bad luck is no crime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.host.exceptions import StreamFailure

from market.errors import BlockInvalid, ContentError, ContentUnavailable, EncodingInvalid, PeerError
from market.identity import PeerId
from p2p.blocks import (
    AHEAD_BYTES,
    BLOCKS_PROTOCOL,
    BUSY,
    CREDIT_BYTES,
    HEAD_LIMIT_BYTES,
    NOT_HERE,
    OK,
    PIECE_LIMIT_BYTES,
    Answer,
    WantBlock,
    WantCatalog,
    WantPin,
    WantRange,
    WantTicket,
    answer_of,
    ask_frame,
    piece_size,
)
from p2p.bridge import ToAsyncio, ToTrio
from p2p.dialer import Dialer
from p2p.frames import read_exactly, read_frame, read_some
from p2p.host import Host, quietly_reset
from p2p.limits import NetworkLimits

AnyWant = WantBlock | WantRange | WantTicket | WantCatalog | WantPin
_READ_BYTES = 256 * 1024
_WORDS = {
    NOT_HERE: "has no such content, or not for us",
    BUSY: "has too many requests",
}

_log = structlog.get_logger()
_AGAIN_S = 0.3


class BlockClient:
    def __init__(self, host: Host, dialer: Dialer, limits: NetworkLimits) -> None:
        self._host = host
        self._dialer = dialer
        self._limits = limits
        self._turns: dict[PeerId, trio.CapacityLimiter] = {}

    def is_asking(self, peer: PeerId) -> bool:
        return peer in self._turns

    async def collect(self, peer: PeerId, want: AnyWant, limit_bytes: int) -> tuple[str, bytes]:
        """The text and the whole body of an answer, at most `limit_bytes`. Raises ContentUnavailable, BlockInvalid."""
        body = bytearray()
        async with self._asked(peer, want) as (stream, answer):
            await self._receive(peer, stream, limit_bytes, body.extend, _Flow(self._limits))
        return answer.text, bytes(body)

    async def pour(
        self, peer: PeerId, want: AnyWant, limit_bytes: int, into: ToAsyncio[bytes], taken: ToTrio[bytes]
    ) -> None:
        """Put an answer's bytes into a queue as they come; `taken` carries MORE for each CREDIT_BYTES that were read.

        Raises as `collect`, after the bytes that came before. Credit bounds the queue: who exceeds it is cut off.
        """
        flow = _Flow(self._limits)
        async with self._asked(peer, want) as (stream, _), trio.open_nursery() as nursery:
            nursery.start_soon(flow.give_credit, stream, taken)
            await self._receive(peer, stream, limit_bytes, into.put_last, flow)
            nursery.cancel_scope.cancel()

    async def _receive(
        self, peer: PeerId, stream: INetStream, limit_bytes: int, sink: Callable[[bytes], object], flow: _Flow
    ) -> None:
        """Everything up to the end of the answer, never more than `limit_bytes`."""
        left = limit_bytes
        while True:
            with flow.patience():
                size = piece_size(await read_exactly(stream, 4))
            if not size:
                return
            left -= size
            if left < 0:
                raise BlockInvalid(f"peer {peer} sends more than the {limit_bytes} bytes that were asked for.")
            while size:
                with flow.patience():
                    data = await read_some(stream, min(size, _READ_BYTES))
                size -= len(data)
                if not flow.admits(len(data)):
                    raise BlockInvalid(f"peer {peer} sends on without waiting for its reader.")
                sink(data)

    @asynccontextmanager
    async def _asked(self, peer: PeerId, want: AnyWant) -> AsyncIterator[tuple[INetStream, Answer]]:
        try:
            async with self._turn(peer), self._stream(peer) as stream:
                with self._patience():
                    await stream.write(ask_frame(want))
                    answer = answer_of(await read_frame(stream, HEAD_LIMIT_BYTES))
                if answer.code != OK:
                    raise ContentUnavailable(f"peer {peer} {_WORDS.get(answer.code, f'answers {answer.code!r}')}.")
                yield stream, answer
        except Exception as error:  # noqa: BLE001 - libp2p's many kinds of a dead stream
            raise self._meaning(peer, error) from None

    @asynccontextmanager
    async def _stream(self, peer: PeerId) -> AsyncIterator[INetStream]:
        stream = await self._open(peer)
        try:
            yield stream
        finally:
            await quietly_reset(stream)

    async def _open(self, peer: PeerId) -> INetStream:
        """Once more after a failure: of two connections that met, one is being closed, and ours may have been that."""
        await self._dialer.reach(peer)
        try:
            return await self._host.open_stream(peer, BLOCKS_PROTOCOL)
        except StreamFailure:
            await trio.sleep(_AGAIN_S)
        await self._dialer.reach(peer)
        return await self._host.open_stream(peer, BLOCKS_PROTOCOL)

    @asynccontextmanager
    async def _turn(self, peer: PeerId) -> AsyncIterator[None]:
        """Our own requests to one peer wait for each other, rather than for its refusal."""
        turns = self._turns.setdefault(peer, trio.CapacityLimiter(self._limits.content_requests_per_peer))
        with self._patience():
            await turns.acquire()
        try:
            yield
        finally:
            turns.release()
            if not turns.borrowed_tokens and self._turns.get(peer) is turns:
                del self._turns[peer]

    def _patience(self) -> AbstractContextManager[object]:
        return trio.fail_after(self._limits.content_wait_s)

    def _meaning(self, peer: PeerId, error: Exception) -> ContentError:
        while isinstance(error, ExceptionGroup):  # of the nursery in `pour`
            error = error.exceptions[0]
        if isinstance(error, ContentError):
            return error
        if isinstance(error, EncodingInvalid):
            return BlockInvalid(f"peer {peer} gives an answer that is none: {error.message}")
        if isinstance(error, PeerError):
            return ContentUnavailable(error.message)
        if isinstance(error, trio.TooSlowError):
            return ContentUnavailable(f"peer {peer} was silent for {self._limits.content_wait_s:g} s.")
        return ContentUnavailable(f"peer {peer} hung up before the end ({type(error).__name__}).")


class _Flow:
    """How much came and was taken, and so who keeps whom waiting."""

    def __init__(self, limits: NetworkLimits) -> None:
        self.received = 0
        self._limits = limits
        self._credit = AHEAD_BYTES
        self._scope = trio.CancelScope()

    def admits(self, size: int) -> bool:
        """Note bytes that came; False if they are more than was given credit for."""
        self.received += size
        return self.received <= self._credit

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Wait for the peer no longer than it may be silent; while our own reader pauses, for as long as that may.

        Raises TooSlowError.
        """
        is_our_turn = self.received + PIECE_LIMIT_BYTES >= self._credit
        wait_s = self._limits.content_wait_s + (self._limits.content_idle_s if is_our_turn else 0)
        with trio.CancelScope(deadline=trio.current_time() + wait_s) as self._scope:
            yield
        if self._scope.cancelled_caught:
            raise trio.TooSlowError

    async def give_credit(self, stream: INetStream, taken: ToTrio[bytes]) -> None:
        try:
            while marks := b"".join(await taken.take_all()):
                self._credit += CREDIT_BYTES * len(marks)
                await stream.write(marks)
                self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._limits.content_wait_s)
        except Exception as error:  # noqa: BLE001 - the reading side tells of a dead stream
            _log.debug("p2p.credit_not_given", error=type(error).__name__)
