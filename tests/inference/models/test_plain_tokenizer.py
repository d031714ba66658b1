"""Units of three bytes: counted alike by both sides, from the text alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.plain_tokenizer import (
    PlainTokenizer,
    UnitCutter,
    bytes_of,
    is_canonical,
    messages_of,
    unit_bytes,
    units_of,
)
from market.errors import EncodingInvalid, RequestInvalid
from market.task import ChatMessage

TOKENIZER = PlainTokenizer()
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


def chat(*texts: str) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role="user", content=text) for text in texts)


@given(st.binary(max_size=40))
def test_any_bytes_are_units_and_units_are_those_bytes(data: bytes) -> None:
    units = units_of(data)
    assert bytes_of(units) == data and is_canonical(units) and len(units) == -(-len(data) // 3)
    assert all(0 < unit < 2**31 for unit in units)


@pytest.mark.parametrize("unit", [0, 1, -1, 0x01_000100, 0x02_010000, 0x04_000000, 2**31, 0x00_FFFFFF])
def test_an_id_that_is_no_unit_is_refused(unit: int) -> None:
    with pytest.raises(EncodingInvalid):
        TOKENIZER.token_bytes(unit)


def test_a_unit_keeps_its_leading_zeros() -> None:
    assert unit_bytes(units_of(b"\0\0a")[0]) == b"\0\0a"


@given(st.lists(st.tuples(st.sampled_from(["user", "system", "tool"]), TEXT, st.none() | TEXT), min_size=1, max_size=4))
def test_a_chat_comes_back_out_of_its_prompt(plain: list[tuple[str, str, str | None]]) -> None:
    messages = tuple(ChatMessage(role=role, content=content, name=name) for role, content, name in plain)
    assert messages_of(TOKENIZER.render(messages)) == messages


def test_a_chat_is_compact_json() -> None:
    prompt = TOKENIZER.render((ChatMessage(role="user", content='é"', name="Zoë"),))
    assert bytes_of(prompt).decode() == '[{"role":"user","name":"Zoë","content":"é\\""}]'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "hello",
        '"user"',
        '[{"role":"user"}]',
        '[{"role":"user","content":1}]',
        '[{"role":"user","content":null}]',
        '[{"content":"x","role":"user"}]',
        '[{"role":"user","content":"x","more":"y"}]',
        '[{"role":"user","role":"user","content":"x"}]',
        '[{"role":"root","content":"x"}]',
        '[{"role": "user","content":"x"}]',
        '[{"role":"user","content":"\\u0041"}]',
        '[{"role":"user","content":"\\ud800"}]',
        '[{"role":"user","content":"x"}] ',
        "[" * 100_000,
        json.dumps([{"role": "user", "content": ""}] * 3000, separators=(",", ":")),
    ],
)
def test_a_prompt_that_is_no_chat_of_ours_is_refused(text: str) -> None:
    with pytest.raises(RequestInvalid):
        messages_of(units_of(text.encode()))


def test_who_sends_a_plain_text_is_told_to_send_a_chat() -> None:
    with pytest.raises(RequestInvalid, match="asked chats alone") as refused:
        messages_of(TOKENIZER.encode("Once upon a time"))
    assert "/v1/chat/completions" in refused.value.next_step


def test_a_prompt_cut_into_more_units_than_its_text_has_is_refused() -> None:
    data = bytes_of(TOKENIZER.render(chat("hello")))
    padded = tuple(unit for byte in data for unit in units_of(bytes((byte,))))
    assert not is_canonical(padded)
    with pytest.raises(RequestInvalid):
        messages_of(padded)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(RequestInvalid):
        messages_of(units_of(b'[{"role":"user","content":"\xff"}]'))


def test_an_unknown_role_and_half_a_character_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="role"):
        TOKENIZER.render((ChatMessage(role="root", content="x"),))
    with pytest.raises(RequestInvalid, match="half a character"):
        TOKENIZER.render(chat("\ud83d"))


# ---- answers -------------------------------------------------------------------------------------


@given(st.lists(TEXT, max_size=8))
def test_how_a_text_arrives_does_not_change_its_units(pieces: list[str]) -> None:
    cutter = UnitCutter(1000)
    units = [unit for piece in pieces for unit in cutter.feed(piece)] + list(cutter.finish())
    assert tuple(units) == units_of("".join(pieces).encode())


def test_at_most_two_bytes_wait() -> None:
    cutter = UnitCutter(10)
    assert bytes_of(cutter.feed("Hello")) == b"Hel"
    assert bytes_of(cutter.feed("!")) == b"lo!"
    assert cutter.finish() == ()


def test_a_character_whose_two_surrogates_come_apart_is_whole() -> None:
    cutter = UnitCutter(10)
    units = cutter.feed("a\ud83d") + cutter.feed("\ude00b") + cutter.finish()
    assert bytes_of(units).decode() == "a😀b"


def test_half_a_character_that_never_becomes_whole_is_a_replacement() -> None:
    cutter = UnitCutter(10)
    units = cutter.feed("\ude00x\ud83d") + cutter.feed("y\ud83d") + cutter.finish()
    assert bytes_of(units).decode() == "\ufffdx\ufffdy\ufffd"


@given(TEXT, st.integers(1, 20), st.integers(1, 7))
def test_the_limit_holds_and_is_said(text: str, limit: int, step: int) -> None:
    cutter = UnitCutter(limit)
    units = [unit for at in range(0, len(text), step) for unit in cutter.feed(text[at : at + step])]
    units += cutter.finish()
    data = text.encode()
    assert cutter.full == (len(data) > 3 * limit)
    assert len(units) <= limit and is_canonical(units) and data.startswith(bytes_of(units))
    assert len(bytes_of(units)) > min(len(data), 3 * limit) - 4


def test_the_limit_does_not_cut_a_character_that_came_whole() -> None:
    cutter = UnitCutter(2)
    assert bytes_of(cutter.feed("abcd😀") + cutter.finish()) == b"abcd"
    assert cutter.full and cutter.feed("more") == ()
