"""Who fetches what: segments by speed, taking over from the slow, strikes and pauses; without a byte on a wire."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from inference.models.board import LONGEST_BYTES, SHORTEST_BYTES, Board
from inference.models.crew import Told, take_piece
from inference.models.partial import Partial
from inference.models.progress import Meter, Progress, Rate
from inference.models.standing import Crowd, Patience
from inference.models.unixfs import Leaf
from market.errors import BlockInvalid, ContentUnavailable, OctoError

MIB = 1024 * 1024


def leaves(count: int) -> list[Leaf]:
    return [Leaf(at * MIB, MIB, bytes(32)) for at in range(count)]


def board(count: int, *, done: tuple[int, ...] = (), streams: int = 1) -> tuple[Board, bytearray]:
    marks = bytearray(count)
    for number in done:
        marks[number] = 1
    return Board(leaves(count), marks, streams=streams), marks


def drain(plan: Board) -> None:
    """Somebody brings all that waits."""
    while segment := plan.take("drain", 0, 0, speeds={}):
        segment.numbers.clear()
        plan.end(segment)


def test_a_quick_source_gets_a_seconds_worth_and_an_unknown_one_the_least() -> None:
    plan, _ = board(1000)
    assert len(plan.take("new", 0, 0, speeds={}).numbers) == SHORTEST_BYTES // MIB
    assert len(plan.take("quick", 20 * MIB, 0, speeds={}).numbers) == 20
    assert len(plan.take("quickest", 900 * MIB, 0, speeds={}).numbers) == LONGEST_BYTES // MIB


def test_segments_get_shorter_towards_the_end_so_that_all_finish_together() -> None:
    plan, _ = board(64, streams=2)
    sizes = []
    while segment := plan.take("one", 900 * MIB, 0, speeds={}):
        sizes.append(len(segment.numbers))
        segment.numbers.clear()
    assert sizes[0] == 16
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2] == SHORTEST_BYTES // MIB


def test_what_is_there_is_not_asked_for_and_splits_a_segment() -> None:
    plan, _ = board(8, done=(0, 3))
    assert list(plan.take("one", 99 * MIB, 0, speeds={}).numbers) == [1, 2]
    assert list(plan.take("one", 99 * MIB, 0, speeds={}).numbers) == [4, 5, 6, 7]


def test_what_a_request_did_not_bring_comes_back_before_all_else() -> None:
    plan, done = board(20)
    first = plan.take("one", 0, 0, speeds={})
    done[first.numbers.popleft()] = 1
    plan.end(first)
    assert list(plan.take("two", 0, 0, speeds={}).numbers)[:3] == [1, 2, 3]


def test_the_tail_of_what_a_slow_source_has_goes_to_a_quick_one_by_their_speeds() -> None:
    plan, _ = board(40)
    slow = plan.take("slow", 20 * MIB, 0, speeds={})
    drain(plan)
    taken = plan.take("quick", 15 * MIB, 1, speeds={"slow": 5.0 * MIB})
    assert list(taken.numbers) == list(range(5, 20))
    assert list(slow.numbers) == list(range(5))


def test_what_is_done_soon_is_left_to_whoever_has_it() -> None:
    plan, _ = board(40)
    plan.take("one", 20 * MIB, 0, speeds={})
    drain(plan)
    assert plan.take("two", 20 * MIB, 1, speeds={"one": 50.0 * MIB}) is None


def test_what_stands_still_is_fetched_by_another_as_well_and_nobody_loses_his_leaf() -> None:
    plan, _ = board(4)
    still = plan.take("slow", 0, 0, speeds={})
    assert plan.take("quick", 0, 1.9, speeds={}) is None
    assert list(plan.take("quick", 0, 2.1, speeds={}).numbers) == list(still.numbers) == [0, 1, 2, 3]
    assert plan.take("third", 0, 2.1, speeds={}) is not None
    assert plan.take("fourth", 0, 2.1, speeds={}) is None, "two rivals are enough"


def test_leaves_that_are_still_being_fetched_elsewhere_do_not_come_back() -> None:
    plan, _ = board(4)
    still = plan.take("slow", 0, 0, speeds={})
    plan.take("quick", 0, 3, speeds={})
    plan.end(still)
    assert plan.take("third", 0, 3, speeds={}) is None


# ---- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 100, 101, 250, 1000])
def test_pieces_of_any_size_make_the_same_leaves(tmp_path: Path, piece: int) -> None:
    data = random.Random(piece).randbytes(1000)
    table = [Leaf(at, 100, hashlib.sha256(data[at : at + 100]).digest()) for at in range(0, 1000, 100)]
    partial, spare, left = Partial(tmp_path, "root", table, 1000), bytearray(), list(range(10))
    told = Told("root", "source")
    for at in range(0, 1000, piece):
        good, bad = take_piece(partial, left, spare, memoryview(data)[at : at + piece], told)
        assert bad is None
        del left[:good]
    assert partial.whole
    assert told.lengths == [100] * 10
    partial.close()
    assert partial.part.read_bytes() == data


def test_a_piece_with_a_wrong_leaf_says_which_and_keeps_those_before(tmp_path: Path) -> None:
    table = [Leaf(at, 10, hashlib.sha256(b"x" * 10).digest()) for at in range(0, 50, 10)]
    partial = Partial(tmp_path, "root", table, 50)
    told = Told("root", "source")
    bent = memoryview(b"x" * 25 + b"?" + b"x" * 24)
    assert take_piece(partial, range(5), bytearray(), bent, told) == (2, 2)
    assert told.lengths == [10, 10]
    assert partial.done_bytes == 20
    partial.close()


# ---- standing ------------------------------------------------------------------------------------


class Mute:
    def __init__(self, name: str) -> None:
        self.name = name

    async def block(self, cid: str) -> bytes:
        raise ContentUnavailable(f"{self.name} has nothing.")

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        raise ContentUnavailable(f"{self.name} has nothing.")
        yield b""


class Busy(ContentUnavailable):
    def __init__(self, wait: float) -> None:
        super().__init__("later")
        self.retry_after_s = wait


class Scene:
    """A crowd of one on a clock that only we move."""

    def __init__(self, **patience: float) -> None:
        self.now = 100.0
        self.blamed: list[tuple[str, str]] = []
        self.crowd = Crowd(
            "bafy",
            [Mute("one")],
            patience=Patience(**patience),
            clock=lambda: self.now,
            jitter=lambda: 0.5,
            blame=lambda *what: self.blamed.append(what),
        )
        (self.one,) = self.crowd.live

    def fail(self, error: OctoError) -> float:
        """Seconds until the source is asked again, which pass."""
        self.crowd.failed(self.one, error)
        pause = self.one.paused_until - self.now
        self.now = max(self.now, self.one.paused_until)
        return pause


def test_pauses_double_and_the_last_strike_ends_it() -> None:
    scene = Scene(strikes=4, pause_s=1.0)
    assert [scene.fail(ContentUnavailable("no")) for _ in range(3)] == [1.0, 2.0, 4.0]
    assert scene.crowd.live
    scene.fail(ContentUnavailable("no"))
    assert not scene.crowd.live
    assert not scene.blamed, "it failed; it did not lie"
    assert "one: no" in scene.crowd.nobody().message


def test_a_pause_is_never_longer_than_the_longest() -> None:
    scene = Scene(strikes=99, pause_s=1.0, longest_pause_s=5.0)
    assert max(scene.fail(ContentUnavailable("no")) for _ in range(20)) == 5.0


def test_failures_of_all_streams_at_once_are_one_strike() -> None:
    scene = Scene(strikes=2)
    for _ in range(5):
        scene.crowd.failed(scene.one, ContentUnavailable("no"))
    assert scene.crowd.live


def test_a_delivery_wipes_the_slate() -> None:
    scene = Scene(strikes=2)
    for _ in range(5):
        scene.fail(ContentUnavailable("no"))
        scene.crowd.delivered(scene.one, 10)
    assert scene.crowd.live


def test_busy_means_a_pause_as_long_as_was_asked_for_and_no_strike() -> None:
    scene = Scene(strikes=1, busy=50, longest_pause_s=30.0)
    assert scene.fail(Busy(8.0)) >= 8.0
    assert scene.fail(Busy(1e6)) < 60
    assert scene.crowd.live


def test_a_lie_ends_it_at_once_and_is_told_once() -> None:
    scene = Scene()
    for _ in range(2):
        scene.fail(BlockInvalid("wrong bytes"))
    assert not scene.crowd.live
    assert scene.blamed == [("one", "wrong bytes")]


# ---- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.1, 1.0, 20.0])
def test_a_steady_rate_is_shown_as_it_is_from_the_start(after_s: float) -> None:
    rate = Rate(0.0)
    for step in range(1, int(after_s * 100) + 1):
        rate.add(10, step / 100)
    assert rate.per_s(after_s) == pytest.approx(1000, rel=0.1)


def test_a_rate_fades_when_nothing_comes() -> None:
    rate = Rate(0.0)
    rate.add(1_000_000, 1.0)
    assert rate.per_s(31.0) < 50


def test_events_come_ten_times_a_second_at_most_and_say_when_it_will_be_done() -> None:
    seen: list[Progress] = []
    now = [0.0]
    meter = Meter("bafy", 2000, seen.append, lambda: now[0], lambda: {"one": 1.0})
    meter.say(0)
    for step in range(1, 1001):
        now[0] = step / 1000
        meter.moved(1, step)
    assert 9 <= len(seen) <= 11
    assert seen[0].eta_s is None
    assert seen[-1].eta_s == pytest.approx(1.0, rel=0.2)
    assert seen[-1].sources == {"one": 1.0}


async def test_asking_everybody_for_a_block_ends_when_nobody_has_it() -> None:
    scene = Scene(pause_s=0.01)
    async with asyncio.timeout(60):
        with pytest.raises(ContentUnavailable, match="one has nothing"):
            await scene.crowd.block(leaves(1)[0].cid)
