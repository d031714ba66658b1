"""Provider records in a DHT, trio side: who has the content of a root CID, for those who have met nobody with it.

Only for cold look-up: a record says who once had something. Whoever is found was connected to and pinged first.

The messages are Kademlia's, so go, js and py libp2p understand them; the machinery is our own. libp2p 0.8.1's
KadDHT cannot be tamed from outside: its protocol id is fixed to /ipfs (`protocol_prefix` changes nothing), it
dials whatever strangers name, 12 silent streams stop it for good, it stores 50,000 values of 1 MiB for anyone,
and it counts one provider's record twenty times until others are crowded out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
import trio

from market.errors import EncodingInvalid, PeerError, PeerGone, PeerTimedOut
from market.identity import PeerId
from p2p.dialer import Dialer
from p2p.endpoints import Endpoint, may_dial, parse_endpoint
from p2p.host import Host, guarded, quietly_reset
from p2p.kademlia import ENDPOINTS_LIMIT, Contacts, Known, key_of, peer_bytes
from p2p.kadserver import KadServer, read_kad
from p2p.kadwire import KAD_PROTOCOL, KadMessage, Kind, kad_frame, parse_kad
from p2p.limits import NetworkLimits
from p2p.lookup import Hint, Lookup
from p2p.providers import ProviderRecords
from p2p.search import Search

_RETRY_S = 60.0
_PASSED = 32
_SETTLED_AFTER = 3  # paces; who only passes by in a look-up of its own has left by then

_log = structlog.get_logger()


@dataclass(slots=True)
class _Root:
    """Something that we provide. `told` are the peers that were given the record since they last connected,
    `checked` is the state of the contacts in which all of those near were found told."""

    key: bytes
    due_s: float = 0.0
    told: set[PeerId] = field(default_factory=set)
    checked: int = 0


class Dht:
    """`confirm(peer)`: whether a connected peer is alive. `is_used(peer)`: whether it may not be hung up on."""

    def __init__(
        self,
        host: Host,
        dialer: Dialer,
        records: ProviderRecords,
        limits: NetworkLimits,
        *,
        me: PeerId,
        nursery: trio.Nursery,
        confirm: Callable[[PeerId], Awaitable[bool]],
        is_used: Callable[[PeerId], bool],
    ) -> None:
        self._host = host
        self._dialer = dialer
        self._records = records
        self._limits = limits
        self._me = me
        self._nursery = nursery
        self._confirm = confirm
        self._is_used = is_used
        self._contacts = Contacts(me, is_connected=host.is_connected)
        self._roots: dict[str, _Root] = {}
        self._news = trio.Event()
        self._changes = 1
        self._server = KadServer(host, records, limits, closest=self._closest, met=self._met)

    # ---- what the node asks for -------------------------------------------------------------------

    async def provide(self, cid: str) -> None:
        """Say to the mesh that we have a root, from now on; the saying itself goes on in the background."""
        self._roots.setdefault(cid, _Root(key=key_of(cid)))
        self._news.set()

    async def stop_providing(self, cid: str) -> None:
        """Say it no more. Records that others keep fade within 48 h; whoever follows one asks us, and we refuse."""
        self._roots.pop(cid, None)

    async def find_providers(self, cid: str, timeout_s: float, found: list[PeerId]) -> None:
        """Append peers that say they have a root, each connected and pinged just now. Ends in `timeout_s`."""
        key = key_of(cid)
        search = Search(
            self._me,
            at_once=self._limits.dht_dials,
            is_connected=self._host.is_connected,
            reach=self._reach,
            confirm=self._confirm,
            found=found,
            proven=self._remember,
        )
        visited: set[PeerId] = set()

        def learned(teller: PeerId, answer: KadMessage) -> None:
            search.add(teller, self._ip_of(teller), answer.providers)

        try:
            with trio.move_on_after(timeout_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(search.run, nursery.cancel_scope)
                    search.add(self._me, None, self._records.of(key, now_s=time.monotonic()), is_own=True)
                    await self._look_up("GET_PROVIDERS", key, visited, learned)
                    search.close()
        finally:
            visited |= search.visited
            self._hang_up(visited.difference(found))

    # ---- what happens to us -----------------------------------------------------------------------

    def connected(self, peer: PeerId) -> None:
        self._nursery.start_soon(guarded(self._meet, "dht greeting"), peer)

    async def run(self) -> None:
        """Publish what we provide, for ever. Its own failures end nothing but the round."""
        while True:
            await guarded(self._publish, "dht publishing")()
            await trio.sleep(self._limits.restart_min_s)

    # ---- publishing -------------------------------------------------------------------------------

    async def _publish(self) -> None:
        passed: set[PeerId] = set()
        while True:
            now_s = time.monotonic()
            root = next((each for each in self._roots.values() if self._is_wanting(each, now_s)), None)
            if root is None or len(passed) > _PASSED:
                self._hang_up(passed)
                passed = set()
            if root is None:
                due_s = min((each.due_s for each in self._roots.values()), default=float("inf"))
                with trio.move_on_after(max(1.0, due_s - now_s)):
                    await self._news.wait()
                self._news = trio.Event()
                continue
            await self._tell(root, now_s, passed)
            await trio.sleep(self._limits.dht_pace_s)  # servers count: a root after the other

    def _is_wanting(self, root: _Root, now_s: float) -> bool:
        if root.due_s <= now_s:
            return bool(len(self._contacts))
        if root.checked < self._changes and not self._untold(root):
            root.checked = self._changes
        return root.checked < self._changes

    def _untold(self, root: _Root) -> list[Known]:
        return [known for known in self._contacts.nearest(root.key) if known.peer not in root.told]

    async def _tell(self, root: _Root, now_s: float, visited: set[PeerId]) -> None:
        """Give the record to those close to the key: all of them when it is due, else those that are new."""
        is_due = root.due_s <= now_s
        if is_due:
            root.due_s = now_s + _RETRY_S
            root.told.clear()
            await self._look_up("FIND_NODE", root.key, visited)
        me = Known(peer=self._me, endpoints=self._own_endpoints())
        message = KadMessage(kind="ADD_PROVIDER", key=root.key, providers=(me,))
        kept = 0
        for known in self._untold(root):
            root.told.add(known.peer)
            try:
                await self._ask(_hint(known), message, visited)
                kept += 1
            except (PeerError, EncodingInvalid) as error:
                _log.debug("p2p.dht_record_refused", peer=known.peer, error=error.code)
        if is_due and kept:
            root.due_s = now_s + self._limits.dht_republish_s * random.uniform(0.9, 1.1)  # noqa: S311
        _log.debug("p2p.dht_provided", key=root.key.hex(), peers=kept)

    def _own_endpoints(self) -> tuple[Endpoint, ...]:
        found = []
        for address in self._host.addresses():
            try:
                found.append(parse_endpoint(address))
            except EncodingInvalid:
                continue
        return tuple(found[:ENDPOINTS_LIMIT])

    # ---- asking -----------------------------------------------------------------------------------

    async def _meet(self, peer: PeerId) -> None:
        """Somebody connected: whoever answers about our own place in the DHT is part of it.

        One that stays may have been here before, and have come back with an empty memory.
        """
        await self._ask(Hint(known=Known(peer=peer, endpoints=()), teller_ip=None), self._question("FIND_NODE"), set())
        self._met(peer)
        await trio.sleep(_SETTLED_AFTER * self._limits.dht_pace_s)
        if self._host.is_connected(peer):
            for root in self._roots.values():
                root.told.discard(peer)
            self._note_change()

    def _question(self, kind: Kind, key: bytes = b"") -> KadMessage:
        return KadMessage(kind=kind, key=key or peer_bytes(self._me))

    async def _look_up(
        self,
        kind: Kind,
        key: bytes,
        visited: set[PeerId],
        learned: Callable[[PeerId, KadMessage], None] = lambda _, __: None,
    ) -> None:
        """Ask towards a key, for so long at most; who answers is a contact from then on."""

        async def ask(hint: Hint) -> KadMessage:
            answer = await self._ask(hint, self._question(kind, key), visited)
            self._met(hint.known.peer)
            return answer

        lookup = Lookup(
            key,
            me=self._me,
            queries=self._limits.dht_queries,
            ask=ask,
            is_connected=self._host.is_connected,
            ip_of=self._ip_of,
            learned=learned,
        )
        with trio.move_on_after(self._limits.dht_lookup_timeout_s):
            await lookup.run([_hint(known) for known in self._contacts.nearest(key)])

    async def _ask(self, hint: Hint, message: KadMessage, visited: set[PeerId]) -> KadMessage:
        """One question and its answer. Raises PeerGone, PeerTimedOut or EncodingInvalid."""
        peer = hint.known.peer
        try:
            with trio.fail_after(self._limits.dht_query_timeout_s):
                await self._reach(hint, visited)
                stream = await self._host.open_stream(peer, KAD_PROTOCOL)
                try:
                    await stream.write(kad_frame(message))
                    answer = parse_kad(await read_kad(stream))
                finally:
                    await quietly_reset(stream)
        except (PeerError, EncodingInvalid):
            self._forget_if_gone(peer)
            raise
        except trio.TooSlowError:
            self._forget_if_gone(peer)
            raise PeerTimedOut(f"{peer} gave no answer about the DHT.", peer=peer) from None
        except Exception as error:  # noqa: BLE001 - libp2p's many kinds of a dead stream
            raise PeerGone(f"{peer} gave no answer about the DHT: {type(error).__name__}.", peer=peer) from None
        if answer.kind != message.kind:
            raise EncodingInvalid(f"{peer} answers {message.kind} with {answer.kind}.")
        return answer

    async def _reach(self, hint: Hint, visited: set[PeerId]) -> None:
        peer = hint.known.peer
        if self._host.is_connected(peer):
            return
        is_stranger = not self._dialer.addresses_of(peer)
        try:
            with trio.fail_after(self._limits.dht_query_timeout_s):
                await self._dialer.visit(peer, hint.known.endpoints, from_ip=hint.teller_ip)
        except trio.TooSlowError:
            raise PeerTimedOut(f"{peer} was not reached in time.", peer=peer) from None
        if is_stranger:
            visited.add(peer)

    # ---- whom we know -----------------------------------------------------------------------------

    def _met(self, peer: PeerId) -> None:
        if self._contacts.add(Known(peer=peer, endpoints=self._endpoints_of(peer))):
            self._note_change()

    def _note_change(self) -> None:
        self._changes += 1
        self._news.set()

    def _forget_if_gone(self, peer: PeerId) -> None:
        if not self._host.is_connected(peer):
            self._contacts.drop(peer)

    def _closest(self, key: bytes, asker: PeerId) -> tuple[Known, ...]:
        found = (known for known in self._contacts.nearest(key) if known.peer != asker)
        now = (Known(peer=each.peer, endpoints=self._endpoints_of(each.peer) or each.endpoints) for each in found)
        return tuple(known for known in now if known.endpoints)

    def _endpoints_of(self, peer: PeerId) -> tuple[Endpoint, ...]:
        """Where it answered, what its offer says, where we dialled it; else what it claims, within the rules."""
        known = self._dialer.addresses_of(peer)
        if known:
            return known[:ENDPOINTS_LIMIT]
        remote = self._host.remote(peer)
        if remote is None:
            return ()
        if self._host.is_outbound(peer):
            return (Endpoint(ip=remote[0], port=remote[1], peer=peer),)
        claimed = []
        for address in self._host.claimed_addresses(peer)[: 2 * ENDPOINTS_LIMIT]:
            try:
                endpoint = parse_endpoint(address)
            except EncodingInvalid:
                continue
            if endpoint.peer in (None, peer) and may_dial(endpoint, heard_from_ip=remote[0]):
                claimed.append(Endpoint(ip=endpoint.ip, port=endpoint.port, peer=peer))
        return tuple(claimed[:ENDPOINTS_LIMIT])

    def _ip_of(self, peer: PeerId) -> str | None:
        remote = self._host.remote(peer)
        return remote[0] if remote else None

    def _remember(self, hint: Hint) -> None:
        """It may hang up before it is asked for anything: it may have met us on a look-up of its own."""
        self._dialer.remember(hint.known.peer, hint.known.endpoints, from_ip=hint.teller_ip)

    def _hang_up(self, visited: set[PeerId]) -> None:
        """Whom we only passed by does not stay: strangers' names may not become our view of the mesh."""
        for peer in visited:
            if self._host.is_connected(peer) and not self._is_used(peer):
                self._nursery.start_soon(guarded(self._host.abort, "hanging up"), peer)


def _hint(known: Known) -> Hint:
    """A contact of our own: its addresses were checked when we learned them."""
    return Hint(known=known, teller_ip=known.endpoints[0].ip if known.endpoints else None)
