"""Token bytes to text that may be shown: the same text however the bytes were cut into tokens."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.text import TextAssembler


def shown(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[str, bool]:
    text = TextAssembler(stop)
    whole = "".join([text.feed(piece) for piece in pieces]) + text.finish()
    return whole, text.stopped


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


places = st.lists(st.integers(0, 10**6), max_size=8)
few_letters = st.text(alphabet="ab\n€", max_size=24)
stops = st.lists(st.text(alphabet="ab\n€", min_size=1, max_size=4), max_size=3)


@given(few_letters, stops, places)
def test_any_split_of_the_bytes_shows_the_same_text(text: str, stop: list[str], where: list[int]) -> None:
    data = text.encode()
    assert shown(cut(data, where), stop) == shown([data], stop) == shown([bytes((b,)) for b in data], stop)


@given(st.binary(max_size=40), places)
def test_bytes_that_are_no_text_show_alike_however_they_are_split(data: bytes, where: list[int]) -> None:
    assert shown(cut(data, where)) == (data.decode("utf-8", "replace"), False)


@given(few_letters, stops, places)
def test_no_stop_string_is_ever_shown_and_nothing_before_it_is_lost(
    text: str, stop: list[str], where: list[int]
) -> None:
    seen, stopped = shown(cut(text.encode(), where), stop)
    assert text.startswith(seen)
    assert not any(word in seen for word in stop)
    assert stopped == any(word in text for word in stop)
    assert stopped or seen == text


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string() -> None:
    text = TextAssembler(["END"])
    assert [text.feed(piece) for piece in (b"one E", b"N", b"Ough ", b"EN", b"D two")] == [
        "one ",
        "",
        "ENOugh ",
        "",
        "",
    ]
    assert text.stopped
    assert text.feed(b"three") == text.finish() == ""


def test_a_character_is_held_back_until_it_is_whole() -> None:
    text = TextAssembler()
    assert [text.feed(piece) for piece in (b"\xf0\x9f", b"\x90", b"\x99!")] == ["", "", "\N{OCTOPUS}!"]


def test_a_character_that_never_ends_is_shown_as_a_replacement() -> None:
    assert shown([b"ok \xf0\x9f\x90"]) == ("ok \ufffd", False)


def test_the_beginning_of_a_stop_string_is_shown_if_the_answer_ends_there() -> None:
    assert shown([b"so it E", b"N"], ["END"]) == ("so it EN", False)


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"abc", b"d"], [b"a", b"b", b"c", b"d"]])
def test_of_two_stop_strings_the_one_that_is_complete_first_cuts(pieces: list[bytes]) -> None:
    assert shown(pieces, ["abcd", "bc"]) == ("a", True)


def test_of_two_stop_strings_that_end_together_the_longer_cuts() -> None:
    assert shown([b"xabc"], ["bc", "abc"]) == shown([b"xa", b"bc"], ["bc", "abc"]) == ("x", True)
