"""Which models stay in memory: who must go so that another fits. Pure; `node.model_cache` acts on it.

Lives here: the rule (least recently used first, nobody that works, nobody that is pinned) and its one exception: a
model that is never idle may not keep another out for ever. Must not know: engines, files, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from market.values import value

PATIENCE_S: Final = 10.0
"""So long who waits for memory leaves busy models alone; then the least recently asked of them takes no new tasks,
ends those that it has, and goes. Half of the time in which a realtime client still waits gladly."""


@value
class Resident:
    """A model in memory, on its way in (`arriving`) or out (`leaving`). `users` are its tasks, running or waiting for
    it; `used_at` when one last came or went."""

    model: str
    size_bytes: int
    users: int = 0
    used_at: float = 0.0
    pinned: bool = False
    arriving: bool = False
    leaving: bool = False


@value
class Wish:
    """A model that somebody waits for, since when; a lower `priority` goes first."""

    model: str
    size_bytes: int
    priority: int
    since: float


@value
class Step:
    """What to do now. `drain` are busy models that shall take no new tasks; `refuse` are wishes that cannot be met,
    with the most bytes that could be made free for them. `again_s` is when to look again though nothing happened, 0:
    never."""

    load: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    refuse: tuple[tuple[str, int], ...] = ()
    again_s: float = 0.0


def next_step(
    residents: Sequence[Resident],
    wishes: Sequence[Wish],
    *,
    budget_bytes: int,
    now: float,
    patience_s: float = PATIENCE_S,
) -> Step:
    """`budget_bytes` is for all residents together, those on their way in or out included. If they have come to take
    more, idle ones go until they do not, the one that was used last excepted.

    Wishes are met in their order. One that must wait for busy models lets later ones that fit pass, until its patience
    is over; one for which memory is being freed is not overtaken.
    """
    free = budget_bytes - sum(resident.size_bytes for resident in residents)
    coming = sum(resident.size_bytes for resident in residents if resident.leaving)
    fixed = sum(resident.size_bytes for resident in residents if resident.pinned)
    stays = [resident for resident in residents if not (resident.pinned or resident.arriving or resident.leaving)]
    if free + coming < 0 and not any(resident.arriving for resident in residents):
        last = max((resident.used_at for resident in residents), default=0.0)
        idle = [resident for resident in stays if not resident.users and resident.used_at < last]
        if idle:
            over = _chosen(idle, -(free + coming)) or idle
            return Step(unload=tuple(resident.model for resident in over))
    load: list[str] = []
    refuse: list[tuple[str, int]] = []
    again_s = 0.0
    for wish in sorted(wishes, key=lambda wish: (wish.priority, wish.since)):
        if wish.size_bytes > budget_bytes - fixed:
            if not any(resident.arriving for resident in residents):  # else the budget may be reckoned anew soon
                refuse.append((wish.model, max(0, budget_bytes - fixed)))
            continue
        if wish.size_bytes <= free:
            load.append(wish.model)
            free -= wish.size_bytes
            continue
        missing = wish.size_bytes - free - coming
        if missing <= 0:
            break
        idle = [resident for resident in stays if not resident.users]
        going = _chosen(idle, missing)
        left_s = wish.since + patience_s - now
        if going is None and left_s <= 0:
            going = _chosen(idle, missing, stays)
        if going is not None:
            unload = tuple(resident.model for resident in going if not resident.users)
            drain = tuple(resident.model for resident in going if resident.users)
            return Step(load=tuple(load), unload=unload, drain=drain, refuse=tuple(refuse), again_s=again_s)
        if left_s > 0:
            again_s = min(again_s or left_s, left_s)
    return Step(load=tuple(load), refuse=tuple(refuse), again_s=again_s)


def _chosen(idle: Sequence[Resident], missing: int, also: Sequence[Resident] = ()) -> tuple[Resident, ...] | None:
    """The least recently used whose sizes reach `missing`, busy ones of `also` last; None if all are not enough."""
    order = sorted(idle, key=lambda resident: resident.used_at)
    order += sorted((resident for resident in also if resident.users), key=lambda resident: resident.used_at)
    chosen: list[Resident] = []
    freed = 0
    for resident in order:
        if freed >= missing:
            break
        chosen.append(resident)
        freed += resident.size_bytes
    if freed < missing:
        return None
    for resident in reversed(chosen):  # a large one may have made a smaller one's going needless
        if freed - resident.size_bytes >= missing:
            chosen.remove(resident)
            freed -= resident.size_bytes
    return tuple(chosen)


def load_first(sizes: Sequence[tuple[str, int]], budget_bytes: int) -> tuple[str, ...]:
    """Of models in the order of the settings, those to load at start: each that still fits beside those before it."""
    chosen: list[str] = []
    for model, size in sizes:
        if size <= budget_bytes:
            chosen.append(model)
            budget_bytes -= size
    return tuple(chosen)
