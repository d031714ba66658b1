"""What an engine can, its offer says: nobody is asked, or prepaid, for what its engine would refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from no_waiting import NO_WAITING
from shop import OCTO, make_order

from market.errors import NoProvider
from market.task import LogitBias, Sampling
from market.testing import ScriptedEngine

BIASED = Sampling(seed=bytes(32), logit_bias=(LogitBias(token=5, bias_micro=1),))
ASKED = {"grammar": {"grammar": "root ::= [a-z]"}, "logprobs": {"logprobs": 2}, "bias": {"sampling": BIASED}}


@pytest.fixture
def anyio_backend():
    return NO_WAITING


class Able(ScriptedEngine):
    """Heeds whatever it is asked to, by doing nothing of it."""

    def generate(self, job):
        return super().generate(replace(job, grammar="", logprobs=None))


@pytest.mark.parametrize("feature", ["grammar", "bias"])  # the double has no log probabilities to tell
async def test_the_cheaper_provider_is_passed_over_if_its_engine_cannot(shop, feature):
    plain = shop.seller("plain", price_out=OCTO)
    able = shop.seller("able", engine=Able(features=frozenset({feature})))
    alice = shop.buyer()
    _, purchase = await alice.ask(**ASKED[feature])
    assert purchase.outcome.provider == able.party.peer
    assert purchase.outcome.not_chosen[plain.party.peer].startswith("its engine ")
    _, purchase = await alice.ask()
    assert purchase.outcome.provider == plain.party.peer


@pytest.mark.parametrize("feature", ASKED)
async def test_where_no_engine_can_the_reason_is_told_and_nothing_is_paid(shop, feature):
    bob, alice = shop.seller("bob"), shop.buyer()
    with pytest.raises(NoProvider) as raised:
        async with alice.buyer.buy(make_order(**ASKED[feature])) as purchase:
            [_ async for _ in purchase.deltas()]
    assert raised.value.reasons[bob.party.peer].startswith("its engine ")
    assert (alice.spent(), bob.engine.generated) == (0, 0)
