"""Who has said to us that it provides what: records that strangers store here, so everything is bounded. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict

from market.identity import PeerId
from market.values import value
from p2p.kademlia import K, Known

RECORD_LASTS_S = 48 * 3600.0
"""As in IPFS. It says who once had something, never who is there now."""


@value
class _Record:
    known: Known
    until_s: float


class ProviderRecords:
    """At most `limit` records, `per_peer` of one provider, K for one key.

    Over the whole limit the peer with most records loses its oldest: whoever floods pushes out itself.
    """

    def __init__(self, *, limit: int, per_peer: int) -> None:
        self._limit = limit
        self._per_peer = per_peer
        self._keys: dict[bytes, dict[PeerId, _Record]] = {}
        self._of_peer: dict[PeerId, OrderedDict[bytes, None]] = {}
        self._count = 0

    def put(self, key: bytes, provider: Known, *, now_s: float) -> bool:
        """Keep or renew a provider's word; False if there is no room for it."""
        peer = provider.peer
        held = self._keys.get(key, {})
        if peer not in held:
            self._expire(key, now_s)
            held = self._keys.get(key, {})
            if len(held) >= K or len(self._of_peer.get(peer, ())) >= self._per_peer:
                return False
            if self._count >= self._limit:
                self._drop_one()
            held = self._keys.setdefault(key, {})
            self._count += 1
        held[peer] = _Record(known=provider, until_s=now_s + RECORD_LASTS_S)
        mine = self._of_peer.setdefault(peer, OrderedDict())
        mine[key] = None
        mine.move_to_end(key)
        return True

    def of(self, key: bytes, *, now_s: float) -> tuple[Known, ...]:
        self._expire(key, now_s)
        return tuple(record.known for record in self._keys.get(key, {}).values())

    def expire(self, *, now_s: float) -> None:
        for key in tuple(self._keys):
            self._expire(key, now_s)

    def __len__(self) -> int:
        return self._count

    def _expire(self, key: bytes, now_s: float) -> None:
        held = self._keys.get(key, {})
        for peer in [peer for peer, record in held.items() if record.until_s <= now_s]:
            self._drop(key, peer)

    def _drop_one(self) -> None:
        counts = Counter({peer: len(keys) for peer, keys in self._of_peer.items()})
        [(peer, _)] = counts.most_common(1)
        self._drop(next(iter(self._of_peer[peer])), peer)

    def _drop(self, key: bytes, peer: PeerId) -> None:
        held, mine = self._keys[key], self._of_peer[peer]
        del held[peer], mine[key]
        if not held:
            del self._keys[key]
        if not mine:
            del self._of_peer[peer]
        self._count -= 1
