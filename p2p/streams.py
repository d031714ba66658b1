"""`/octo/agent/1.0.0`, trio side: one long-lived stream per peer and direction, as a `Link` across the bridge.

The dialer of a stream opens tasks on it; replies come back on the same stream. Here bytes become messages and
back; which message belongs to which conversation is decided in asyncio, in `p2p.switchboard`.

A frame that has begun must end in time, a write must be taken in time, and garbage ends its stream and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import structlog
import trio
from libp2p.abc import INetStream

from market.errors import EncodingInvalid
from market.identity import PeerId
from market.message import Message
from market.values import value
from p2p.bridge import Bridge, ToAsyncio, ToTrio
from p2p.host import Host, quietly, quietly_reset
from p2p.limits import NetworkLimits
from p2p.wire import FrameParser, message_of

AGENT_PROTOCOL = "/octo/agent/1.0.0"
_READ_BYTES = 64 * 1024

_log = structlog.get_logger()


@value
class Received:
    message: Message
    size_bytes: int


@value
class LinkEnded:
    """The last item of every link. `fault` says whether the peer is gone or sent what nobody may send."""

    fault: Literal["gone", "protocol"]
    reason: str


class Link:
    """One agent stream: frames in through `outbox` (asyncio to trio), messages out through `inbox`."""

    def __init__(self, bridge: Bridge, peer: PeerId, limits: NetworkLimits, *, is_inbound: bool) -> None:
        self.peer = peer
        self.is_inbound = is_inbound
        self.outbox: ToTrio[bytes] = ToTrio(bridge, limit=limits.outbox_bytes)
        self.inbox: ToAsyncio[Received | LinkEnded] = ToAsyncio(bridge, limit=limits.link_unread_bytes)
        self._limits = limits
        self._is_over = False
        self._scope = trio.CancelScope()

    def cut(self, reason: str) -> None:
        """trio: end the link now; `inbox` says so at once, before any socket is closed."""
        self._finish(LinkEnded(fault="gone", reason=reason))
        self._scope.cancel()

    async def run(self, host: Host, stream: INetStream) -> None:
        """trio: carry both directions until one of them ends."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, host, stream)
                    await self._read(stream)
                    nursery.cancel_scope.cancel()
        finally:
            self._finish(LinkEnded(fault="gone", reason="the connection closed"))
            await quietly_reset(stream)

    async def _read(self, stream: INetStream) -> None:
        parser, deadline = FrameParser(), float("inf")
        while True:
            with trio.move_on_at(deadline) as waiting:
                try:
                    data = await stream.read(_READ_BYTES)
                except Exception as error:  # noqa: BLE001 - EOF, reset and a dozen kinds of a dead connection
                    _log.debug("p2p.link_closed", peer=self.peer, error=type(error).__name__)
                    return None
            if waiting.cancelled_caught:
                return self._blame(f"a frame took longer than {self._limits.frame_timeout_s} s")
            if not data:
                return None
            items: list[Received | LinkEnded] = []
            weight, fault = 0, ""
            try:
                for body in parser.feed(data):
                    items.append(Received(message=message_of(body), size_bytes=len(body)))
                    weight += len(body)
            except EncodingInvalid as error:
                fault = error.message
            if items:  # what came whole before the garbage still counts
                await self.inbox.put(items, weight)
            if fault:
                return self._blame(fault)
            if not parser.is_mid_frame:
                deadline = float("inf")
            elif items or deadline == float("inf"):
                deadline = trio.current_time() + self._limits.frame_timeout_s

    async def _write(self, host: Host, stream: INetStream) -> None:
        while frames := await self.outbox.take_all():
            # Shielded: a write torn in the middle of a noise packet breaks every stream of the connection.
            with trio.CancelScope(deadline=trio.current_time() + self._limits.write_timeout_s) as writing:
                writing.shield = True
                try:
                    await stream.write(b"".join(frames))
                except Exception as error:  # noqa: BLE001 - as in _read
                    _log.debug("p2p.link_closed", peer=self.peer, error=type(error).__name__)
                    break
            if writing.cancelled_caught:
                self.cut(f"the peer took nothing for {self._limits.write_timeout_s} s")
                await host.abort(self.peer)
                return
        self._scope.cancel()

    def _finish(self, end: LinkEnded) -> None:
        """The first reason counts, and counts at once: a writer may still be stuck in a full socket."""
        if not self._is_over:
            self._is_over = True
            self.outbox.close()
            self.inbox.put_last(end)

    def _blame(self, reason: str) -> None:
        self._finish(LinkEnded(fault="protocol", reason=reason))
        _log.info("p2p.peer_broke_protocol", peer=self.peer, reason=reason)


class AgentStreams:
    """Serves and opens agent streams, and knows which are alive."""

    def __init__(
        self, bridge: Bridge, host: Host, nursery: trio.Nursery, limits: NetworkLimits, accept: Callable[[Link], None]
    ) -> None:
        """`accept` is called in asyncio with every link that a peer opened, before its first message."""
        self._bridge = bridge
        self._host = host
        self._nursery = nursery
        self._limits = limits
        self._accept = accept
        self._inbound: dict[PeerId, Link] = {}
        self._outbound: dict[PeerId, Link] = {}
        host.handle(AGENT_PROTOCOL, self._serve)

    async def open(self, peer: PeerId) -> Link:
        """A new link to a connected peer. Raises PeerGone or PeerTimedOut."""
        stream = await self._host.open_stream(peer, AGENT_PROTOCOL)
        link = Link(self._bridge, peer, self._limits, is_inbound=False)
        self._outbound[peer] = link
        self._nursery.start_soon(self._run, link, stream, self._outbound)
        return link

    def has_links(self, peer: PeerId) -> bool:
        return peer in self._inbound or peer in self._outbound

    def cut(self, peer: PeerId, reason: str) -> None:
        """End all links of a peer that is gone."""
        for links in (self._inbound, self._outbound):
            link = links.get(peer)
            if link is not None:
                link.cut(reason)

    async def _serve(self, peer: PeerId, stream: INetStream) -> None:
        link = Link(self._bridge, peer, self._limits, is_inbound=True)
        # One stream per peer and direction: a second one is the peer reconnecting before we noticed.
        older = self._inbound.get(peer)
        if older is not None:
            older.cut("the peer opened a newer stream")
        self._inbound[peer] = link
        self._bridge.post_to_asyncio(self._accept, link)
        await self._run(link, stream, self._inbound)

    async def _run(self, link: Link, stream: INetStream, links: dict[PeerId, Link]) -> None:
        try:
            await link.run(self._host, stream)
        except Exception as error:  # noqa: BLE001 - one stream may not take the host down
            _log.warning("p2p.link_failed", peer=link.peer, error=type(error).__name__)
            await quietly(stream.reset)
        finally:
            if links.get(link.peer) is link:
                del links[link.peer]
