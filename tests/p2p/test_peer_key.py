"""The peer key is one identity for libp2p and for the market."""

import pytest

from market.errors import NodeMisconfigured, SignatureInvalid
from market.identity import check_peer_signature, peer_of_public_key
from p2p.keys import PeerKey

SEED = bytes(range(32))


def test_libp2p_and_the_market_agree_on_the_peer_id() -> None:
    from libp2p.peer.id import ID

    key = PeerKey(SEED)
    pair = key.key_pair()
    assert str(ID.from_pubkey(pair.public_key)) == key.peer == peer_of_public_key(pair.public_key.to_bytes())


def test_what_the_key_signs_its_peer_id_verifies() -> None:
    key = PeerKey(SEED)
    check_peer_signature(key.peer, b"an offer", key.sign(b"an offer"))
    with pytest.raises(SignatureInvalid):
        check_peer_signature(key.peer, b"another offer", key.sign(b"an offer"))


def test_the_seed_is_never_printed() -> None:
    key = PeerKey(SEED)
    assert SEED.hex() not in repr(key)
    assert repr(SEED) not in repr(key)


def test_a_seed_of_another_length_is_refused_without_showing_it() -> None:
    with pytest.raises(NodeMisconfigured) as caught:
        PeerKey(b"too short")
    assert "too short" not in str(caught.value)
