"""Signed catalogs that this node follows, and those it publishes itself: kept on disk, asked for again and again.

Lives here: which is the newest of each, and whom to ask. A catalog is asked of connected peers; each answer is checked
by signature and number, so that it does not matter who gave it. Rules and words are `inference.models.catalog`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from inference.models.catalog import (
    CATALOG_LIMIT_BYTES,
    Catalog,
    CatalogEntry,
    newer,
    read_catalog,
    sign_catalog,
)
from market.errors import ContentUnavailable, ModelUntrusted, OctoError, RequestInvalid
from market.identity import WalletSigner
from market.ports import Clock
from market.signing import address_text
from node.folder import write_whole
from node.models.choices import Choices
from p2p.network import OctoNetwork

log = structlog.get_logger()

EVERY_S = 300.0
_ASKED_LIMIT = 8
"""Peers asked for one catalog at a time: the next look asks others, if these were silent."""
_NAME = re.compile(r"(0x[0-9a-fA-F]{40})/([A-Za-z0-9][A-Za-z0-9._+-]{0,127})")


class Catalogs:
    """`folder` holds one file for each catalog. Files are checked like anything else that comes in."""

    def __init__(
        self, folder: Path, choices: Choices, *, wallet: WalletSigner, mesh: OctoNetwork, clock: Clock
    ) -> None:
        self._folder = folder
        self._choices = choices
        self._wallet = wallet
        self._mesh = mesh
        self._clock = clock
        self._known: dict[tuple[bytes, str], tuple[Catalog, bytes]] = {}
        self._news = asyncio.Event()
        self._notes: dict[tuple[bytes, str], str] = {}

    async def load(self) -> None:
        """Read what is on disk; a file that does not check is passed over, and asked for anew."""
        for path in await asyncio.to_thread(lambda: sorted(self._folder.glob("*.cbor"))):
            try:
                block = await asyncio.to_thread(_read, path)
                catalog = await asyncio.to_thread(read_catalog, block)
            except (OctoError, OSError) as error:
                log.warning("catalog_not_read", file=path.name, why=str(error))
                continue
            self._known[catalog.creator, catalog.name] = catalog, block

    def entries(self) -> Sequence[tuple[Catalog, CatalogEntry]]:
        """What the followed and own catalogs list."""
        wanted = {*self._followed(), *self._own()}
        known = [catalog for key, (catalog, _) in self._known.items() if key in wanted]
        return [(catalog, entry) for catalog in known for entry in catalog.entries]

    def block(self, creator: bytes, name: str) -> bytes:
        """The newest that we know, for others. Raises ContentUnavailable."""
        known = self._known.get((creator, name))
        if known is None:
            raise ContentUnavailable("this node knows no such catalog.")
        return known[1]

    def told(self) -> Sequence[Mapping[str, str]]:
        """For people: each followed or own catalog and how it stands."""
        said = []
        for key in {**dict.fromkeys(self._followed()), **dict.fromkeys(self._own())}:
            creator, name = key
            known = self._known.get(key)
            note = f"{len(known[0].entries)} models, number {known[0].seq}" if known else "not found yet"
            if self._notes.get(key):
                note += f"; {self._notes[key]}"
            said.append({"entry": f"{address_text(creator)}/{name}", "note": note})
        return said

    async def publish(self, name: str, entries: Sequence[CatalogEntry]) -> Catalog:
        """Sign a new issue of an own catalog; on disk when this returns. Raises EncodingInvalid, DiskFull."""
        known = self._known.get((self._wallet.address, name))
        catalog = Catalog(
            name=name,
            creator=self._wallet.address,
            seq=known[0].seq + 1 if known else 1,
            issued_ms=self._clock.now_ms(),
            entries=tuple(entries),
        )
        block = sign_catalog(catalog, self._wallet).encoded()
        await self._keep(catalog, block)
        return catalog

    def wake(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Ask for what is followed, until cancelled; at once when something is followed anew or a peer has come."""
        version = 0
        while True:
            self._news.clear()
            for creator, name in self._followed():
                await self.refresh(creator, name)
            version = self._mesh.version
            peers = asyncio.create_task(self._a_peer_comes(version))
            told = asyncio.create_task(self._news.wait())
            try:
                await asyncio.wait([peers, told], timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (peers, told):
                    task.cancel()
                await asyncio.gather(peers, told, return_exceptions=True)

    async def refresh(self, creator: bytes, name: str) -> None:
        """Ask connected peers for one catalog and keep the newest."""
        if creator == self._wallet.address:
            return
        for peer in [peer.peer for peer in self._mesh.peers()][:_ASKED_LIMIT]:
            try:
                await self.take(await self._mesh.catalog(peer, creator, name), creator, name)
            except ContentUnavailable:
                continue
            except OctoError as error:
                log.warning("catalog_refused", catalog=f"{address_text(creator)}/{name}", peer=peer, why=str(error))
                if isinstance(error, ModelUntrusted):
                    self._notes[creator, name] = error.message

    async def take(self, block: bytes, creator: bytes, name: str) -> bool:
        """A catalog from somebody: kept if it was asked for and is newer. Raises EncodingInvalid, ModelUntrusted."""
        catalog = await asyncio.to_thread(read_catalog, block)
        if (catalog.creator, catalog.name) != (creator, name):
            raise RequestInvalid(f"that is {address_text(catalog.creator)}/{catalog.name}, not what was asked for.")
        known = self._known.get((creator, name))
        if known is not None and not newer(known[0], catalog):
            return False
        await self._keep(catalog, block)
        log.info("catalog_followed", catalog=f"{address_text(creator)}/{name}", seq=catalog.seq)
        return True

    async def _keep(self, catalog: Catalog, block: bytes) -> None:
        path = self._folder / f"{catalog.creator.hex()}-{catalog.name}.cbor"
        await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(write_whole, path, block)
        self._known[catalog.creator, catalog.name] = catalog, block

    async def _a_peer_comes(self, version: int) -> None:
        before = {peer.peer for peer in self._mesh.peers()}
        while {peer.peer for peer in self._mesh.peers()} <= before:
            version = await self._mesh.wait_for_change(version)

    def _followed(self) -> list[tuple[bytes, str]]:
        return [parse_catalog_name(entry) for entry in self._choices.all("catalogs")]

    def _own(self) -> list[tuple[bytes, str]]:
        return [key for key in self._known if key[0] == self._wallet.address]


def parse_catalog_name(text: str) -> tuple[bytes, str]:
    """`0x…/name`. Raises RequestInvalid."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise RequestInvalid(
            f"{text[:80]!r} is no catalog.", next_step="Write the creator's wallet and the name: 0x…/NAME."
        )
    return bytes.fromhex(match[1][2:]), match[2]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(CATALOG_LIMIT_BYTES + 1024)
