"""What mesh peers get from us, and what they do not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import libipld
import pytest

from inference.models.store import Store
from market.errors import ContentUnavailable
from market.identity import PeerId
from market.ports import ContentShelf
from market.testing_content import check_source
from node.clock import SystemClock
from node.content.shelf import NodeShelf
from node.content.tickets import Tickets
from tests.inference.models.store_kit import put
from tests.node.content.kit import ABSENT, DATA, LEAF

FRIEND, STRANGER = PeerId("friend"), PeerId("stranger")


class Wanted:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, manifest: str, peer: PeerId) -> None:
        self.asked.append((manifest, peer))


class AsSource:
    """The shelf as one peer sees it."""

    def __init__(self, shelf: ContentShelf, peer: PeerId) -> None:
        self.name = f"shelf for {peer}"
        self._shelf = shelf
        self._peer = peer

    async def block(self, cid: str) -> bytes:
        return await self._shelf.block(self._peer, cid)

    def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        return self._shelf.read_range(self._peer, root, start, length)


def make_shelf(store: Store, wanted: Wanted | None = None) -> NodeShelf:
    return NodeShelf(
        store,
        Tickets(b"s" * 32, SystemClock()),
        may_read=lambda peer: peer == FRIEND,
        may_pin=lambda peer: peer == FRIEND,
        want=wanted or Wanted(),
    )


async def read(shelf: NodeShelf, peer: PeerId, root: str, start: int, length: int) -> list[bytes]:
    async with aclosing(shelf.read_range(peer, root, start, length)) as pieces:
        return [piece async for piece in pieces]


async def test_a_shelf_keeps_every_rule_of_a_source(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    await check_source(AsSource(make_shelf(store), STRANGER), root=root, content=DATA, absent=ABSENT)


async def test_what_is_private_is_for_friends_and_for_others_reads_as_absent(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    shelf = make_shelf(store)
    await check_source(AsSource(shelf, FRIEND), root=root, content=DATA, absent=ABSENT)
    said = set()
    for cid in (root, LEAF, ABSENT, "no cid", "b" * 59, "../../etc/passwd"):
        with pytest.raises(ContentUnavailable) as refused:
            await shelf.block(STRANGER, cid)
        said.add(str(refused.value))
        with pytest.raises(ContentUnavailable) as refused:
            await read(shelf, STRANGER, cid, 0, 1)
        said.add(str(refused.value))
    assert len(said) == 1


async def test_pieces_are_small_and_odd_ranges_harmless(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    shelf = make_shelf(store)
    pieces = await read(shelf, STRANGER, root, 0, 1 << 60)
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) <= 256 * 1024
    assert await read(shelf, STRANGER, root, len(DATA), 10) == []
    assert await read(shelf, STRANGER, root, 0, 0) == []
    for start, length in ((-1, 10), (0, -1)):
        with pytest.raises(ContentUnavailable):
            await read(shelf, STRANGER, root, start, length)


async def test_only_whom_the_owner_lets_may_have_us_pin_a_model(store: Store) -> None:
    wanted = Wanted()
    shelf = make_shelf(store, wanted)
    manifest = await store.add_block(libipld.encode_dag_cbor({"name": "m"}))
    await shelf.pin(FRIEND, manifest)
    for peer, cid in ((STRANGER, manifest), (FRIEND, LEAF), (FRIEND, "no cid")):
        with pytest.raises(ContentUnavailable):
            await shelf.pin(peer, cid)
    assert wanted.asked == [(manifest, FRIEND)]


async def test_everybody_gets_a_ticket_in_his_own_name(store: Store) -> None:
    tickets = Tickets(b"s" * 32, SystemClock())
    shelf = NodeShelf(store, tickets)
    assert tickets.check(await shelf.ticket(STRANGER)) == STRANGER


async def test_a_shelf_of_which_nothing_was_said_refuses_catalogs_and_pins(store: Store) -> None:
    shelf = NodeShelf(store, Tickets(b"s" * 32, SystemClock()))
    with pytest.raises(ContentUnavailable):
        await shelf.catalog(b"c" * 20, "models")
    with pytest.raises(ContentUnavailable):
        await shelf.pin(FRIEND, ABSENT)
