"""Kademlia's messages, as go, js and py libp2p speak them: protobuf behind a varint length. Pure.

Only what provider records need: FIND_NODE, ADD_PROVIDER, GET_PROVIDERS and PING. Values are not for us (a
stranger could store 50 GB of them in libp2p's own DHT), nor are signed address records: an address is tried
under the rules of `p2p.endpoints`, and noise proves who answers there.
Source: https://github.com/libp2p/specs/tree/master/kad-dht
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import islice
from typing import Any, Literal, cast

from libp2p.kad_dht.pb import kademlia_pb2
from libp2p.peer.id import ID

from market.errors import EncodingInvalid
from market.identity import PeerId, public_key_of_peer
from market.values import value
from p2p.endpoints import Endpoint, parse_endpoint
from p2p.kademlia import ENDPOINTS_LIMIT, K, Known, peer_bytes

KAD_PROTOCOL = "/octo/kad/1.0.0"
MESSAGE_LIMIT_BYTES = 64 * 1024
_KEY_LIMIT_BYTES = 128
_ADDRESSES_READ = 16

_pb: Any = kademlia_pb2
Kind = Literal["PING", "FIND_NODE", "ADD_PROVIDER", "GET_PROVIDERS"]
_KINDS: dict[int, Kind] = {
    _pb.Message.PING: "PING",
    _pb.Message.FIND_NODE: "FIND_NODE",
    _pb.Message.ADD_PROVIDER: "ADD_PROVIDER",
    _pb.Message.GET_PROVIDERS: "GET_PROVIDERS",
}


@value
class KadMessage:
    """A question or an answer: both have the same shape. Answers need not repeat the key."""

    kind: Kind
    key: bytes = b""
    closer: tuple[Known, ...] = ()
    providers: tuple[Known, ...] = ()


def kad_frame(message: KadMessage) -> bytes:
    plain = _pb.Message(type=getattr(_pb.Message, message.kind), key=message.key)
    for known in message.closer:
        plain.closerPeers.add(id=peer_bytes(known.peer), addrs=[_address(each) for each in known.endpoints])
    for known in message.providers:
        plain.providerPeers.add(id=peer_bytes(known.peer), addrs=[_address(each) for each in known.endpoints])
    body = cast(bytes, plain.SerializeToString())
    return _varint(len(body)) + body


def parse_kad(body: bytes) -> KadMessage:
    """Raises EncodingInvalid. Peers and addresses that nobody could reach are left out, not refused."""
    plain = _pb.Message()
    try:
        plain.ParseFromString(body)
    except Exception:  # noqa: BLE001 - protobuf's DecodeError, and whatever its back ends raise
        raise EncodingInvalid("the bytes are no Kademlia message.") from None
    kind = _KINDS.get(plain.type)
    if kind is None:
        raise EncodingInvalid(f"Kademlia messages of type {plain.type} are not served here.")
    if len(plain.key) > _KEY_LIMIT_BYTES:
        raise EncodingInvalid(f"a key of {len(plain.key)} bytes; {_KEY_LIMIT_BYTES} is the limit.")
    return KadMessage(
        kind=kind, key=bytes(plain.key), closer=_peers(plain.closerPeers), providers=_peers(plain.providerPeers)
    )


def _peers(plain: Iterable[Any]) -> tuple[Known, ...]:
    found = (_known(each) for each in islice(plain, K))
    return tuple({known.peer: known for known in found if known}.values())


def _known(plain: Any) -> Known | None:
    try:
        peer = PeerId(str(ID(bytes(plain.id[:64]))))
        public_key_of_peer(peer)  # others have no place in this market
    except Exception:  # noqa: BLE001 - a stranger's bytes in libp2p's parser
        return None
    found = (_endpoint(bytes(address), peer) for address in islice(plain.addrs, _ADDRESSES_READ))
    return Known(peer=peer, endpoints=tuple(islice((each for each in found if each), ENDPOINTS_LIMIT)))


def _address(endpoint: Endpoint) -> bytes:
    """The binary multiaddr, without the peer: /ip4 is 4, /ip6 is 41, /tcp is 6."""
    ip = ipaddress.ip_address(endpoint.ip)
    return (b"\x04" if ip.version == 4 else b"\x29") + ip.packed + b"\x06" + endpoint.port.to_bytes(2, "big")


def _endpoint(address: bytes, peer: PeerId) -> Endpoint | None:
    """The other way; None for every address that is not IP over TCP, alone or followed by the peer (/p2p is 421)."""
    width = {4: 4, 41: 16}.get(address[0] if address else 0)
    if width is None or len(address) < width + 4 or address[width + 1] != 6:
        return None
    rest, key = address[width + 4 :], peer_bytes(peer)
    if rest not in (b"", b"\xa5\x03" + _varint(len(key)) + key):
        return None
    port = int.from_bytes(address[width + 2 : width + 4], "big")
    try:
        ip = ipaddress.ip_address(address[1 : width + 1])
        found = parse_endpoint(f"/ip{ip.version}/{ip}/tcp/{port}")
    except EncodingInvalid:
        return None
    return Endpoint(ip=found.ip, port=found.port, peer=peer)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
