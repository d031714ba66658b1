"""A peer's standing is an average of what it did, fades when it was bad, and outlives the node."""

import asyncio

import pytest

from market.buyer import SILENT_LIMIT
from market.errors import StepNotAllowed
from node.standing import FAILURE_HALF_LIFE_MS, PEERS_LIMIT, SILENT_HALF_LIFE_MS, open_standing
from node.store import open_store


class HandClock:
    def __init__(self) -> None:
        self.ms = 1_000_000_000

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "store.db") as opened:
        yield opened


async def test_speeds_are_averaged_and_the_rest_adds_up(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", first_token_ms=100, tokens_per_s=50, success=1)
        standing.note("p", first_token_ms=200, tokens_per_s=100, success=1, silent_prepaid=3)
        assert standing.of("p") == {
            "first_token_ms": pytest.approx(120),
            "tokens_per_s": pytest.approx(60),
            "success": 2,
            "silent_prepaid": 3,
            "failure_rate": 0,
        }


async def test_nobody_knows_a_stranger(store, clock):
    async with open_standing(store, clock) as standing:
        assert standing.of("stranger") == {}


async def test_failures_raise_the_rate_and_successes_lower_it(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", failure=1)
        standing.note("p", failure=1)
        high = standing.of("p")["failure_rate"]
        assert high == pytest.approx(0.36)
        standing.note("p", success=1)
        assert standing.of("p")["failure_rate"] == pytest.approx(high * 0.8)
        assert standing.of("p")["failure"] == 2


async def test_a_failure_fades_so_that_the_peer_gets_another_chance(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", failure=1)
        fresh = standing.of("p")["failure_rate"]
        clock.ms += FAILURE_HALF_LIFE_MS
        assert standing.of("p")["failure_rate"] == pytest.approx(fresh / 2)
        standing.note("p", first_token_ms=5)
        assert standing.of("p")["failure_rate"] == pytest.approx(fresh / 2)
        clock.ms -= 10 * FAILURE_HALF_LIFE_MS
        assert standing.of("p")["failure_rate"] == pytest.approx(fresh / 2), "a clock set back adds no blame"


async def test_kept_prepayments_are_remembered_for_days_not_for_ever(store, clock):
    async with open_standing(store, clock) as standing:
        for _ in range(3):
            standing.note("p", silent=1, failure=1)
        assert standing.of("p")["silent"] == pytest.approx(3)
        clock.ms += SILENT_HALF_LIFE_MS
        assert standing.of("p")["silent"] == pytest.approx(1.5)


async def test_what_is_no_number_is_dropped(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", tokens_per_s=float("nan"), first_token_ms=float("inf"), noted_at_ms=5)
        assert standing.of("p") == {}


async def test_what_is_returned_cannot_change_what_is_known(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", success=1)
        dict.update(standing.of("p"), success=99)
        assert standing.of("p")["success"] == 1


async def test_it_outlives_the_node(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("p", first_token_ms=100, failure=1)
        known = dict(standing.of("p"))
    async with open_standing(store, clock) as standing:
        assert standing.of("p") == known


async def test_it_is_written_while_the_node_runs(store, clock):
    async with open_standing(store, clock, flush_s=0.01) as standing:
        standing.note("p", success=1)
        for _ in range(500):
            if kept := await store.standing():
                break
            await asyncio.sleep(0.01)
        assert kept["p"]["success"] == 1


async def test_a_store_that_is_closed_too_early_takes_nothing_down(tmp_path, clock):
    early = open_store(tmp_path / "store.db")
    async with open_standing(await early.__aenter__(), clock, flush_s=0.01) as standing:
        standing.note("p", success=1)
        await early.__aexit__(None, None, None)
        standing.note("p", success=1)
        await asyncio.sleep(0.05)
        with pytest.raises(StepNotAllowed):
            await standing.flush()
        assert standing.of("p")["success"] == 2


async def test_strangers_cannot_fill_the_memory(store, clock):
    async with open_standing(store, clock) as standing:
        standing.note("peer-0", success=1)
        await standing.flush()
        for number in range(1, PEERS_LIMIT + 10):
            standing.note(f"peer-{number}", success=1)
            standing.note("regular", success=1)
        assert standing.of("peer-0") == {}
        assert standing.of("regular")["success"] == PEERS_LIMIT + 9
    assert len(await store.standing()) == PEERS_LIMIT


async def test_answers_make_good_for_a_silence_and_who_keeps_every_tenth_prepayment_is_found_out(store, clock):
    async with open_standing(store, clock) as standing:
        for _ in range(10):  # killed now and then, between many answers
            standing.note("unlucky", failure=1, silent=1)
            for _ in range(40):
                standing.note("unlucky", success=1)
        assert standing.of("unlucky")["silent"] < 0.2
        for _ in range(10):
            for _ in range(9):
                standing.note("thief", success=1)
            standing.note("thief", failure=1, silent=1)
        assert standing.of("thief")["silent"] > SILENT_LIMIT
