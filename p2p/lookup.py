"""The iterative look-up of Kademlia, trio side: ask those closest to a key for others still closer.

Who answers may lie: every answer gives us few names, connected peers are asked before strangers are dialled,
and questions are counted. What to ask and how is the caller's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import structlog
import trio

from market.errors import EncodingInvalid, PeerError
from market.identity import PeerId
from market.values import value
from p2p.kademlia import K, Known, place_of, place_of_peer
from p2p.kadwire import KadMessage

ALPHA = 3
_STRANGERS_PER_ANSWER = 8

_log = structlog.get_logger()


@value
class Hint:
    """A peer and where it should be. `teller_ip`, of whoever says so, decides which addresses may be tried."""

    known: Known
    teller_ip: str | None


class Lookup:
    """One look-up. `ask` raises PeerError or EncodingInvalid for a peer that gives no answer."""

    def __init__(
        self,
        key: bytes,
        *,
        me: PeerId,
        queries: int,
        ask: Callable[[Hint], Awaitable[KadMessage]],
        is_connected: Callable[[PeerId], bool],
        ip_of: Callable[[PeerId], str | None],
        learned: Callable[[PeerId, KadMessage], None],
    ) -> None:
        self._place = place_of(key)
        self._me = me
        self._left = queries
        self._ask = ask
        self._is_connected = is_connected
        self._ip_of = ip_of
        self._learned = learned
        self._hints: dict[PeerId, Hint] = {}
        self._asked: set[PeerId] = set()
        self._failed: set[PeerId] = set()
        self.answered: set[PeerId] = set()
        self._running = 0
        self._news = trio.Event()

    async def run(self, start: Iterable[Hint]) -> list[PeerId]:
        """Until the K closest that can be found have answered; returns them, closest first."""
        for hint in start:
            self._hints[hint.known.peer] = hint
        async with trio.open_nursery() as nursery:
            for _ in range(ALPHA):
                nursery.start_soon(self._work)
        return sorted(self.answered, key=self._distance)[:K]

    async def _work(self) -> None:
        while True:
            hint = self._next()
            if hint is not None:
                await self._query(hint)
            elif self._running:
                await self._news.wait()
            else:
                return

    def _next(self) -> Hint | None:
        """The closest of the K closest that was not asked yet; those that need no dial first."""
        closest = sorted((peer for peer in self._hints if peer not in self._failed), key=self._distance)[:K]
        unasked = [peer for peer in closest if peer not in self._asked]
        if not unasked or self._left <= 0:
            return None
        return self._hints[min(unasked, key=lambda peer: (not self._is_connected(peer), self._distance(peer)))]

    async def _query(self, hint: Hint) -> None:
        peer = hint.known.peer
        self._asked.add(peer)
        self._left -= 1
        self._running += 1
        try:
            answer = await self._ask(hint)
        except (PeerError, EncodingInvalid) as error:
            _log.debug("p2p.lookup_no_answer", peer=peer, error=error.code)
            self._failed.add(peer)
        else:
            self.answered.add(peer)
            self._take(peer, answer)
            self._learned(peer, answer)
        finally:
            self._running -= 1
            self._news.set()
            self._news = trio.Event()

    def _take(self, teller: PeerId, answer: KadMessage) -> None:
        ip = self._ip_of(teller)
        strangers = 0
        for known in sorted(answer.closer, key=lambda known: self._distance(known.peer)):
            if known.peer == self._me or known.peer in self._hints:
                continue
            if not self._is_connected(known.peer):
                strangers += 1
                if strangers > _STRANGERS_PER_ANSWER or not known.endpoints:
                    continue
            self._hints[known.peer] = Hint(known=known, teller_ip=ip)

    def _distance(self, peer: PeerId) -> int:
        return self._place ^ place_of_peer(peer)
