"""Routes the messages of one link to its conversations, asyncio side.

On a link that we opened, tasks are ours and anything else is late or invented: dropped. On a link that the
peer opened, the first message (seq 0) of an unknown task opens a conversation, within limits.

A slow reader never blocks its neighbours: its queue is bounded, and over the bound that conversation ends
with PeerBrokeProtocol here and ERROR `too_many_unread` there, while all others go on.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from market.errors import Fault, StepNotAllowed
from market.message import MessageType, TaskError
from market.ports import Clock
from market.task import TaskId
from p2p.conversation import MeshConversation
from p2p.limits import NetworkLimits
from p2p.streams import Link, LinkEnded, Received

_log = structlog.get_logger()


class Switchboard:
    """`accept` starts serving a new inbound conversation and returns False when the node is full."""

    def __init__(
        self,
        link: Link,
        clock: Clock,
        limits: NetworkLimits,
        *,
        accept: Callable[[MeshConversation], bool],
        ended: Callable[[Switchboard], None],
    ) -> None:
        self.link = link
        self.is_alive = True
        self._clock = clock
        self._limits = limits
        self._accept = accept
        self._ended = ended
        self._open: dict[bytes, MeshConversation] = {}

    def start(self) -> None:
        self.link.inbox.attach(self._receive)

    def converse(self, task: TaskId) -> MeshConversation:
        """Our own new task on this link."""
        if task in self._open:
            raise StepNotAllowed(f"task {task.hex()} already has a conversation with {self.link.peer}.")
        conversation = MeshConversation(self.link, task, self._clock, self._limits, self._forget)
        self._open[task] = conversation
        return conversation

    def end(self, ended: LinkEnded) -> None:
        """Every open conversation learns at once that its link is dead."""
        if not self.is_alive:
            return
        self.is_alive = False
        conversations, self._open = tuple(self._open.values()), {}
        for conversation in conversations:
            conversation.end(ended.fault, ended.reason)
        self._ended(self)

    def _receive(self, items: list[Received | LinkEnded]) -> None:
        for item in items:
            if isinstance(item, LinkEnded):
                self.end(item)
            elif self.is_alive:
                self._route(item)

    def _route(self, received: Received) -> None:
        message = received.message
        conversation = self._open.get(message.task)
        if conversation is None:
            # An ERROR opens nothing, or two nodes could refuse each other's refusals for ever.
            if not self.link.is_inbound or message.seq or message.type == MessageType.ERROR:
                _log.debug("p2p.late_message", peer=self.link.peer, task=message.task.hex(), seq=message.seq)
                return
            conversation = self._admit(TaskId(message.task))
            if conversation is None:
                return
        code = conversation.take(received)
        if code is not None:
            _log.warning("p2p.conversation_ended", peer=self.link.peer, task=message.task.hex(), code=code)
            self._dismiss(conversation, code, "the reader ended the conversation")

    def _admit(self, task: TaskId) -> MeshConversation | None:
        is_full = len(self._open) >= self._limits.tasks_per_peer
        conversation = MeshConversation(self.link, task, self._clock, self._limits, self._forget)
        if is_full or not self._accept(conversation):
            why = f"{self._limits.tasks_per_peer} of your tasks are open" if is_full else "this node is busy"
            self._dismiss(conversation, "too_many_tasks", why)
            return None
        self._open[task] = conversation
        return conversation

    def _dismiss(self, conversation: MeshConversation, code: str, reason: str) -> None:
        self._forget(conversation)
        fault: Fault = "client" if self.link.is_inbound else "provider"
        conversation.dismiss(TaskError(fault=fault, code=code, message=reason, retry=True))

    def _forget(self, conversation: MeshConversation) -> None:
        if self._open.get(conversation.task) is conversation:
            del self._open[conversation.task]
