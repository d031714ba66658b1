"""Which offers are kept, and what is said about the others."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from market.identity import SignedBinding
from market.offer import SignedOffer
from p2p.keys import PeerKey
from p2p.offerbook import REFUSED_LIMIT, OfferBook, Verdict

NOW = 1_800_000_000_000
MakeKey = Callable[[str], PeerKey]
MakeOffer = Callable[..., SignedOffer]


@pytest.fixture
def book(make_key: MakeKey) -> OfferBook:
    return OfferBook(network="octo-test", me=make_key("me").peer, limit=3)


def test_the_newest_offer_of_each_peer_is_live(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    anna = make_key("anna")
    for seq in (1, 2):
        assert book.take(make_offer(anna, seq=seq, now_ms=NOW), via="x", now_ms=NOW) is Verdict.NEW
    assert [checked.offer.seq for checked in book.live(NOW)] == [2]


def test_the_same_offer_again_is_known_and_passed_on(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    offer = make_offer(make_key("anna"), now_ms=NOW)
    book.take(offer, via="x", now_ms=NOW)
    assert book.take(offer, via="y", now_ms=NOW) is Verdict.KNOWN
    assert book.refused() == ()


def test_another_offer_under_the_same_seq_is_refused(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    anna = make_key("anna")
    book.take(make_offer(anna, seq=5, now_ms=NOW), via="x", now_ms=NOW)
    assert book.take(make_offer(anna, seq=5, now_ms=NOW + 1), via="x", now_ms=NOW + 1) is Verdict.REFUSED
    assert "not above 5" in book.refused()[-1].reason


def test_an_offer_that_was_renewed_since_is_passed_over_without_a_word(
    book: OfferBook, make_key: MakeKey, make_offer: MakeOffer
) -> None:
    """Gossip repeats what it remembers to whoever joins: that is no offence of anybody's."""
    anna = make_key("anna")
    book.take(make_offer(anna, seq=5, now_ms=NOW), via="x", now_ms=NOW)
    assert book.take(make_offer(anna, seq=4, now_ms=NOW), via="x", now_ms=NOW) is Verdict.OLD
    assert book.refused() == ()
    assert [checked.offer.seq for checked in book.live(NOW)] == [5]


def test_an_expired_offer_is_refused_and_a_live_one_expires(
    book: OfferBook, make_key: MakeKey, make_offer: MakeOffer
) -> None:
    offer = make_offer(make_key("anna"), now_ms=NOW, ttl_ms=1000)
    assert book.take(offer, via="x", now_ms=NOW + 1000) is Verdict.REFUSED
    assert "expired" in book.refused()[-1].reason
    assert book.take(offer, via="x", now_ms=NOW) is Verdict.NEW
    assert book.live(NOW + 1000) == ()
    assert book.expire(NOW + 999) is False
    assert book.expire(NOW + 1000) is True


def test_an_offer_with_a_broken_binding_is_refused_with_the_reason(
    book: OfferBook, make_key: MakeKey, make_offer: MakeOffer, broken_binding: Callable[[PeerKey], SignedBinding]
) -> None:
    anna = make_key("anna")
    offer = make_offer(anna, now_ms=NOW, binding=broken_binding(anna))
    assert book.take(offer, via="bob", now_ms=NOW) is Verdict.REFUSED
    (refused,) = book.refused()
    assert (refused.peer, refused.via, refused.at_ms) == (anna.peer, "bob", NOW)
    assert "not signed by its wallet" in refused.reason


def test_a_flipped_bit_is_refused(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    offer = make_offer(make_key("anna"), now_ms=NOW)
    for broken in (
        replace(offer, body=offer.body[:-1] + bytes((offer.body[-1] ^ 1,))),
        replace(offer, signature=bytes((offer.signature[0] ^ 1,)) + offer.signature[1:]),
    ):
        assert book.take(broken, via="x", now_ms=NOW) is Verdict.REFUSED
    assert book.live(NOW) == ()


def test_bytes_that_are_no_offer_are_refused(book: OfferBook) -> None:
    assert book.take(SignedOffer(body=b"\x81" * 1000, signature=bytes(64)), via="x", now_ms=NOW) is Verdict.REFUSED
    assert book.refused()[-1].peer == ""


def test_another_network_is_not_ours(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    offer = make_offer(make_key("anna"), now_ms=NOW, network="elsewhere")
    assert book.take(offer, via="x", now_ms=NOW) is Verdict.REFUSED
    assert "elsewhere" in book.refused()[-1].reason


def test_our_own_offer_is_passed_on_and_not_listed(book: OfferBook, make_key: MakeKey, make_offer: MakeOffer) -> None:
    assert book.take(make_offer(make_key("me"), now_ms=NOW), via="x", now_ms=NOW) is Verdict.KNOWN
    assert book.live(NOW) == ()


def test_the_offer_of_a_peer_that_is_gone_does_not_come_back_through_others(
    book: OfferBook, make_key: MakeKey, make_offer: MakeOffer
) -> None:
    anna = make_key("anna")
    offer = make_offer(anna, seq=7, now_ms=NOW)
    book.take(offer, via="x", now_ms=NOW)
    assert book.drop(anna.peer)
    assert book.take(offer, via="y", now_ms=NOW) is Verdict.OLD
    assert book.live(NOW) == ()
    book.readmit(anna.peer)
    assert book.take(offer, via=anna.peer, now_ms=NOW) is Verdict.NEW


def test_a_full_book_takes_nobody_new_until_somebody_expires(
    book: OfferBook, make_key: MakeKey, make_offer: MakeOffer
) -> None:
    for name in ("a", "b", "c"):
        book.take(make_offer(make_key(name), now_ms=NOW, ttl_ms=5000), via="x", now_ms=NOW)
    assert book.take(make_offer(make_key("d"), now_ms=NOW), via="x", now_ms=NOW) is Verdict.REFUSED
    assert book.take(make_offer(make_key("a"), seq=2, now_ms=NOW), via="x", now_ms=NOW) is Verdict.NEW
    assert book.take(make_offer(make_key("d"), seq=2, now_ms=NOW + 5000), via="x", now_ms=NOW + 5000) is Verdict.NEW


def test_refusals_are_remembered_up_to_a_limit(book: OfferBook) -> None:
    for number in range(REFUSED_LIMIT + 20):
        book.take(SignedOffer(body=b"?", signature=bytes(64)), via=str(number), now_ms=number)
    assert len(book.refused()) == REFUSED_LIMIT
    assert book.refused()[-1].via == str(REFUSED_LIMIT + 19)
