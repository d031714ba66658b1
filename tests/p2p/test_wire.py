"""Frames survive any cut between two reads, and garbage never survives."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from market.message import TYPE_OF, Body, Cancel, Message, MessageType, Queued, Refuse, TaskError, Tokens
from market.values import encode
from p2p.wire import FRAME_LIMIT_BYTES, FrameParser, frame_of, message_frame, message_of

words = st.text(max_size=40)
bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(Queued, position=st.integers(0, 2**31 - 1)),
    st.builds(Cancel, reason=words),
    st.builds(Refuse, code=words, reason=words),
    st.builds(
        Tokens,
        start=st.integers(0, 2**31 - 1),
        tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20).map(tuple),
        head=st.none() | st.binary(min_size=32, max_size=32),
    ),
    st.builds(
        TaskError,
        fault=st.sampled_from(["client", "provider", "node", "network"]),
        code=words,
        message=words,
        retry=st.booleans(),
    ),
)
messages = st.builds(
    lambda body, task, seq, sent_ms: Message(type=TYPE_OF[type(body)], task=task, seq=seq, sent_ms=sent_ms, body=body),
    bodies,
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**53 - 1),
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 10**6), max_size=8))
def test_messages_come_back_equal_however_the_stream_is_cut(sent: list[Message], at: list[int]) -> None:
    parser = FrameParser()
    pieces = cut(b"".join(message_frame(message) for message in sent), at)
    assert [message_of(body) for piece in pieces for body in parser.feed(piece)] == sent
    assert not parser.is_mid_frame


@given(st.binary(max_size=400))
def test_garbage_either_waits_for_more_or_is_refused(garbage: bytes) -> None:
    parser = FrameParser(limit_bytes=200)
    try:
        for body in parser.feed(garbage):
            message_of(body)
    except EncodingInvalid:
        return
    assert len(garbage) == 0 or parser.is_mid_frame


@given(messages, st.data())
def test_a_flipped_bit_never_passes_as_the_same_message(message: Message, data: st.DataObject) -> None:
    body = bytearray(message_frame(message)[4:])
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    body[bit // 8] ^= 1 << bit % 8
    with suppress(EncodingInvalid):
        assert message_of(bytes(body)) != message


def test_an_oversized_frame_is_refused_at_its_header() -> None:
    with pytest.raises(EncodingInvalid, match="announces"):
        list(FrameParser().feed((FRAME_LIMIT_BYTES + 1).to_bytes(4, "big")))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(EncodingInvalid):
        list(FrameParser().feed(bytes(4)))


def test_frames_before_the_garbage_still_come_out() -> None:
    good = frame_of(Queued, Queued(position=1))
    parser, out = FrameParser(), []
    with pytest.raises(EncodingInvalid):
        for body in parser.feed(good + b"\xff" * 8):
            out.append(body)
    assert out == [encode(Queued, Queued(position=1))]


def test_a_parser_that_lost_its_place_keeps_refusing() -> None:
    parser = FrameParser()
    with pytest.raises(EncodingInvalid):
        list(parser.feed(b"\xff" * 8))
    with pytest.raises(EncodingInvalid):
        list(parser.feed(frame_of(Queued, Queued(position=1))))


def test_a_value_over_the_limit_is_not_sent() -> None:
    with pytest.raises(EncodingInvalid, match="over the limit"):
        frame_of(bytes, bytes(FRAME_LIMIT_BYTES))


def test_a_body_whose_type_lies_is_still_only_what_it_says() -> None:
    body = encode(Queued, Queued(position=1))
    with pytest.raises(EncodingInvalid):
        message_of(body)


def test_a_message_that_claims_another_type_than_its_bodys_is_refused() -> None:
    lie = Message(type=MessageType.NEGOTIATE, task=bytes(32), seq=0, sent_ms=0, body=Queued(position=1))
    with pytest.raises(EncodingInvalid, match="does not carry 'queued'"):
        message_of(encode(Message, lie))
