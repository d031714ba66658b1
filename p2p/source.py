"""A peer as a source of content, asyncio side: implements `market.ports.ContentSource` over `/octo/blocks`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from market.errors import ContentUnavailable, PeerGone
from market.identity import PeerId
from p2p.blockclient import AnyWant
from p2p.blocks import (
    BLOCK_LIMIT_BYTES,
    CATALOG_LIMIT_BYTES,
    CREDIT_BYTES,
    MORE,
    WantBlock,
    WantCatalog,
    WantPin,
    WantRange,
    WantTicket,
)
from p2p.bridge import Bridge, QueueClosed, ToAsyncio, ToTrio, TrioStopped
from p2p.limits import NetworkLimits
from p2p.mesh import Mesh

T = TypeVar("T")
Running = Callable[[str], tuple[Bridge, Mesh]]
"""The mesh as it runs now; raises PeerGone, naming the given peer, while it does not."""


class PeerContent:
    """What one peer can be asked for. A call never outlives its limits, frozen peer or not."""

    def __init__(self, peer: PeerId, running: Running, limits: NetworkLimits) -> None:
        self.name = f"peer {peer}"
        self._peer = peer
        self._running = running
        # Reaching, opening, waiting for a turn and for an answer have limits of their own; this one is for a
        # peer so frozen that even giving up on it hangs.
        self._whole_s = limits.dial_timeout_s + limits.open_timeout_s + 3 * limits.content_wait_s

    # ---- market.ports.ContentSource ---------------------------------------------------------------

    async def block(self, cid: str) -> bytes:
        """One block, unverified. Raises ContentUnavailable; BlockInvalid for more than 2 MiB or no answer at all."""
        _, block = await self._collect(WantBlock(cid=cid), BLOCK_LIMIT_BYTES)
        return block

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        """`length` bytes of a file from `start`, unverified; fewer if the file ends before.

        At most 4 MiB are on their way to a reader that pauses; one that pauses for 30 s is given up.
        Raises ContentUnavailable, BlockInvalid.
        """
        if length <= 0:
            return
        bridge, mesh = self._mesh()
        arrivals = _Arrivals(bridge)
        pouring = asyncio.ensure_future(
            bridge.in_trio(
                mesh.blocks.pour,
                self._peer,
                WantRange(root=root, start=start, length=length),
                length,
                arrivals.queue,
                arrivals.taken,
            )
        )
        pouring.add_done_callback(arrivals.wake)
        try:
            while piece := await self._within(arrivals.next(pouring)):
                yield piece
                arrivals.take(len(piece))
            await self._within(pouring)
        finally:
            pouring.cancel()
            arrivals.taken.close()
            await asyncio.gather(pouring, return_exceptions=True)

    # ---- beside content ---------------------------------------------------------------------------

    async def ticket(self) -> str:
        """A ticket for the peer's content listener. Raises ContentUnavailable."""
        text, _ = await self._collect(WantTicket(), 0)
        return text

    async def catalog(self, creator: bytes, name: str) -> bytes:
        """The newest catalog that the peer knows, unverified. Raises ContentUnavailable, BlockInvalid."""
        _, catalog = await self._collect(WantCatalog(creator=creator, name=name), CATALOG_LIMIT_BYTES)
        return catalog

    async def ask_to_pin(self, manifest: str) -> None:
        """Ask the peer to keep and serve a model; it agrees, or this raises ContentUnavailable."""
        await self._collect(WantPin(manifest=manifest), 0)

    async def _collect(self, want: AnyWant, limit_bytes: int) -> tuple[str, bytes]:
        bridge, mesh = self._mesh()
        return await self._within(bridge.in_trio(mesh.blocks.collect, self._peer, want, limit_bytes))

    def _mesh(self) -> tuple[Bridge, Mesh]:
        try:
            return self._running(self._peer)
        except PeerGone as error:
            raise ContentUnavailable(error.message, next_step=error.next_step) from None

    async def _within(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._whole_s):
                return await work
        except TimeoutError:
            raise ContentUnavailable(f"{self.name} was silent for {self._whole_s:g} s.") from None
        except TrioStopped:
            raise ContentUnavailable("the network of this node stopped.", next_step="Try again in a second.") from None


class _Arrivals:
    """Pieces on their way to one reader, and the credit that goes back for what it took."""

    def __init__(self, bridge: Bridge) -> None:
        self.queue: ToAsyncio[bytes] = ToAsyncio(bridge, limit=CREDIT_BYTES)
        self.taken: ToTrio[bytes] = ToTrio(bridge, limit=CREDIT_BYTES)
        self._pieces: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._uncredited = 0
        self.queue.attach(self._receive)

    async def next(self, pouring: asyncio.Future[None]) -> bytes:
        """The next piece; empty once `pouring` has ended and all it brought is read."""
        while not self._pieces:
            if pouring.done():
                return b""
            self._news.clear()
            await self._news.wait()
        return self._pieces.popleft()

    def take(self, size: int) -> None:
        self._uncredited += size
        marks, self._uncredited = divmod(self._uncredited, CREDIT_BYTES)
        if marks:
            with suppress(QueueClosed):
                self.taken.put(MORE * marks, marks)

    def wake(self, _: object) -> None:
        self._news.set()

    def _receive(self, items: list[bytes]) -> None:
        self._pieces.extend(items)
        self._news.set()
