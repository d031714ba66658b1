"""Makes sure that providers are there: connects to each that a look-up names, and pings it. Trio side.

Names are cheap and dials are not: few at once, those that need none first, then those that most peers name;
and in turns among the peers that name them, so that one liar's list delays an honest name by one dial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from market.errors import PeerError
from market.identity import PeerId
from p2p.kademlia import Known
from p2p.lookup import Hint

_ENOUGH = 8
_NAMES_PER_TELLER = 8
_NAMES = 64

_log = structlog.get_logger()


@dataclass(slots=True)
class _Candidate:
    hint: Hint
    tellers: set[PeerId] = field(default_factory=set)


class Search:
    """Runs beside a look-up; `found` grows as peers prove alive.

    `reach(hint, visited)` connects, in a bounded time, or raises PeerError. `proven(hint)` hears of each that is found.
    """

    def __init__(
        self,
        me: PeerId,
        *,
        at_once: int,
        is_connected: Callable[[PeerId], bool],
        reach: Callable[[Hint, set[PeerId]], Awaitable[None]],
        confirm: Callable[[PeerId], Awaitable[bool]],
        found: list[PeerId],
        proven: Callable[[Hint], None] = lambda _: None,
    ) -> None:
        self._me = me
        self._at_once = at_once
        self._is_connected = is_connected
        self._reach = reach
        self._confirm = confirm
        self._found = found
        self._proven = proven
        self.visited: set[PeerId] = set()
        self._waiting: dict[PeerId, _Candidate] = {}
        self._seen: set[PeerId] = set()
        self._tried: Counter[PeerId] = Counter()
        self._is_closed = False
        self._news = trio.Event()

    def add(self, teller: PeerId, teller_ip: str | None, named: Sequence[Known], *, is_own: bool = False) -> None:
        """`teller` names providers. `is_own`: they said so to us, and we checked their addresses then."""
        news = 0
        for known in named:
            if known.peer in self._waiting:
                self._waiting[known.peer].tellers.add(teller)
            elif known.peer not in self._seen and known.peer != self._me:
                if news >= _NAMES_PER_TELLER or len(self._seen) >= _NAMES:
                    break
                news += 1
                ip = known.endpoints[0].ip if is_own and known.endpoints else teller_ip
                self._seen.add(known.peer)
                self._waiting[known.peer] = _Candidate(Hint(known=known, teller_ip=ip), {teller})
        self._wake()

    def close(self) -> None:
        """No more names will come."""
        self._is_closed = True
        self._wake()

    async def run(self, scope: trio.CancelScope) -> None:
        """Until every name was tried, or enough have proven alive, which ends the look-up too."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(self._work, scope)

    async def _work(self, scope: trio.CancelScope) -> None:
        while True:
            if self._waiting:
                peer = max(self._waiting, key=self._promise)
                candidate = self._waiting.pop(peer)
                self._tried.update(candidate.tellers)
                if await self._is_there(candidate.hint):
                    self._found.append(peer)
                    self._proven(candidate.hint)
                    if len(self._found) >= _ENOUGH:
                        scope.cancel()
            elif self._is_closed:
                return
            else:
                await self._news.wait()

    def _promise(self, peer: PeerId) -> tuple[bool, int, int]:
        tellers = self._waiting[peer].tellers
        return self._is_connected(peer), len(tellers), -min(self._tried[teller] for teller in tellers)

    async def _is_there(self, hint: Hint) -> bool:
        peer = hint.known.peer
        try:
            await self._reach(hint, self.visited)
            return await self._confirm(peer)
        except PeerError as error:
            _log.debug("p2p.provider_not_there", peer=peer, error=error.code)
            return False

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
