"""Kademlia's geometry: where a key lies, who is close to it, whom to remember. Pure.

Maymounkov and Mazières, "Kademlia" (2002); https://github.com/libp2p/specs/tree/master/kad-dht: a key is
placed by its sha-256, a peer by the sha-256 of its id in bytes, K = 20, distance is XOR.

`p2p.dht` says why this is not libp2p's own KadDHT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache

from libp2p.peer.id import ID

from market.identity import PeerId
from market.values import cid_digest, value
from p2p.endpoints import Endpoint, reach_of, subnet_of

K = 20
ENDPOINTS_LIMIT = 8
_PER_SUBNET = 2


@value
class Known:
    """A peer and where it may be reached, as somebody says; at most ENDPOINTS_LIMIT places."""

    peer: PeerId
    endpoints: tuple[Endpoint, ...]


def key_of(cid: str) -> bytes:
    """The sha2-256 multihash (34 bytes) under which providers of a CIDv1 are recorded; raises EncodingInvalid."""
    return b"\x12\x20" + cid_digest(cid)


@lru_cache(maxsize=4_096)
def place_of(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def place_of_peer(peer: PeerId) -> int:
    return place_of(peer_bytes(peer))


@lru_cache(maxsize=4_096)
def peer_bytes(peer: PeerId) -> bytes:
    """A peer id as it travels in Kademlia's messages."""
    return bytes(ID.from_string(peer).to_bytes())


def nearest(key: bytes, peers: Iterable[PeerId], count: int = K) -> list[PeerId]:
    """The `count` peers closest to a key, closest first."""
    place = place_of(key)
    return sorted(peers, key=lambda peer: place_of_peer(peer) ^ place)[:count]


class Contacts:
    """The routing table: up to K peers at each distance from us, those that have been there longest first.

    A newcomer finds a place in a full bucket only where somebody is no longer connected, so that a flood of new
    identities displaces nobody; and at most two of a bucket come from one public /24 (IPv6: /48).
    """

    def __init__(self, me: PeerId, *, is_connected: Callable[[PeerId], bool]) -> None:
        self._place = place_of_peer(me)
        self._me = me
        self._is_connected = is_connected
        self._buckets: dict[int, dict[PeerId, Known]] = {}

    def add(self, known: Known) -> bool:
        """Remember a peer that has answered us; True if it is new here."""
        peer = known.peer
        if peer == self._me:
            return False
        bucket = self._buckets.setdefault((place_of_peer(peer) ^ self._place).bit_length(), {})
        if peer in bucket:
            bucket[peer] = known
            return False
        subnet = _public_subnet(known)
        if subnet is not None and sum(_public_subnet(each) == subnet for each in bucket.values()) >= _PER_SUBNET:
            return False
        if len(bucket) >= K:
            gone = next((each for each in bucket if not self._is_connected(each)), None)
            if gone is None:
                return False
            del bucket[gone]
        bucket[peer] = known
        return True

    def drop(self, peer: PeerId) -> None:
        for bucket in self._buckets.values():
            bucket.pop(peer, None)

    def nearest(self, key: bytes) -> list[Known]:
        everyone = {peer: known for bucket in self._buckets.values() for peer, known in bucket.items()}
        return [everyone[peer] for peer in nearest(key, everyone)]

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))


def _public_subnet(known: Known) -> str | None:
    ip = known.endpoints[0].ip if known.endpoints else None
    return subnet_of(ip) if ip is not None and reach_of(ip) == "public" else None
