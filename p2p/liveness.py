"""Is the peer still there? Trio side: one ping task per connected peer.

libp2p notices a closed socket, never a frozen process or a pulled cable. So we ping, on libp2p's own
`/ipfs/ping/1.0.0`, which every implementation answers; two misses in a row and the peer is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import structlog
import trio

from market.errors import PeerError, PeerGone
from market.identity import PeerId
from p2p.host import Host, quietly_reset
from p2p.limits import NetworkLimits

PING_PROTOCOL = "/ipfs/ping/1.0.0"
_PING_BYTES = 32

_log = structlog.get_logger()


class Liveness:
    """`measured(peer, rtt_ms)` is called after each answer, `gone(peer)` once after the last miss."""

    def __init__(
        self,
        host: Host,
        nursery: trio.Nursery,
        limits: NetworkLimits,
        *,
        measured: Callable[[PeerId, float], None],
        gone: Callable[[PeerId], None],
    ) -> None:
        self._host = host
        self._nursery = nursery
        self._limits = limits
        self._measured = measured
        self._gone = gone

    async def watch(self, peer: PeerId) -> None:
        """Ping until the peer is disconnected or gone. After a miss the next ping follows at once."""
        misses = 0
        while self._host.is_connected(peer):
            if await self.answers(peer):
                misses = 0
                await trio.sleep(self._limits.ping_interval_s)
                continue
            misses += 1
            _log.debug("p2p.ping_missed", peer=peer, misses=misses)
            if misses >= self._limits.ping_misses:
                if self._host.is_connected(peer):
                    _log.info("p2p.peer_frozen", peer=peer, misses=misses)
                    self._gone(peer)
                return

    async def answers(self, peer: PeerId) -> bool:
        """Whether a ping comes back within the time-out; a refused one takes that long too.

        The ping runs beside us and is left behind when it is late: libp2p shields the reset of an unopened
        stream from cancellation, and towards a frozen peer with a full socket that reset never returns.
        """
        answered = trio.Event()
        scope = trio.CancelScope()

        async def ping() -> None:
            with scope:
                try:
                    self._measured(peer, await self._ping(peer))
                    answered.set()
                except PeerError as error:
                    _log.debug("p2p.ping_failed", peer=peer, error=error.message)

        self._nursery.start_soon(ping)
        with trio.move_on_after(self._limits.ping_timeout_s):
            await answered.wait()
        scope.cancel()
        return answered.is_set()

    async def _ping(self, peer: PeerId) -> float:
        """One round trip in ms, the opening of the stream not counted. Raises PeerGone."""
        stream = await self._host.open_stream(peer, PING_PROTOCOL)
        try:
            payload, answer = os.urandom(_PING_BYTES), b""
            started_s = trio.current_time()
            await stream.write(payload)
            while len(answer) < _PING_BYTES:
                data = await stream.read(_PING_BYTES - len(answer))
                if not data:
                    break
                answer += data
            if answer != payload:
                raise PeerGone("the ping came back changed.", peer=peer)
            return (trio.current_time() - started_s) * 1000
        except PeerGone:
            raise
        except Exception as error:  # noqa: BLE001 - libp2p's many kinds of a dead stream
            raise PeerGone(f"the ping failed: {type(error).__name__}.", peer=peer) from None
        finally:
            await quietly_reset(stream)
