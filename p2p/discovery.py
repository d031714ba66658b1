"""How offers travel, trio side: gossip for everyone, and a direct exchange for a peer that is new here.

Gossip alone is not enough: a peer that has just connected is in nobody's mesh yet, and libp2p drops bursts
silently. So whoever dialled asks `/octo/offers/1.0.0` at once, and again when gossip has had time to form:
my offers for yours, one frame each way. A neighbour's own offer that came this way is passed on by gossip.
What an offer says is judged by `p2p.offerbook` and `market.offer`; nothing is decided here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from pydantic import Field

from market.errors import EncodingInvalid, PeerError
from market.identity import PeerId
from market.offer import Offer, SignedOffer
from market.ports import Clock
from market.values import decode, encode, value
from p2p.host import Host, guarded, quietly_reset
from p2p.limits import NetworkLimits
from p2p.offerbook import OfferBook, Verdict
from p2p.wire import FRAME_LIMIT_BYTES, FrameParser, frame_of, value_of

OFFERS_TOPIC = "octo/offers/1"
OFFERS_PROTOCOL = "/octo/offers/1.0.0"
_OFFERS_PER_EXCHANGE = 512
_EXCHANGE_BYTES = FRAME_LIMIT_BYTES - 4096
_GOSSIP_LIMIT_BYTES = 20 * 1024
_READ_BYTES = 64 * 1024
_SECOND_EXCHANGE_S = 3.0

_log = structlog.get_logger()


@value
class OfferList:
    offers: Annotated[tuple[SignedOffer, ...], Field(max_length=_OFFERS_PER_EXCHANGE)]


class Discovery:
    """`learned(offer, teller)` is called for each offer that is new; `changed()` whenever the book changes."""

    def __init__(
        self,
        host: Host,
        book: OfferBook,
        clock: Clock,
        limits: NetworkLimits,
        *,
        learned: Callable[[Offer, PeerId], None],
        changed: Callable[[], None],
    ) -> None:
        self._host = host
        self._book = book
        self._clock = clock
        self._limits = limits
        self._learned = learned
        self._changed = changed
        self._own: SignedOffer | None = None
        self._own_expires_ms = 0
        self._told: set[PeerId] = set()  # peers that had our own offer directly, once: gossip does the rest
        # degree_low 2: below it libp2p grafts anyone at each heartbeat. The rate limit is per forwarder: its 10
        # messages a second would silence a hub of 100 providers.
        self._gossip = GossipSub(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
            degree=6,
            degree_low=2,
            degree_high=12,
            heartbeat_interval=1,
            max_messages_per_topic_per_second=200,
        )
        self._pubsub = Pubsub(
            host.libp2p,
            self._gossip,
            strict_signing=True,
            # Ids from (sender, counter) repeat after a quick restart, and the second message would be lost.
            msg_id_constructor=lambda message: hashlib.sha256(message.data).digest(),
            max_inbound_rpc_size=FRAME_LIMIT_BYTES,
            allowed_topics={OFFERS_TOPIC},
        )
        # Runs in a nursery of its own: what a malformed message makes it raise would end the host.
        cast(Any, self._pubsub).push_msg = guarded(self._pubsub.push_msg, "gossip")
        host.handle(OFFERS_PROTOCOL, self._serve_exchange)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with background_trio_service(self._pubsub), background_trio_service(self._gossip):
            await self._pubsub.wait_until_ready()
            self._pubsub.set_topic_validator(OFFERS_TOPIC, self._judge_gossip, False)
            subscription = await self._pubsub.subscribe(OFFERS_TOPIC)
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(_drop_all, subscription)
                self._nursery.start_soon(self._expire)
                yield
                self._nursery.cancel_scope.cancel()

    async def announce(self, signed: SignedOffer) -> None:
        """Publish our offer by gossip, and directly to those that never had one from us."""
        self._own, self._own_expires_ms = signed, decode(Offer, signed.body).expires_ms
        await self._pubsub.publish(OFFERS_TOPIC, encode(SignedOffer, signed))
        for peer in self._host.connected():
            if peer not in self._told:
                self._nursery.start_soon(self.exchange, peer)

    async def greet(self, peer: PeerId) -> None:
        """A peer that we dialled is new here: exchange now, and once more for what fell between two stools."""
        await self.exchange(peer)
        await trio.sleep(_SECOND_EXCHANGE_S)
        if self._host.is_connected(peer):
            await self.exchange(peer)

    async def exchange(self, peer: PeerId) -> None:
        """Tell a connected peer the offers we know and learn its. Failing is no harm: gossip follows."""
        try:
            stream = await self._host.open_stream(peer, OFFERS_PROTOCOL)
        except PeerError as error:
            _log.debug("p2p.offers_not_exchanged", peer=peer, error=error.code)
            return
        try:
            with trio.move_on_after(self._limits.frame_timeout_s):
                await self._tell(peer, stream)
                await self._take_list(await _read_list(stream), peer)
        except Exception as error:  # noqa: BLE001 - a broken stream, or bytes that are no list
            _log.debug("p2p.offers_not_exchanged", peer=peer, error=type(error).__name__)
        finally:
            await quietly_reset(stream)

    def forget(self, peer: PeerId) -> None:
        """The peer is gone."""
        self._told.discard(peer)
        if self._book.drop(peer):
            self._changed()

    async def _serve_exchange(self, peer: PeerId, stream: INetStream) -> None:
        with trio.move_on_after(self._limits.frame_timeout_s):
            theirs = await _read_list(stream)
            await self._tell(peer, stream)
            await self._take_list(theirs, peer)
            await stream.read(1)  # the dialer resets once it has read: a reset of ours would overtake the frame

    async def _tell(self, peer: PeerId, stream: INetStream) -> None:
        now_ms = self._clock.now_ms()
        own = self._own if self._own_expires_ms > now_ms else None
        offers = [] if own is None else [own]
        size = sum(len(offer.body) for offer in offers)
        for offer in self._book.signed(now_ms)[: _OFFERS_PER_EXCHANGE - 1]:
            size += len(offer.body) + 128
            if size > _EXCHANGE_BYTES:
                break
            offers.append(offer)
        await stream.write(frame_of(OfferList, OfferList(offers=tuple(offers))))
        if own is not None:
            self._told.add(peer)

    async def _take_list(self, offers: OfferList, teller: PeerId) -> None:
        for signed in offers.offers:
            if self._take(signed, teller) is Verdict.NEW and decode(Offer, signed.body).peer == teller:
                # Its own gossip may have reached nobody yet. The id is the content's: said twice is said once.
                await self._pubsub.publish(OFFERS_TOPIC, encode(SignedOffer, signed))

    def _take(self, signed: SignedOffer, teller: PeerId) -> Verdict:
        verdict = self._book.take(signed, via=teller, now_ms=self._clock.now_ms())
        if verdict is Verdict.NEW:
            self._learned(decode(Offer, signed.body), teller)
        if verdict in (Verdict.NEW, Verdict.REFUSED):
            self._changed()
        if verdict is Verdict.REFUSED:
            refused = self._book.refused()[-1]
            _log.info("p2p.offer_refused", peer=refused.peer, via=teller, reason=refused.reason)
        return verdict

    def _judge_gossip(self, forwarder: ID, message: Any) -> bool:
        """Whether to pass a gossip message on. Must not raise: libp2p would die of it."""
        try:
            if len(message.data) > _GOSSIP_LIMIT_BYTES:
                return False
            signed = decode(SignedOffer, message.data, limit_bytes=_GOSSIP_LIMIT_BYTES)
            return self._take(signed, PeerId(str(forwarder))) in (Verdict.NEW, Verdict.KNOWN)
        except Exception as error:  # noqa: BLE001 - see above
            _log.debug("p2p.gossip_refused", forwarder=str(forwarder), error=type(error).__name__)
            return False

    async def _expire(self) -> None:
        while True:
            await trio.sleep(1)
            if self._book.expire(self._clock.now_ms()):
                self._changed()


async def _read_list(stream: INetStream) -> OfferList:
    parser = FrameParser()
    while data := await stream.read(_READ_BYTES):
        for body in parser.feed(data):
            return value_of(OfferList, body)
    raise EncodingInvalid("the stream ended inside a frame.")


async def _drop_all(subscription: Any) -> None:
    """The validator has already taken what matters; an unread subscription would fill up and warn."""
    while True:
        await subscription.get()
