"""An offer whose engine does not answer is withdrawn until it does: with engines that are told how they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from market.offer import ModelOffer
from market.ports import EngineInfo
from node.health import MISSES, Health
from node.offered import Providing
from node.serving import Reader


def offer_of(model: str) -> ModelOffer:
    return ModelOffer(
        model=model, weights="w", name=model, context=1, price_in=1, price_out=1, modes=(), engine="e", tokens_per_s=1
    )


@pytest.fixture
def house():
    providing, renewed = Providing(), []
    engines = {}
    for model in ("one", "two"):
        engine = SimpleNamespace(worker_pids=(1,), info=EngineInfo(name="e", context=1, slots=1))
        serving = SimpleNamespace(model=offer_of(model), engine=engine)
        providing.put(serving, Reader())
        providing.arrived(model, serving)
        engines[model] = engine
    return SimpleNamespace(
        providing=providing, engines=engines, renewed=renewed, health=Health(providing, lambda: renewed.append(1))
    )


async def look(house, times: int = 1) -> list[str]:
    for _ in range(times):
        await house.health.look()
    return sorted(house.providing.served())


async def test_what_answers_stays_on_offer(house) -> None:
    assert await look(house, 5) == ["one", "two"]
    assert not house.renewed


async def test_a_worker_that_is_just_being_started_again_costs_no_offer(house) -> None:
    house.engines["one"].worker_pids = ()
    assert await look(house, MISSES - 1) == ["one", "two"]
    house.engines["one"].worker_pids = (2,)
    assert await look(house, 3) == ["one", "two"]
    assert not house.renewed


async def test_an_engine_that_stays_away_loses_its_offer_until_it_is_back(house) -> None:
    house.engines["one"].worker_pids = ()
    assert await look(house, MISSES) == ["two"] and len(house.renewed) == 1
    assert await look(house, 3) == ["two"] and len(house.renewed) == 1, "told once"
    house.engines["one"].worker_pids = (2,)
    assert await look(house) == ["one", "two"] and len(house.renewed) == 2


async def test_a_model_that_is_unloaded_can_be_bought_again_however_its_engine_was(house) -> None:
    house.engines["one"].worker_pids = ()
    assert await look(house, MISSES) == ["two"]
    house.providing.left("one")
    assert await look(house) == ["one", "two"]
    assert [offer.warm for offer in house.providing.offers()] == [False, True]
