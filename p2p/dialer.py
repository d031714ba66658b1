"""Keeps us connected, trio side: dials whom the address book names, with back-off, and remembers who answered.

The only place that dials: libp2p's own dialling is switched off in `p2p.host`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio

from market.errors import EncodingInvalid, PeerError, PeerGone
from market.identity import PeerId
from p2p.addressbook import AddressBook
from p2p.endpoints import Endpoint, may_dial, parse_endpoint
from p2p.host import Host
from p2p.limits import NetworkLimits

_TICK_S = 0.25
_AT_ONCE = 4
_SAVE_EVERY_S = 30.0
_FOUND = 256
"""Providers whose addresses we keep for the next question to them: twelve look-ups' worth."""

_log = structlog.get_logger()


class Dialer:
    def __init__(self, host: Host, book: AddressBook, limits: NetworkLimits, path: Path | None) -> None:
        self._host = host
        self._book = book
        self._limits = limits
        self._path = path
        self._dialling: dict[PeerId, trio.Event] = {}
        self._visits = trio.CapacityLimiter(limits.dht_dials)
        self._saved = ""
        self._found: dict[PeerId, tuple[Endpoint, ...]] = {}

    async def run(self) -> None:
        """Dial whoever is due, for ever."""
        await self._load()
        next_save_s = time.monotonic() + _SAVE_EVERY_S
        async with trio.open_nursery() as nursery:
            while True:
                for peer in self._due()[: max(0, _AT_ONCE - len(self._dialling))]:
                    nursery.start_soon(self._try, peer)
                if time.monotonic() >= next_save_s:
                    await self.save()
                    next_save_s = time.monotonic() + _SAVE_EVERY_S
                await trio.sleep(_TICK_S)

    async def connect(self, endpoint: Endpoint) -> None:
        """The user names a peer: kept, and dialled at once. Raises PeerGone or PeerTimedOut."""
        if endpoint.peer is None:
            raise EncodingInvalid(f"{endpoint} lacks /p2p/<peer id>.", next_step="Paste the whole address.")
        self._book.add(endpoint, is_kept=True)
        await self.reach(endpoint.peer)

    async def reach(self, peer: PeerId, beside: Sequence[Endpoint] = ()) -> None:
        """Make sure a peer is connected, at any address we know or are given. Raises PeerGone or PeerTimedOut.

        The limit per /24 is not asked here: it guards whom our view of the mesh comes from, not whom we hire.
        """
        while not self._host.is_connected(peer):
            under_way = self._dialling.get(peer)
            if under_way is None:
                return await self._dial(peer, (*self._book.of(peer), *beside, *self._found.get(peer, ())))
            await under_way.wait()
        return None

    async def visit(self, peer: PeerId, endpoints: Sequence[Endpoint], *, from_ip: str | None) -> None:
        """Reach a stranger where somebody, connected from `from_ip`, says it is. Raises PeerGone or PeerTimedOut.

        A few at once, whoever asks; and the address book forgets it again: what a look-up meets on its way may
        not become our view of the mesh.
        """
        if not self._host.is_connected(peer):
            allowed = [each for each in endpoints if may_dial(each, heard_from_ip=from_ip)]
            async with self._visits:
                await self.reach(peer, allowed)

    def remember(self, peer: PeerId, endpoints: Sequence[Endpoint], *, from_ip: str | None) -> None:
        """Where somebody, connected from `from_ip`, says that a provider is, which we found there: for `reach` alone,
        should it hang up meanwhile. Dialled only when it is asked for something; the oldest are forgotten."""
        self._found.pop(peer, None)
        self._found[peer] = tuple(each for each in endpoints if may_dial(each, heard_from_ip=from_ip))
        if len(self._found) > _FOUND:
            del self._found[next(iter(self._found))]

    def addresses_of(self, peer: PeerId) -> tuple[Endpoint, ...]:
        """Where a peer may be reached, best first, as far as we know."""
        return self._book.of(peer)

    def lost(self, peer: PeerId) -> None:
        self._book.lost(peer, now_s=time.monotonic())

    def heard(self, addresses: tuple[str, ...], peer: PeerId, *, from_ip: str | None) -> None:
        """A peer's offer names addresses; `from_ip` is where whoever told us is connected from."""
        for address in addresses:
            try:
                endpoint = parse_endpoint(address)
            except EncodingInvalid:
                continue
            if endpoint.peer in (None, peer) and may_dial(endpoint, heard_from_ip=from_ip):
                self._book.add(Endpoint(ip=endpoint.ip, port=endpoint.port, peer=peer))

    async def save(self) -> None:
        """Write the address book, whole or not at all."""
        text = self._book.to_json()
        if self._path is None or text == self._saved:
            return
        try:
            await trio.to_thread.run_sync(_write, self._path, text)
            self._saved = text
        except OSError as error:
            _log.warning("p2p.address_book_not_saved", path=str(self._path), error=error.strerror)

    def _due(self) -> tuple[PeerId, ...]:
        connected = self._host.connected()
        remotes = (self._host.remote(peer) for peer in connected if self._host.is_outbound(peer))
        return self._book.due(
            now_s=time.monotonic(),
            connected={*connected, *self._dialling},
            outbound_ips=[remote[0] for remote in remotes if remote],
        )

    async def _try(self, peer: PeerId) -> None:
        try:
            await self.reach(peer)
        except PeerError as error:
            _log.debug("p2p.dial_failed", peer=peer, error=error.message)

    async def _dial(self, peer: PeerId, endpoints: Sequence[Endpoint]) -> None:
        done = self._dialling[peer] = trio.Event()
        failure: PeerError = PeerGone(f"no address of {peer} is known.", peer=peer)
        try:
            for endpoint in endpoints:
                try:
                    await self._host.dial(endpoint)
                except PeerError as error:
                    failure = error
                else:
                    return self._book.answered(peer, endpoint)
            wait_s = self._book.failed(peer, now_s=time.monotonic(), jitter=random.random())  # noqa: S311
            _log.debug("p2p.dial_again", peer=peer, wait_s=round(wait_s, 1))
            raise failure
        finally:
            del self._dialling[peer]
            done.set()

    async def _load(self) -> None:
        if self._path is None:
            return
        try:
            self._book.load_json(await trio.Path(self._path).read_text())
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, EncodingInvalid) as error:
            _log.warning("p2p.address_book_ignored", path=str(self._path), error=str(error))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
