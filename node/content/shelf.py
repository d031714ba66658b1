"""What one mesh peer may read from us and ask of us: `market.ports.ContentShelf` over the store.

Lives here: who gets what. Public roots are for everybody; the rest is for peers for which `may_read` says so, asked
anew every time. What is absent, what is not for that peer and what is no CID read the same. Knows neither libp2p nor
HTTP, and no engine: a node serves models that it does not run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from inference.models.cid import DAG_CBOR, Cid, parse_cid
from inference.models.store import Store
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from market.identity import PeerId
from node.content.tickets import Tickets

_log = structlog.get_logger()
_PIECE_BYTES = 256 * 1024
"""A slow mesh stream holds one of these in memory, and a frame of /octo/blocks carries as much."""

Rule = Callable[[PeerId], bool]
CatalogOf = Callable[[bytes, str], Awaitable[bytes]]
"""(a creator's wallet, a name) -> the newest signed catalog that we know; raises ContentUnavailable."""
Want = Callable[[str, PeerId], Awaitable[None]]
"""(manifest CID, who asked): agree to keep a model, and return long before it is here; raises ContentUnavailable."""


def nobody(_peer: PeerId) -> bool:
    return False


async def no_catalog(_creator: bytes, _name: str) -> bytes:
    raise refusal()


async def want_nothing(_manifest: str, _peer: PeerId) -> None:
    raise refusal()


def refusal() -> ContentUnavailable:
    """The one answer to all that is not here or not for you: whether it exists is not told."""
    return ContentUnavailable("This node does not serve that.")


class NodeShelf:
    """`may_read` and `may_pin` decide by peer; `catalog` and `want` are what the node does with the rest."""

    def __init__(
        self,
        store: Store,
        tickets: Tickets,
        *,
        may_read: Rule = nobody,
        may_pin: Rule = nobody,
        catalog: CatalogOf = no_catalog,
        want: Want = want_nothing,
    ) -> None:
        self._store = store
        self._tickets = tickets
        self._may_read = may_read
        self._may_pin = may_pin
        self._catalog = catalog
        self._want = want

    async def block(self, peer: PeerId, cid: str) -> bytes:
        try:
            return await self._store.read_block(str(parse_cid(cid)), public_only=not self._may_read(peer))
        except (ContentUnavailable, BlockInvalid, EncodingInvalid):
            raise refusal() from None

    async def read_range(self, peer: PeerId, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        """Pieces of at most 256 KiB; fewer bytes than asked for past the end of the file."""
        if start < 0 or length < 0:
            raise refusal()
        try:
            async with self._store.open_file(str(parse_cid(root)), public_only=not self._may_read(peer)) as file:
                stop = min(file.size_bytes, start + length)
                for offset in range(start, stop, _PIECE_BYTES):
                    piece = await file.read(offset, min(_PIECE_BYTES, stop - offset))
                    if not piece:
                        return
                    yield piece
        except (ContentUnavailable, BlockInvalid, EncodingInvalid):
            raise refusal() from None

    async def ticket(self, peer: PeerId) -> str:
        """Everybody gets one: that a peer got none would tell it something. `may_read` is asked when it is used."""
        return self._tickets.issue(peer)

    async def catalog(self, creator: bytes, name: str) -> bytes:
        return await self._catalog(creator, name)

    async def pin(self, peer: PeerId, manifest: str) -> None:
        if not self._may_pin(peer):
            raise refusal()
        cid = _manifest_cid(manifest)
        await self._want(str(cid), peer)
        _log.info("pin_agreed", cid=str(cid), peer=peer)


def _manifest_cid(text: str) -> Cid:
    try:
        cid = parse_cid(text)
    except EncodingInvalid:
        raise refusal() from None
    if cid.codec != DAG_CBOR:
        raise ContentUnavailable("What is pinned is named by its manifest, and a manifest is DAG-CBOR.")
    return cid
