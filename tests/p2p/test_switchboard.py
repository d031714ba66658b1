"""Which message reaches which conversation, without a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from market.errors import PeerBrokeProtocol, PeerGone
from market.identity import PeerId
from market.message import TYPE_OF, Body, Message, Queued, TaskError
from market.task import TaskId
from p2p.bridge import QueueClosed
from p2p.conversation import MeshConversation
from p2p.limits import DEFAULT_LIMITS, NetworkLimits
from p2p.streams import Link, LinkEnded, Received
from p2p.switchboard import Switchboard
from p2p.wire import FrameParser, message_of

TASK, OTHER = TaskId(b"t" * 32), TaskId(b"o" * 32)


class Clock:
    def now_ms(self) -> int:
        return 1_800_000_000_000


class FakeOutbox:
    """Keeps what was sent; `is_full` and `is_closed` are for the test to set."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.is_full = False
        self.is_closed = False

    async def ready(self) -> None:
        if self.is_closed:
            raise QueueClosed

    def put(self, frame: bytes, weight: int) -> None:
        assert weight == len(frame)
        if self.is_closed:
            raise QueueClosed
        self.sent += [message_of(body) for body in FrameParser().feed(frame)]


class FakeInbox:
    def attach(self, receiver: Any) -> None:
        self.push = receiver


class FakeLink:
    peer = PeerId("12D3KooWMbbPVGsZYh3ChQjue712NHHGNybRRXwnuSpezYjGbCDS")

    def __init__(self, is_inbound: bool) -> None:
        self.is_inbound = is_inbound
        self.outbox = FakeOutbox()
        self.inbox = FakeInbox()


class Desk:
    """A switchboard on a fake link, and everything that came out of it."""

    def __init__(self, *, is_inbound: bool, limits: NetworkLimits = DEFAULT_LIMITS) -> None:
        self.link = FakeLink(is_inbound)
        self.accepted: list[MeshConversation] = []
        self.ended: list[Switchboard] = []
        self.is_busy = False
        self.board = Switchboard(cast(Link, self.link), Clock(), limits, accept=self._accept, ended=self.ended.append)
        self.board.start()

    def _accept(self, conversation: MeshConversation) -> bool:
        if not self.is_busy:
            self.accepted.append(conversation)
        return not self.is_busy

    def arrives(self, task: TaskId, seq: int, body: Body | None = None, size_bytes: int = 100) -> None:
        body = body or Queued(position=seq)
        message = Message(type=TYPE_OF[type(body)], task=task, seq=seq, sent_ms=1, body=body)
        self.link.inbox.push([Received(message=message, size_bytes=size_bytes)])

    def errors(self) -> list[tuple[bytes, int, str]]:
        return [(m.task, m.seq, m.body.code) for m in self.link.outbox.sent if isinstance(m.body, TaskError)]


async def test_the_first_message_of_a_task_opens_a_conversation_and_the_next_ones_join_it() -> None:
    desk = Desk(is_inbound=True)
    desk.arrives(TASK, 0)
    desk.arrives(OTHER, 0)
    desk.arrives(TASK, 1)
    assert [conversation.task for conversation in desk.accepted] == [TASK, OTHER]
    assert [(await desk.accepted[0].receive(1)).seq for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("seq", [1, 7])
def test_a_late_message_of_an_unknown_task_opens_nothing(seq: int) -> None:
    desk = Desk(is_inbound=True)
    desk.arrives(TASK, seq)
    assert desk.accepted == []
    assert desk.link.outbox.sent == []


def test_an_error_opens_nothing_and_is_not_answered() -> None:
    desk = Desk(is_inbound=True)
    desk.arrives(TASK, 0, TaskError(fault="client", code="too_many_tasks", message="", retry=True))
    assert desk.accepted == []
    assert desk.link.outbox.sent == []


def test_a_peer_cannot_open_tasks_on_a_stream_that_is_ours() -> None:
    desk = Desk(is_inbound=False)
    desk.arrives(TASK, 0)
    assert desk.accepted == []
    assert desk.link.outbox.sent == []


def test_a_busy_node_refuses_politely() -> None:
    desk = Desk(is_inbound=True)
    desk.is_busy = True
    desk.arrives(TASK, 0)
    assert desk.errors() == [(TASK, 0, "too_many_tasks")]
    desk.arrives(TASK, 1)
    assert len(desk.errors()) == 1


def test_refusals_do_not_pile_up_for_a_peer_that_does_not_read() -> None:
    desk = Desk(is_inbound=True)
    desk.is_busy = desk.link.outbox.is_full = True
    for number in range(100):
        desk.arrives(TaskId(number.to_bytes(32, "big")), 0)
    assert desk.link.outbox.sent == []


async def test_too_many_unread_bytes_end_one_conversation_in_its_own_numbering() -> None:
    desk = Desk(is_inbound=True, limits=replace(DEFAULT_LIMITS, unread_bytes=1000))
    desk.arrives(TASK, 0, size_bytes=600)
    desk.arrives(OTHER, 0)
    await desk.accepted[0].send(Queued(position=0))
    desk.arrives(TASK, 1, size_bytes=600)
    assert desk.errors() == [(TASK, 1, "too_many_unread")]
    desk.arrives(TASK, 2)
    assert len(desk.errors()) == 1
    with pytest.raises(PeerBrokeProtocol):
        await desk.accepted[0].send(Queued(position=0))
    await desk.accepted[1].send(Queued(position=0))


async def test_reading_makes_room_again() -> None:
    desk = Desk(is_inbound=True, limits=replace(DEFAULT_LIMITS, unread_bytes=1000, unread_messages=2))
    for seq in range(20):
        desk.arrives(TASK, seq, size_bytes=900)
        await desk.accepted[0].receive(1)
    assert desk.errors() == []


async def test_a_closed_conversation_hears_no_more_and_its_task_may_come_again() -> None:
    desk = Desk(is_inbound=True)
    desk.arrives(TASK, 0)
    await desk.accepted[0].aclose()
    desk.arrives(TASK, 1)
    with pytest.raises(PeerGone):
        await desk.accepted[0].receive(1)
    desk.arrives(TASK, 0)
    assert len(desk.accepted) == 2


async def test_the_end_of_a_link_reaches_every_conversation_after_what_had_arrived() -> None:
    desk = Desk(is_inbound=True)
    for task in (TASK, OTHER):
        desk.arrives(task, 0)
    desk.link.outbox.is_closed = True
    desk.link.inbox.push([LinkEnded(fault="gone", reason="the cable was pulled")])
    assert desk.ended == [desk.board]
    for conversation in desk.accepted:
        assert (await conversation.receive(1)).seq == 0
        with pytest.raises(PeerGone, match="cable"):
            await conversation.receive(1)
        with pytest.raises(PeerGone, match="cable"):
            await conversation.send(Queued(position=1))
