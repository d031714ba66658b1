"""Whom to dial next."""

import pytest

from market.errors import EncodingInvalid
from p2p.addressbook import PEERS_LIMIT, AddressBook
from p2p.endpoints import Endpoint
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits

ME = PeerKey(bytes(32)).peer
LIMITS = NetworkLimits(outbound_peers=4, peers_per_subnet=2, reconnect_min_s=1, reconnect_max_s=60)


def at(number: int, ip: str = "", port: int = 4001) -> Endpoint:
    return Endpoint(ip=ip or f"8.8.{number}.8", port=port, peer=PeerKey(number.to_bytes(32, "big")).peer)


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(me=ME, limits=LIMITS)


def due(book: AddressBook, now_s: float = 0, connected: tuple[str, ...] = (), ips: tuple[str, ...] = ()) -> set[str]:
    return set(book.due(now_s=now_s, connected=connected, outbound_ips=ips))  # type: ignore[arg-type]


def test_a_new_peer_is_due_until_it_is_connected(book: AddressBook) -> None:
    book.add(at(1))
    assert due(book) == {at(1).peer}
    assert due(book, connected=(at(1).peer or "",)) == set()


def test_we_never_dial_ourselves(book: AddressBook) -> None:
    book.add(Endpoint(ip="8.8.8.8", port=1, peer=ME))
    assert due(book) == set()


def test_at_most_two_outbound_peers_share_a_subnet(book: AddressBook) -> None:
    for number in range(1, 4):
        book.add(at(number, f"8.8.8.{number}"))
    assert len(due(book)) == 2
    assert len(due(book, ips=("8.8.8.77",))) == 1
    assert due(book, ips=("8.8.8.77", "8.8.8.78")) == set()


def test_loopback_peers_do_not_count_against_each_other(book: AddressBook) -> None:
    for number in range(1, 5):
        book.add(at(number, "127.0.0.1", 4000 + number))
    assert len(due(book)) == 4


def test_learned_peers_wait_when_there_are_enough_and_kept_ones_do_not(book: AddressBook) -> None:
    for number in range(1, 8):
        book.add(at(number))
    assert len(due(book)) == LIMITS.outbound_peers
    book.add(at(9), is_kept=True)
    assert due(book, ips=("1.1.1.1", "1.1.2.1", "1.1.3.1", "1.1.4.1")) == {at(9).peer}


def test_the_wait_doubles_up_to_a_minute(book: AddressBook) -> None:
    book.add(at(1), is_kept=True)
    peer = at(1).peer
    assert peer is not None
    waits = [book.failed(peer, now_s=0, jitter=0) for _ in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert due(book, now_s=59) == set()
    assert due(book, now_s=60) == {peer}


def test_a_learned_peer_that_never_answers_is_forgotten(book: AddressBook) -> None:
    book.add(at(1))
    for _ in range(10):
        book.failed(at(1).peer or ME, now_s=0, jitter=0)
    assert due(book, now_s=1e9) == set()


def test_where_a_peer_answered_is_tried_first(book: AddressBook) -> None:
    old, new = at(1, port=1), at(1, port=2)
    book.add(old)
    book.add(new)
    assert book.of(at(1).peer or ME) == (new, old)
    book.answered(at(1).peer or ME, old)
    assert book.of(at(1).peer or ME) == (old, new)


def test_a_peer_that_hangs_up_is_not_dialled_in_the_same_moment(book: AddressBook) -> None:
    book.add(at(1))
    book.answered(at(1).peer or ME, at(1))
    book.lost(at(1).peer or ME, now_s=10)
    assert due(book, now_s=10.5) == set()
    assert due(book, now_s=11) == {at(1).peer}


def test_strangers_cannot_fill_the_book_without_end(book: AddressBook) -> None:
    for number in range(1, PEERS_LIMIT + 50):
        book.add(at(number, "127.0.0.1", number))
    assert len(book.due(now_s=0, connected=(), outbound_ips=())) <= PEERS_LIMIT


def test_only_addresses_that_answered_survive_a_restart(book: AddressBook) -> None:
    book.add(at(1))
    book.add(at(2))
    book.answered(at(1).peer or ME, at(1))
    again = AddressBook(me=ME, limits=LIMITS)
    again.load_json(book.to_json())
    assert due(again) == {at(1).peer}


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 100_000, "{}", '{"version": 2, "addresses": []}', '{"version": 1, "addresses": ["/dns4/x/tcp/1"]}'],
)
def test_a_damaged_book_file_is_refused(book: AddressBook, text: str) -> None:
    with pytest.raises(EncodingInvalid):
        book.load_json(text)
