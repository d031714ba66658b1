"""Who gets the next slot, and who gives one up: fairness between clients, as pure decisions.

Lives here: the order of waiting jobs, shedding when too many wait, the choice of whom to preempt. Must not
know: workers, tokens' values, time.

Lower priority numbers go first. Within one, clients share as in start-time fair queueing: each has a virtual
time that grows by what its admitted jobs cost divided by their weight, the client furthest behind is next, and
one that comes back starts at the present. So a client with a thousand jobs delays another's single job by one.
Source: Goyal, Vin, Cheng, Start-Time Fair Queueing, SIGCOMM 1996.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_REMEMBERED: Final = 4096
"""Virtual times of clients that wait for nothing; those that have fallen behind the present say nothing."""

T = TypeVar("T")
_Queue = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    item: T
    cost: float
    order: int


class Waiting(Generic[T]):
    """Jobs that found no slot. An item is known by its identity."""

    def __init__(self) -> None:
        self._queues: dict[_Queue, deque[_Entry[T]]] = {}
        self._spent: dict[_Queue, float] = {}
        self._now: dict[int, float] = {}
        self._count = 0
        self._order = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: T, *, priority: int, client: str = "", cost: float = 1.0, again: bool = False) -> None:
        """`cost` is work over weight. `again`: it had a slot and lost it, so it is first of its client's, for free."""
        key = priority, client
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            self._spent[key] = max(self._spent.get(key, 0.0), self._now.get(priority, 0.0))
        self._order += 1
        self._count += 1
        entry = _Entry(item, 0.0 if again else cost, self._order)
        queue.appendleft(entry) if again else queue.append(entry)

    def peek(self) -> T:
        return self._queues[self._next()][0].item

    def pop(self) -> T:
        key = self._next()
        entry = self._queues[key].popleft()
        self._now[key[0]] = self._spent[key]
        self._spent[key] += entry.cost
        self._taken(key)
        return entry.item

    def discard(self, item: T) -> None:
        for key, queue in self._queues.items():
            for entry in queue:
                if entry.item is item:
                    queue.remove(entry)
                    self._taken(key)
                    return

    def shed(self, priority: int, client: str) -> T | None:
        """Make room for a newcomer: the newest job of whoever waits for most is taken out, if that is less urgent
        than the newcomer or not his own; None if he has to go himself."""
        worst = max(key[0] for key in self._queues)
        if worst < priority:
            return None
        greedy = max((key for key in self._queues if key[0] == worst), key=lambda key: len(self._queues[key]))
        own = len(self._queues.get((priority, client), ()))
        if worst == priority and own + 1 >= len(self._queues[greedy]):
            return None
        entry = self._queues[greedy].pop()
        self._taken(greedy)
        return entry.item

    def drain(self) -> Iterator[T]:
        while self._count:
            yield self.pop()

    def _next(self) -> _Queue:
        return min(self._queues, key=lambda key: (key[0], self._spent[key], self._queues[key][0].order))

    def _taken(self, key: _Queue) -> None:
        self._count -= 1
        if not self._queues[key]:
            del self._queues[key]
        if len(self._spent) > _REMEMBERED:
            now = self._now
            self._spent = {k: t for k, t in self._spent.items() if k in self._queues or t > now.get(k[0], 0.0)}


@dataclass(frozen=True, slots=True)
class Holder:
    """A running job as `victim` sees it. `done` is how many tokens it has: what would have to be fed again."""

    priority: int
    client: str
    done: int


def victim(priority: int, client: str, running: Sequence[Holder]) -> int:
    """Which running job gives its slot to a newcomer, by index; -1 for none.

    A less urgent one, of the least urgent the one with least to do again. Among equals, one of the client that
    holds the most slots, if that is at least two more than the newcomer's client holds: then both hold fewer than
    the other held before, so that slots never go back and forth.
    """
    lowest = max((holder.priority for holder in running), default=priority)
    if lowest > priority:
        return min((h.done, -at) for at, h in enumerate(running) if h.priority == lowest)[1] * -1
    held: dict[str, int] = {}
    for holder in running:
        if holder.priority == priority:
            held[holder.client] = held.get(holder.client, 0) + 1
    richest = max(held, key=lambda name: held[name], default=client)
    if held.get(richest, 0) < held.get(client, 0) + 2:
        return -1
    peers = [(h.done, -at) for at, h in enumerate(running) if (h.priority, h.client) == (priority, richest)]
    return -min(peers)[1]
