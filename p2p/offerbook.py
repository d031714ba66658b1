"""The newest checked offer of each peer, and why the others were refused. Pure: the time comes in as a number."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, auto

from market.errors import EncodingInvalid
from market.identity import PeerId
from market.offer import OFFER_LIMIT_BYTES, CheckedOffer, Offer, SignedOffer, check_offer
from market.values import decode, value

REFUSED_LIMIT = 256
_FLOOR_LIMIT = 8_192


@value
class RefusedOffer:
    """`peer` is who the offer claims to be from (empty if it cannot be read), `via` who brought it."""

    peer: str
    via: str
    reason: str
    at_ms: int


class Verdict(Enum):
    """What became of an offer. NEW and KNOWN ones are worth passing on; OLD ones silently end here."""

    NEW = auto()
    KNOWN = auto()
    OLD = auto()
    REFUSED = auto()


@value
class _Entry:
    signed: SignedOffer
    checked: CheckedOffer


class OfferBook:
    """Takes signed offers, keeps those that hold. `me` is our own peer id: our own offer is never kept."""

    def __init__(self, *, network: str, me: PeerId, limit: int) -> None:
        self._network = network
        self._me = me
        self._limit = limit
        self._entries: dict[str, _Entry] = {}
        self._floors: OrderedDict[str, int] = OrderedDict()  # seq below which nothing of a peer comes back
        self._refused: OrderedDict[tuple[str, str, str], RefusedOffer] = OrderedDict()

    def take(self, signed: SignedOffer, *, via: str, now_ms: int) -> Verdict:
        """Check an offer and keep it if it is its peer's newest. Costs 0.5 ms when all signatures are checked."""
        peer = ""
        try:
            # Cheap checks before expensive ones: a replayed offer costs no signature.
            offer = decode(Offer, signed.body, limit_bytes=OFFER_LIMIT_BYTES)
            peer = offer.peer
            entry = self._entries.get(peer)
            if entry is not None and entry.signed == signed:
                return Verdict.KNOWN
            floor = self._floors.get(peer, -1)
            if offer.seq < floor or (offer.seq == floor and entry is None):
                return Verdict.OLD  # renewed since, or dropped with its peer, and still going round: gossip remembers
            checked = check_offer(signed, network=self._network, now_ms=now_ms)
            if offer.seq <= floor:
                raise EncodingInvalid(f"the offer's seq {offer.seq} is not above {floor}, the last one seen.")
            if peer == self._me:
                return Verdict.KNOWN
            if entry is None and len(self._entries) >= self._limit:
                self.expire(now_ms)
                if len(self._entries) >= self._limit:
                    raise EncodingInvalid(f"the book is full with {self._limit} live offers.")
        except EncodingInvalid as error:
            self._note_refused(RefusedOffer(peer=peer, via=via, reason=error.message, at_ms=now_ms))
            return Verdict.REFUSED
        self._entries[peer] = _Entry(signed=signed, checked=checked)
        self._set_floor(peer, offer.seq)
        return Verdict.NEW

    def live(self, now_ms: int) -> tuple[CheckedOffer, ...]:
        return tuple(entry.checked for entry in self._entries.values() if entry.checked.offer.expires_ms > now_ms)

    def signed(self, now_ms: int) -> tuple[SignedOffer, ...]:
        """The live offers as they were signed, for a peer that is new here."""
        return tuple(entry.signed for entry in self._entries.values() if entry.checked.offer.expires_ms > now_ms)

    def refused(self) -> tuple[RefusedOffer, ...]:
        """The latest refusals, oldest first; one per peer, bringer and reason."""
        return tuple(self._refused.values())

    def expire(self, now_ms: int) -> bool:
        """Forget what has expired; True if anything had."""
        over = [peer for peer, entry in self._entries.items() if entry.checked.offer.expires_ms <= now_ms]
        for peer in over:
            del self._entries[peer]
        return bool(over)

    def holds(self, peer: PeerId) -> bool:
        """Whether an offer of this peer is kept, expired or not."""
        return peer in self._entries

    def drop(self, peer: PeerId) -> bool:
        """The peer is gone: its offer goes too, and does not come back through others. True if there was one."""
        return self._entries.pop(peer, None) is not None

    def readmit(self, peer: PeerId) -> None:
        """The peer is back: the offer it had may count again."""
        if peer in self._floors and peer not in self._entries:
            self._floors[peer] -= 1

    def _set_floor(self, peer: str, seq: int) -> None:
        self._floors[peer] = seq
        self._floors.move_to_end(peer)
        while len(self._floors) > _FLOOR_LIMIT:
            self._floors.popitem(last=False)

    def _note_refused(self, refused: RefusedOffer) -> None:
        key = (refused.peer, refused.via, refused.reason)
        self._refused[key] = refused
        self._refused.move_to_end(key)
        while len(self._refused) > REFUSED_LIMIT:
            self._refused.popitem(last=False)
