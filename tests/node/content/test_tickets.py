"""Tickets: who holds one is known until it expires, and nothing else opens."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.identity import PeerId
from node.content.tickets import Tickets

SECRET = b"s" * 32
PEER = PeerId("12D3KooWGRUVh7Yb4Ev2jU9jXyTgxHTBpLRqhZWvmjQkHmqGkm5j")


class FixedClock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.ms


def test_a_ticket_says_who_until_it_expires() -> None:
    clock = FixedClock()
    tickets = Tickets(SECRET, clock, lifetime_s=600)
    ticket = tickets.issue(PEER)
    assert tickets.check(ticket) == PEER
    clock.ms += 599_999
    assert tickets.check(ticket) == PEER
    clock.ms += 1
    assert tickets.check(ticket) is None


def test_a_ticket_is_safe_in_a_header_and_shows_no_secret() -> None:
    tickets = Tickets(SECRET, FixedClock())
    assert set(tickets.issue(PEER)) <= set(string.ascii_letters + string.digits + "-_")
    assert "sss" not in repr(tickets)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 5))
def test_a_ticket_with_any_bit_changed_is_none(at: int, bit: int) -> None:
    tickets = Tickets(SECRET, FixedClock())
    ticket = tickets.issue(PEER)
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    at %= len(ticket)
    changed = alphabet[alphabet.index(ticket[at]) ^ 1 << bit]
    assert tickets.check(ticket[:at] + changed + ticket[at + 1 :]) is None


@given(st.text(max_size=400) | st.text(string.ascii_letters + "-_=", max_size=400))
def test_no_text_is_a_ticket_by_chance_or_breaks_it(text: str) -> None:
    assert Tickets(SECRET, FixedClock()).check(text) is None


def test_another_nodes_ticket_opens_nothing() -> None:
    clock = FixedClock()
    assert Tickets(b"t" * 32, clock).check(Tickets(SECRET, clock).issue(PEER)) is None


@pytest.mark.parametrize("bend", [" {}", "{} ", "{}=", "{}\n", "{}.", "{}A"])
def test_one_ticket_has_one_text(bend: str) -> None:
    tickets = Tickets(SECRET, FixedClock())
    assert tickets.check(bend.format(tickets.issue(PEER))) is None


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Tickets(b"short", FixedClock())
