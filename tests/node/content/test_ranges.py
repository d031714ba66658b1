"""Range arithmetic against a reference that knows positions only, and lists of entity tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from node.content.ranges import names_tag, range_counts, span_of

SIZES = st.integers(1, 60)
NUMBERS = st.integers(0, 70)
HUGE = "9" * 400


def positions(first: int | None, last: int | None, size: int) -> list[int] | None:
    """The byte positions that RFC 9110 14.1.2 selects; None if the range is no range."""
    if first is None:
        return list(range(size))[-last:] if last else []
    if last is not None and last < first:
        return None
    return [at for at in range(size) if first <= at and (last is None or at <= last)]


@given(size=SIZES, first=st.none() | NUMBERS, last=st.none() | NUMBERS, zeros=st.integers(0, 3))
def test_one_range_is_what_the_reference_says(size: int, first: int | None, last: int | None, zeros: int) -> None:
    if first is None and last is None:
        return
    text = "-".join("" if number is None else "0" * zeros + str(number) for number in (first, last))
    wanted = positions(first, last, size)
    if not wanted:
        with pytest.raises(EncodingInvalid):
            span_of(f"bytes={text}", size)
    else:
        assert span_of(f"bytes={text}", size) == (wanted[0], wanted[-1] + 1)


@given(header=st.text(max_size=60) | st.text("bytes=0123456789-, ", max_size=30).map("bytes=".__add__), size=SIZES)
def test_no_text_breaks_it_and_no_span_leaves_the_file(header: str, size: int) -> None:
    try:
        span = span_of(header, size)
    except EncodingInvalid:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


@pytest.mark.parametrize("header", [None, "", "lines=1-2", "bytes", "bytes=0-1,4-5", "bytes=0-0, -1"])
def test_what_we_do_not_do_is_passed_over_and_all_of_it_comes(header: str | None) -> None:
    assert span_of(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=a-b", "bytes=-", "bytes=--1", "bytes=5-1", "bytes=10-", "bytes=-0",
                                    "bytes=+1-2", "bytes=0x1-", "bytes=٣-٤", "bytes=", f"bytes={HUGE}-"])  # fmt: skip
def test_what_is_no_range_of_this_file_is_refused(header: str) -> None:
    with pytest.raises(EncodingInvalid):
        span_of(header, 10)


def test_numbers_of_any_length_are_no_work() -> None:
    assert span_of(f"bytes=3-{HUGE}", 10) == (3, 10)
    assert span_of(f"bytes=-{HUGE}", 10) == (0, 10)
    assert span_of(f"bytes={'0' * 400}3-{'0' * 400}4", 10) == (3, 5)


def test_an_empty_file_has_no_part_and_comes_whole() -> None:
    assert span_of("bytes=0-", 0) is None
    assert span_of("bytes=-5", 0) is None


@pytest.mark.parametrize(
    ("header", "weak", "strong"),
    [
        ('"a"', True, True), ('W/"a"', True, False), ('"x", W/"a" ,"b"', True, False), ('"b","a"', True, True),
        ("*", True, True), ('"A"', False, False), ('"aa"', False, False), ("a", False, False), ("", False, False),
        ('"a', False, False), ('"\\"a"', False, False),
    ],
)  # fmt: skip
def test_a_list_of_tags_is_read_weakly_or_strongly(header: str, weak: bool, strong: bool) -> None:
    assert names_tag(header, '"a"', weak=True) == weak
    assert names_tag(header, '"a"', weak=False) == strong


def test_no_header_names_no_tag() -> None:
    assert not names_tag(None, '"a"', weak=True)


@given(st.text(max_size=300))
def test_no_list_of_tags_breaks_it(header: str) -> None:
    names_tag(header, '"a"', weak=True)


def test_if_range_holds_for_the_strong_tag_alone() -> None:
    assert range_counts(None, '"a"')
    assert range_counts(' "a"', '"a"')
    assert not range_counts('W/"a"', '"a"')
    assert not range_counts("Wed, 21 Oct 2015 07:28:00 GMT", '"a"')
