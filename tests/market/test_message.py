"""Messages parse once, at the edge: a body by its kind, within its limits."""

from typing import Any

import libipld
import pytest

from market.errors import EncodingInvalid
from market.message import TOKENS_PER_FRAME_LIMIT, Message, MessageType, Queued, TaskError, Tokens
from market.values import decode, encode, to_plain


def message(body: Any, kind: MessageType = MessageType.STATUS_UPDATE) -> Message:
    return Message(type=kind, task=bytes(32), seq=0, sent_ms=1, body=body)


def test_a_body_is_read_as_the_kind_it_names() -> None:
    for body in (Queued(position=3), Tokens(start=0, tokens=(1, 2)), Tokens(start=2, tokens=(3,), head=bytes(32))):
        assert decode(Message, encode(Message, message(body))).body == body


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "nonsense"},
        {"position": 1},
        {"kind": "queued"},
        {"kind": "queued", "position": -1},
        {"kind": "queued", "position": 1, "extra": 1},
        {"kind": "tokens", "start": 0, "tokens": [], "head": None},
        {"kind": "tokens", "start": 0, "tokens": [0] * (TOKENS_PER_FRAME_LIMIT + 1), "head": None},
        {"kind": "tokens", "start": 0, "tokens": [-1], "head": None},
        {"kind": "tokens", "start": 0, "tokens": [2**31], "head": None},
        {"kind": "tokens", "start": 0, "tokens": [1], "head": bytes(31)},
        {"kind": "cancel", "reason": "x" * 501},
        [],
        None,
    ],
)
def test_a_body_that_is_not_exactly_its_kind_is_refused(body: Any) -> None:
    plain = to_plain(Message, message(Queued(position=0))) | {"body": body}
    with pytest.raises(EncodingInvalid, match="body"):
        decode(Message, bytes(libipld.encode_dag_cbor(plain)))


@pytest.mark.parametrize(
    "change", [{"seq": -1}, {"seq": 2**31}, {"task": bytes(31)}, {"sent_ms": 2**53}, {"parent": b""}]
)
def test_a_header_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    plain = to_plain(Message, message(Queued(position=0))) | change
    with pytest.raises(EncodingInvalid, match=next(iter(change))):
        decode(Message, bytes(libipld.encode_dag_cbor(plain)))


def test_a_word_outside_the_five_message_types_is_refused() -> None:
    plain = to_plain(Message, message(Queued(position=0))) | {"type": "GOSSIP"}
    with pytest.raises(EncodingInvalid, match="type"):
        decode(Message, bytes(libipld.encode_dag_cbor(plain)))


def test_an_error_names_its_fault_in_one_of_four_words() -> None:
    error = TaskError(fault="provider", code="engine_failed", message="the worker died", retry=True)
    assert decode(Message, encode(Message, message(error, MessageType.ERROR))).body == error
    plain = to_plain(Message, message(error, MessageType.ERROR))
    plain["body"]["fault"] = "nobody"
    with pytest.raises(EncodingInvalid, match="fault"):
        decode(Message, bytes(libipld.encode_dag_cbor(plain)))
