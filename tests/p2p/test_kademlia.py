"""The DHT's rules without a network: distances, contacts, records, messages."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.kad_dht.pb import kademlia_pb2
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from market.errors import EncodingInvalid
from market.identity import PeerId
from p2p.endpoints import Endpoint, parse_endpoint
from p2p.kademlia import ENDPOINTS_LIMIT, Contacts, K, Known, key_of, nearest, place_of_peer
from p2p.kadwire import KadMessage, kad_frame, parse_kad
from p2p.keys import PeerKey
from p2p.providers import RECORD_LASTS_S, ProviderRecords

pb: Any = kademlia_pb2
KEY = b"\x12\x20" + hashlib.sha256(b"key").digest()


def peer(number: int) -> PeerId:
    return PeerKey(hashlib.sha256(str(number).encode()).digest()).peer


def known(number: int, ip: str = "127.0.0.1") -> Known:
    return Known(peer=peer(number), endpoints=(Endpoint(ip=ip, port=4001, peer=peer(number)),))


def body_of(frame: bytes) -> bytes:
    at = next(index for index, byte in enumerate(frame) if byte < 128) + 1
    return frame[at:]


# ---- where things lie ----------------------------------------------------------------------------


def test_peers_are_ordered_as_libp2p_orders_them() -> None:
    peers = [peer(number) for number in range(50)]
    theirs = sort_peer_ids_by_distance(KEY, [ID.from_string(each) for each in peers])
    assert nearest(KEY, peers, count=50) == [str(each) for each in theirs]


def test_the_key_of_a_root_is_its_multihash_whatever_its_codec() -> None:
    digest = hashlib.sha256(b"x").digest()
    cids = ["b" + base64.b32encode(bytes((1, codec, 0x12, 0x20)) + digest).decode().lower().rstrip("=")
            for codec in (0x55, 0x70, 0x71)]  # fmt: skip
    assert {key_of(cid) for cid in cids} == {b"\x12\x20" + digest}
    with pytest.raises(EncodingInvalid):
        key_of("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG")


# ---- contacts ------------------------------------------------------------------------------------


def far_half(me: PeerId, count: int) -> list[int]:
    """Numbers of peers that all fall into the bucket farthest from `me`."""
    found, number = [], 0
    while len(found) < count:
        number += 1
        if (place_of_peer(peer(number)) ^ place_of_peer(me)).bit_length() == 256:
            found.append(number)
    return found


def test_a_flood_of_new_peers_displaces_nobody_who_is_connected() -> None:
    me = peer(0)
    numbers = far_half(me, K + 5)
    contacts = Contacts(me, is_connected=lambda _: True)
    assert [contacts.add(known(number)) for number in numbers] == [True] * K + [False] * 5


def test_a_newcomer_takes_the_place_of_somebody_who_is_gone() -> None:
    me = peer(0)
    numbers = far_half(me, K + 1)
    contacts = Contacts(me, is_connected=lambda each: each != peer(numbers[3]))
    assert all(contacts.add(known(number)) for number in numbers)
    kept = {each.peer for each in contacts.nearest(KEY)}
    assert peer(numbers[3]) not in kept
    assert peer(numbers[-1]) in kept


def test_one_public_network_gets_two_places_in_a_bucket_and_a_private_one_any() -> None:
    me = peer(0)
    numbers = far_half(me, 8)
    contacts = Contacts(me, is_connected=lambda _: True)
    public = [contacts.add(known(number, f"203.1.113.{number % 200 + 1}")) for number in numbers[:4]]
    assert public == [True, True, False, False]
    assert all(contacts.add(known(number, "192.168.1.7")) for number in numbers[4:])


def test_we_are_no_contact_of_ours() -> None:
    contacts = Contacts(peer(0), is_connected=lambda _: True)
    assert not contacts.add(known(0))
    assert contacts.add(known(1))
    contacts.drop(peer(1))
    assert len(contacts) == 0


# ---- records -------------------------------------------------------------------------------------


def key(number: int) -> bytes:
    return b"\x12\x20" + number.to_bytes(32, "big")


def test_a_record_fades_and_is_renewed() -> None:
    records = ProviderRecords(limit=100, per_peer=10)
    assert records.put(KEY, known(1), now_s=0)
    assert records.of(KEY, now_s=RECORD_LASTS_S - 1) == (known(1),)
    assert records.put(KEY, known(1), now_s=RECORD_LASTS_S - 1)
    assert records.of(KEY, now_s=RECORD_LASTS_S + 1) == (known(1),)
    records.expire(now_s=3 * RECORD_LASTS_S)
    assert len(records) == 0


def test_one_peer_and_one_key_have_their_limits() -> None:
    records = ProviderRecords(limit=1_000, per_peer=10)
    assert [records.put(key(number), known(1), now_s=0) for number in range(12)] == [True] * 10 + [False] * 2
    many = [records.put(KEY, known(number), now_s=0) for number in range(2, K + 4)]
    assert many == [True] * K + [False] * 2
    assert records.put(KEY, known(2), now_s=1), "renewing needs no room"


def test_a_flood_pushes_out_its_own_records_first() -> None:
    records = ProviderRecords(limit=20, per_peer=100)
    honest = [records.put(key(number), known(number), now_s=0) for number in range(1, 6)]
    assert all(honest)
    for number in range(1_000, 1_080):
        assert records.put(key(number), known(99), now_s=1)
    assert len(records) == 20
    assert all(records.of(key(number), now_s=2) for number in range(1, 6))


# ---- messages ------------------------------------------------------------------------------------


def test_a_message_survives_the_wire() -> None:
    many = tuple(parse_endpoint(f"/ip4/192.168.0.{number}/tcp/40{number:02}/p2p/{peer(1)}") for number in range(1, 9))
    six = Endpoint(ip="2001:db8::1", port=4001, peer=peer(2))
    message = KadMessage(
        kind="GET_PROVIDERS",
        key=KEY,
        closer=(Known(peer=peer(1), endpoints=many),),
        providers=(Known(peer=peer(2), endpoints=(six,)), Known(peer=peer(3), endpoints=())),
    )
    assert parse_kad(body_of(kad_frame(message))) == message


def test_addresses_are_read_as_libp2p_writes_them_and_others_are_left_out() -> None:
    plain = pb.Message(type=pb.Message.GET_PROVIDERS, key=KEY)
    addresses = [
        f"/ip4/10.0.0.1/tcp/4001/p2p/{peer(1)}",
        "/ip6/::1/tcp/4001",
        f"/ip4/10.0.0.2/tcp/4001/p2p/{peer(2)}",  # somebody else's
        "/ip4/10.0.0.3/udp/4001/quic-v1",
        "/dns4/example.com/tcp/4001",
        "/ip4/0.0.0.0/tcp/4001",
    ]
    binary = [Multiaddr(address).to_bytes() for address in addresses]
    plain.providerPeers.add(id=ID.from_string(peer(1)).to_bytes(), addrs=[*binary, b"", b"\x04", b"\xff" * 40])
    (provider,) = parse_kad(plain.SerializeToString()).providers
    assert [each.address for each in provider.endpoints] == ["/ip4/10.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"]


def test_a_crowded_answer_is_cut_to_what_is_useful() -> None:
    plain = pb.Message(type=pb.Message.FIND_NODE, key=KEY)
    address = Multiaddr("/ip4/10.0.0.1/tcp/4001").to_bytes()
    for number in range(100):
        plain.closerPeers.add(id=ID.from_string(peer(number % 30)).to_bytes(), addrs=[address] * 50)
    closer = parse_kad(plain.SerializeToString()).closer
    assert len(closer) == K
    assert all(len(each.endpoints) <= ENDPOINTS_LIMIT for each in closer)


@pytest.mark.parametrize(
    "fields",
    [{"type": 0, "key": KEY}, {"type": 1, "key": KEY}, {"type": 3, "key": b"x" * 200}],
    ids=["put value", "get value", "a long key"],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(EncodingInvalid):
        parse_kad(pb.Message(**fields).SerializeToString())


@given(body=st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_no_bytes_make_the_parser_raise_anything_but_encoding_invalid(body: bytes) -> None:
    with suppress(EncodingInvalid):
        parse_kad(body)


@given(peer_id=st.binary(max_size=80), address=st.binary(max_size=60), kind=st.integers(0, 5))
@settings(max_examples=400, deadline=None)
def test_no_peer_and_no_address_makes_the_parser_raise(peer_id: bytes, address: bytes, kind: int) -> None:
    plain = pb.Message(type=kind, key=KEY)
    plain.providerPeers.add(id=peer_id, addrs=[address])
    plain.closerPeers.add(id=ID.from_string(peer(1)).to_bytes(), addrs=[address])
    with suppress(EncodingInvalid):
        parse_kad(plain.SerializeToString())
