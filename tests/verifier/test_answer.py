"""The answer as it was shown against the hashed text: equal, honestly shortened, or not it."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.text import TextAssembler
from verifier.answer import AnswerMatch, match_answer

CHUNKS = [b"One two ", b"three \xf0\x9f", b"\x90\x99 four", b"", b" END five."]
TEXT = b"".join(CHUNKS)


def match(answer: str, stop: Sequence[str] = (), chunks: Sequence[bytes] = CHUNKS) -> AnswerMatch:
    sizes, digests = [len(chunk) for chunk in chunks], [hashlib.sha256(chunk).digest() for chunk in chunks]
    return match_answer(answer, stop=stop, text_sizes=sizes, text_digests=digests)


def test_the_whole_answer_holds_though_a_character_lies_in_two_chunks() -> None:
    assert match(TEXT.decode()) == AnswerMatch(
        verdict="holds", detail="all 33 bytes of the answer hash to its 5 chunks"
    )


def test_an_empty_answer_holds_if_nothing_was_said() -> None:
    assert match("", chunks=[]).verdict == match("", chunks=[b""]).verdict == "holds"
    assert match("", chunks=[b"x"]).verdict == match("x", chunks=[]).verdict == "broken"


@pytest.mark.parametrize(("at", "chunk"), [(0, 0), (8, 1), (20, 2), (32, 4)])
def test_a_changed_answer_is_broken_and_says_where(at: int, chunk: int) -> None:
    changed = TEXT[:at] + bytes((TEXT[at] ^ 1,)) + TEXT[at + 1 :]
    found = match(changed.decode())
    assert found.verdict == "broken"
    assert f"chunk {chunk} of the answer is not what was transcribed; {chunk} of 5 chunks are equal" in found.detail


@given(st.integers(0, len(TEXT.decode()) - 1), st.characters(codec="utf-8"))
def test_no_other_answer_of_any_kind_holds(at: int, character: str) -> None:
    text = TEXT.decode()
    for other in (
        text[:at] + character + text[at + 1 :],
        text[:at] + character + text[at:],
        text[:at],
        text + character,
    ):
        assert match(other).verdict == ("holds" if other == text else "broken")


def test_a_longer_answer_is_broken() -> None:
    assert match(TEXT.decode() + "!").detail == "the answer has 34 bytes, its transcript 33"


def test_a_shorter_answer_is_broken_and_asks_for_the_stop_string() -> None:
    found = match("One two three")
    assert found.verdict == "broken"
    assert "the answer has 13 bytes, its transcript 33; 1 of 5 chunks are equal, the rest was not shown" in found.detail
    assert "if a stop string ended the answer, name it" in found.detail


def test_an_answer_cut_at_its_stop_string_holds_if_the_transcript_ends_with_it() -> None:
    chunks = [b"One two ", b"three\n", b"\n"]
    found = match("One two three", ["END", "\n\n"], chunks)
    assert found.verdict == "holds"
    assert "13 bytes and the stop string after them" in found.detail
    assert match("One two thred", ["\n\n"], chunks).verdict == "broken"


def test_what_cannot_be_compared_after_a_stop_string_is_said() -> None:
    """The last token went on after the stop string: the last chunk was not shown whole."""
    found = match("One two three \N{OCTOPUS} four ", ["END"])
    assert found.verdict == "unknown"
    assert "9 bytes from the stop string; 4 of 5 chunks are equal, and the answer's last 1 bytes" in found.detail


def test_a_stop_string_does_not_excuse_a_changed_chunk() -> None:
    assert match("One Two three \N{OCTOPUS} four ", ["END"]).verdict == "broken"


def test_a_stop_string_does_not_excuse_text_that_contradicts_the_next_chunk() -> None:
    assert match("One two", ["END"]).verdict == "broken"  # "One two" + "END" covers chunk 0, and is not it


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("border", [0, 1])
def test_a_last_character_cut_in_the_middle_holds(kept: int, border: int) -> None:
    chunks = [b"Hello ", "\N{OCTOPUS}".encode()[:kept]]
    if border:
        chunks = [chunks[0] + chunks[1][:1], chunks[1][1:]]
    assembler = TextAssembler()
    answer = "".join([assembler.feed(chunk) for chunk in chunks]) + assembler.finish()
    assert answer == "Hello \ufffd"
    found = match(answer, chunks=chunks)
    assert found.verdict == "holds"
    assert f"cut off after {kept} B" in found.detail
    assert match("Hullo \ufffd", chunks=chunks).verdict == "broken"
    assert match("Hello", chunks=chunks).verdict == "broken"


@pytest.mark.parametrize("character", ["\x80", "é", "ࠀ", "€", "\U00010000", "\U0010ffff"])
def test_every_length_of_a_cut_character_is_known(character: str) -> None:
    raw = character.encode()
    for kept in range(1, len(raw)):
        assert match("x\ufffd", chunks=[b"x" + raw[:kept]]).verdict == "holds"


def test_bytes_that_are_no_text_in_the_middle_cannot_be_compared_and_say_so() -> None:
    found = match("a\ufffdb", chunks=[b"a\xffb"])
    assert found.verdict == "broken"
    found = match("a\ufffdbcd", chunks=[b"a\xffb", b"cd"])
    assert (found.verdict, "U+FFFD" in found.detail) == ("broken", True)


def test_a_replacement_character_that_the_model_wrote_itself_holds() -> None:
    assert match("a\ufffd", chunks=["a\ufffd".encode()]).verdict == "holds"


def test_an_answer_that_is_no_text_is_broken_not_a_crash() -> None:
    assert match("One two \ud800").verdict == "broken"


@given(st.lists(st.text(max_size=6).map(str.encode), max_size=6), st.data())
def test_an_answer_shown_by_the_assembler_is_never_called_broken(chunks: list[bytes], data: st.DataObject) -> None:
    """Whatever the stop string, and wherever it falls."""
    whole = b"".join(chunks).decode()
    at = data.draw(st.integers(0, len(whole)))
    stop = [whole[at : at + 3]] if whole[at : at + 3] else []
    assembler = TextAssembler(stop)
    answer = "".join([assembler.feed(chunk) for chunk in chunks]) + assembler.finish()
    found = match(answer, stop, chunks)
    assert found.verdict in ("holds", "unknown")
    assert found.verdict == "holds" or stop
