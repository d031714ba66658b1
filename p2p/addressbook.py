"""Whom to dial next, and where. Pure: time and chance come in as numbers; `p2p.dialer` acts on the answers.

Kept peers (bootstrap, typed in by the user) are dialled for ever; learned ones until they have failed often
enough. At most two outbound peers per /24 off loopback, so that one rack cannot become our whole view.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from market.errors import EncodingInvalid
from market.identity import PeerId
from market.values import from_plain, value
from p2p.endpoints import Endpoint, parse_endpoint, subnet_of
from p2p.limits import NetworkLimits

PEERS_LIMIT = 1_024
ADDRESSES_LIMIT = 8
_GIVE_UP_AFTER = 10
_FILE_LIMIT_BYTES = 1024 * 1024


@value
class BookFile:
    """The address book on disk: addresses where the peer really answered, so that a restart needs no bootstrap."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    addresses: Annotated[tuple[str, ...], Field(max_length=PEERS_LIMIT)]


@dataclass(slots=True)
class _Known:
    is_kept: bool = False
    endpoints: list[Endpoint] = field(default_factory=list)
    answered: Endpoint | None = None
    failures: int = 0
    due_s: float = 0.0


class AddressBook:
    def __init__(self, *, me: PeerId, limits: NetworkLimits) -> None:
        self._me = me
        self._limits = limits
        self._known: dict[PeerId, _Known] = {}

    def add(self, endpoint: Endpoint, *, is_kept: bool = False) -> None:
        """Remember where a peer may be reached; ignores ourselves, and strangers once the book is full."""
        peer = endpoint.peer
        if peer is None or peer == self._me:
            return
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= PEERS_LIMIT and not is_kept:
                return
            known = self._known[peer] = _Known()
        known.is_kept |= is_kept
        if endpoint not in known.endpoints:
            # The newest first: a peer that moved says so in its next offer.
            known.endpoints.insert(0, endpoint)
            del known.endpoints[ADDRESSES_LIMIT:]

    def of(self, peer: PeerId) -> tuple[Endpoint, ...]:
        """Where to try a peer, best first: where it answered last time, then what it said."""
        known = self._known.get(peer)
        if known is None:
            return ()
        first = (known.answered,) if known.answered else ()
        return (*first, *(endpoint for endpoint in known.endpoints if endpoint != known.answered))

    def due(self, *, now_s: float, connected: Collection[PeerId], outbound_ips: Iterable[str]) -> tuple[PeerId, ...]:
        """Peers to dial now. `outbound_ips` are the other ends of connections that we opened."""
        taken: dict[str, int] = {}
        outbound = 0
        for ip in outbound_ips:
            outbound += 1
            _count(taken, ip)
        chosen = []
        for peer, known in sorted(self._known.items(), key=lambda item: not item[1].is_kept):
            if peer in connected or known.due_s > now_s or not known.endpoints:
                continue
            if not known.is_kept:
                subnet = subnet_of(self.of(peer)[0].ip)
                if outbound >= self._limits.outbound_peers or (
                    subnet is not None and taken.get(subnet, 0) >= self._limits.peers_per_subnet
                ):
                    continue
            outbound += 1
            _count(taken, self.of(peer)[0].ip)
            chosen.append(peer)
        return tuple(chosen)

    def answered(self, peer: PeerId, endpoint: Endpoint) -> None:
        """A dial worked: noise has proven that the peer is there. Says nothing of a peer that is not in the book."""
        known = self._known.get(peer)
        if known is not None:
            known.answered, known.failures, known.due_s = endpoint, 0, 0.0

    def lost(self, peer: PeerId, *, now_s: float) -> None:
        """A connection ended; wait a little, for a peer that hangs up as soon as it has answered."""
        known = self._known.get(peer)
        if known is not None:
            known.due_s = now_s + self._limits.reconnect_min_s

    def failed(self, peer: PeerId, *, now_s: float, jitter: float) -> float:
        """A dial failed at every address. Doubles the wait, 1 to 60 s; `jitter` in 0…1 takes up to a quarter off.

        Returns the wait in seconds.
        """
        known = self._known.get(peer)
        if known is None:
            return 0.0
        wait_s = min(self._limits.reconnect_min_s * 2.0**known.failures, self._limits.reconnect_max_s)
        wait_s *= 1 - jitter / 4
        known.failures += 1
        known.due_s = now_s + wait_s
        if known.failures >= _GIVE_UP_AFTER and not known.is_kept:
            del self._known[peer]
        return wait_s

    def to_json(self) -> str:
        addresses = [str(known.answered) for known in self._known.values() if known.answered]
        return json.dumps({"version": 1, "addresses": addresses}, indent=1) + "\n"

    def load_json(self, text: str) -> None:
        """Add what a book file says; raises EncodingInvalid for one that is damaged."""
        if len(text) > _FILE_LIMIT_BYTES:
            raise EncodingInvalid(f"the address book holds {len(text)} bytes; {_FILE_LIMIT_BYTES} is the limit.")
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError):
            raise EncodingInvalid("the address book is not JSON.") from None
        for address in from_plain(BookFile, plain).addresses:
            self.add(parse_endpoint(address))


def _count(taken: dict[str, int], ip: str) -> None:
    subnet = subnet_of(ip)
    if subnet is not None:
        taken[subnet] = taken.get(subnet, 0) + 1
