"""Confirming providers among false names, on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import MockClock

from market.errors import PeerTimedOut
from market.identity import PeerId
from p2p.endpoints import Endpoint
from p2p.kademlia import Known
from p2p.keys import PeerKey
from p2p.lookup import Hint
from p2p.search import Search

MakeKey = Callable[[str], PeerKey]


class World:
    """Who is really there; everybody else's address swallows five seconds. Counts dials."""

    def __init__(self, *alive: PeerId) -> None:
        self.alive = alive
        self.dials: list[PeerId] = []
        self.at_once = self.most_at_once = 0

    async def reach(self, hint: Hint, visited: set[PeerId]) -> None:
        peer = hint.known.peer
        self.dials.append(peer)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if peer not in self.alive:
                await trio.sleep(5)
                raise PeerTimedOut("nobody there.", peer=peer)
            await trio.sleep(0.01)
            visited.add(peer)
        finally:
            self.at_once -= 1

    async def confirm(self, peer: PeerId) -> bool:
        return peer in self.alive


def known(peer: PeerId) -> Known:
    return Known(peer=peer, endpoints=(Endpoint(ip="127.0.0.1", port=9, peer=peer),))


def search(world: World, lists: list[tuple[PeerId, list[PeerId]]], me: PeerId, within_s: float) -> list[PeerId]:
    """Let each teller name its list, and again a second later; search for so many seconds of our clock."""
    found: list[PeerId] = []

    async def main() -> None:
        job = Search(me, at_once=4, is_connected=lambda _: False, reach=world.reach, confirm=world.confirm, found=found)
        with trio.move_on_after(within_s) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job.run, scope)
                for _ in range(2):
                    for teller, named in lists:
                        job.add(teller, "127.0.0.1", [known(peer) for peer in named])
                    await trio.sleep(1)
                job.close()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return found


def test_one_liars_list_delays_an_honest_name_by_one_dial(make_key: MakeKey) -> None:
    me, liar, honest, there = (make_key(name).peer for name in ("me", "liar", "honest", "there"))
    false = [make_key(f"false {number}").peer for number in range(20)]
    world = World(there)
    assert search(world, [(liar, false), (honest, [there])], me, within_s=4) == [there]
    assert world.most_at_once == 4


def test_what_many_name_is_tried_first(make_key: MakeKey) -> None:
    me, there = make_key("me").peer, make_key("there").peer
    lists = [(make_key(f"teller {n}").peer, [make_key(f"false {n} {k}").peer for k in range(8)]) for n in range(6)]
    lists += [(make_key(f"witness {n}").peer, [there]) for n in range(2)]
    world = World(there)
    assert search(world, lists, me, within_s=4) == [there]
    assert world.dials[0] == there


def test_a_name_is_tried_once_and_we_are_never_our_own_provider(make_key: MakeKey) -> None:
    me, one = make_key("me").peer, make_key("one").peer
    world = World(one, me)
    assert search(world, [(make_key(f"{n}").peer, [one, me, one]) for n in range(5)], me, within_s=60) == [one]
    assert world.dials == [one]


def test_enough_is_enough(make_key: MakeKey) -> None:
    me = make_key("me").peer
    many = [make_key(f"provider {number}").peer for number in range(40)]
    lists = [(make_key(f"teller {n}").peer, many[n * 8 : n * 8 + 8]) for n in range(5)]
    found = search(World(*many), lists, me, within_s=60)
    assert len(found) >= 8
    assert len(found) < 8 + 4
