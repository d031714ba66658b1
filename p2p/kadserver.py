"""Answers `/octo/kad/1.0.0`, trio side: whom we know close to a key, who provides it, and "I do too".

A provider speaks for itself alone, and for so many keys in so much time. Streams, messages and waits are counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import structlog
import trio
from libp2p.abc import INetStream

from market.errors import EncodingInvalid
from market.identity import PeerId
from p2p.endpoints import may_dial
from p2p.frames import read_exactly
from p2p.host import Host
from p2p.kademlia import Known
from p2p.kadwire import KAD_PROTOCOL, MESSAGE_LIMIT_BYTES, KadMessage, kad_frame, parse_kad
from p2p.limits import NetworkLimits
from p2p.providers import ProviderRecords

_MESSAGES_PER_STREAM = 64
_READ_TIMEOUT_S = 10.0
_WINDOW = 10  # paces; libp2p's own rule is 10 ADD_PROVIDER in 10 s
_ADDS_PER_WINDOW = 20
_QUESTIONS_PER_WINDOW = 200

_log = structlog.get_logger()


class KadServer:
    """`closest(key, asker)` are the peers to name; `met(peer)` is called with everyone who asks sensibly."""

    def __init__(
        self,
        host: Host,
        records: ProviderRecords,
        limits: NetworkLimits,
        *,
        closest: Callable[[bytes, PeerId], tuple[Known, ...]],
        met: Callable[[PeerId], None],
    ) -> None:
        self._host = host
        self._records = records
        self._limits = limits
        self._closest = closest
        self._met = met
        self._streams: Counter[PeerId] = Counter()
        self._spent: Counter[tuple[PeerId, bool]] = Counter()
        self._window_ends_s = 0.0
        host.handle(KAD_PROTOCOL, self._serve)

    async def _serve(self, peer: PeerId, stream: INetStream) -> None:
        self._streams[peer] += 1
        try:
            if (
                self._streams[peer] > self._limits.dht_streams_per_peer
                or self._streams.total() > self._limits.dht_streams
            ):
                return
            for _ in range(_MESSAGES_PER_STREAM):
                with trio.fail_after(_READ_TIMEOUT_S):
                    body = await read_kad(stream)
                answer = self._answer(peer, parse_kad(body))
                if answer is None:
                    return
                await stream.write(kad_frame(answer))
        except EOFError:
            return
        except EncodingInvalid as error:
            _log.debug("p2p.dht_refused", peer=peer, reason=error.message)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    def _answer(self, peer: PeerId, message: KadMessage) -> KadMessage | None:
        """None ends the stream: what was asked is not to be had."""
        is_add = message.kind == "ADD_PROVIDER"
        if not self._may_ask(peer, is_add=is_add) or (not message.key and message.kind != "PING"):
            return None
        self._met(peer)
        now_s = time.monotonic()
        if is_add:
            return message if self._add(peer, message, now_s) else None
        if message.kind == "PING":
            return KadMessage(kind="PING")
        providers = self._records.of(message.key, now_s=now_s) if message.kind == "GET_PROVIDERS" else ()
        return KadMessage(
            kind=message.kind, key=message.key, closer=self._closest(message.key, peer), providers=providers
        )

    def _add(self, peer: PeerId, message: KadMessage, now_s: float) -> bool:
        remote = self._host.remote(peer)
        ip = remote[0] if remote else None
        for known in message.providers:
            if known.peer == peer:
                endpoints = tuple(each for each in known.endpoints if may_dial(each, heard_from_ip=ip))
                return self._records.put(message.key, Known(peer=peer, endpoints=endpoints), now_s=now_s)
        return False

    def _may_ask(self, peer: PeerId, *, is_add: bool) -> bool:
        now_s = time.monotonic()
        if now_s >= self._window_ends_s:
            self._spent.clear()
            self._window_ends_s = now_s + _WINDOW * self._limits.dht_pace_s
            self._records.expire(now_s=now_s)
        self._spent[peer, is_add] += 1
        return self._spent[peer, is_add] <= (_ADDS_PER_WINDOW if is_add else _QUESTIONS_PER_WINDOW)


async def read_kad(stream: INetStream) -> bytes:
    """One message's body; raises EncodingInvalid before an oversized one is read, and as `read_exactly`."""
    size = shift = 0
    while True:
        [byte] = await read_exactly(stream, 1)
        size |= (byte & 127) << shift
        shift += 7
        if size > MESSAGE_LIMIT_BYTES or shift > 28:
            raise EncodingInvalid(f"a Kademlia message of over {MESSAGE_LIMIT_BYTES} bytes.")
        if byte < 128:
            return await read_exactly(stream, size) if size else b""
