"""Limits per address, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.content.door import ContentLimits, Door, TooMany, visitor_of


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(rate=st.floats(0.01, 1000), burst=st.integers(1, 20), waits=st.lists(st.floats(0, 5), max_size=30))
def test_who_waits_as_long_as_told_is_let_in(rate: float, burst: int, waits: list[float]) -> None:
    clock = Hand()
    door = Door(ContentLimits(requests_per_s=rate, burst=burst), clock)
    for wait in [*waits, *[0.0] * (burst + 1)]:
        clock.now += wait
        try:
            door.knock("a")
        except TooMany as told:
            assert told.retry_s >= 1
            clock.now += told.retry_s
            door.knock("a")


def test_one_address_does_not_use_up_anothers_requests() -> None:
    door = Door(ContentLimits(requests_per_s=1, burst=2), Hand())
    for _ in range(2):
        door.knock("a")
    with pytest.raises(TooMany):
        door.knock("a")
    door.knock("b")


def test_ten_thousand_addresses_and_more_take_bounded_memory_and_the_busy_one_stays_known() -> None:
    door = Door(ContentLimits(requests_per_s=0.001, burst=1, addresses=10_000), Hand())
    door.knock("busy")
    for number in range(25_000):
        door.knock(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        if number % 5000 == 0:
            with pytest.raises(TooMany):
                door.knock("busy")
    assert len(door._buckets) == 10_000


def test_streams_are_given_back_and_their_length_tells_when_to_come_again() -> None:
    clock = Hand()
    door = Door(ContentLimits(streams=2, streams_total=3), clock)
    for _ in range(50):
        with door.stream("a"):
            clock.now += 30
    with door.stream("a"), door.stream("a"):
        with pytest.raises(TooMany) as told, door.stream("a"):
            pass
        assert 14 <= told.value.retry_s <= 16  # two streams of 30 s each: one should end about every 15 s
        with door.stream("b"), pytest.raises(TooMany), door.stream("c"):
            pass
    with door.stream("a"):
        pass
    assert not door._streams


def test_a_stream_that_breaks_gives_its_place_back() -> None:
    door = Door(ContentLimits(streams=1), Hand())
    with pytest.raises(ConnectionError), door.stream("a"):
        raise ConnectionError
    with door.stream("a"):
        pass


def test_connections_are_counted_by_address_and_in_all() -> None:
    door = Door(ContentLimits(connections=2, connections_total=3), Hand())
    assert [door.enter("a"), door.enter("a"), door.enter("a")] == [True, True, False]
    assert [door.enter("b"), door.enter("c")] == [True, False]
    door.leave("a")
    assert door.enter("c")
    for visitor in ("a", "b", "c"):
        door.leave(visitor)
    assert not door._connections


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        ("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"), ("::ffff:192.0.2.7", "192.0.2.7"), ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"), ("", "unknown"), ("not an address", "unknown"),
    ],
)  # fmt: skip
def test_an_ipv6_customer_is_one_visitor(address: str | None, visitor: str) -> None:
    assert visitor_of(address) == visitor
