"""When the way from vouchers to money is cut: no gas at the provider, no chain for anybody. It is said, nothing is
lost, and it catches up. Real processes, real libp2p, the embedded devnet chain."""

from __future__ import annotations

import pytest
from forks import until
from street import open_street
from trader import ANSWER, Keys

from contracts.faucet import ask_faucet

pytestmark = pytest.mark.processes

PRICE = 75 * 10**12
"""Of one task: 9 tokens in, 22 out."""


async def test_a_provider_without_gas_serves_on_is_told_what_it_lacks_and_gets_all_when_it_has_some(tmp_path):
    async with open_street(tmp_path, funded=False) as street:
        alice = await street.customer("alice")
        try:
            for _ in range(3):
                assert (await alice.call("buy", "Hi"))["text"] == ANSWER
            with pytest.raises(AssertionError, match=r"cannot pay for gas.*Send it some of the chain's own coin"):
                await street.payee.call("settle")

            async def all_is_due() -> bool:
                return await street.payee.call("unsettled") == 3 * PRICE

            await until(all_is_due)
            assert (await alice.call("buy", "Hi"))["text"] == ANSWER
            await ask_faucet(street.devchain.url, Keys("bob").wallet.address)
            had = await street.octo_of("bob")

            async def paid() -> bool:
                return await street.payee.call("settle") >= 0 and await street.octo_of("bob") == had + 4 * PRICE

            await until(paid)
        finally:
            await alice.kill()


async def test_while_the_chain_is_away_tasks_go_on_up_to_a_limit_and_then_everything_catches_up(tmp_path):
    async with open_street(tmp_path, away_limit=3 * PRICE - 1) as street:
        alice = await street.customer("alice")
        had = await street.octo_of("bob")
        try:
            assert (await alice.call("buy", "Hi"))["text"] == ANSWER
            async with street.chain_away():

                async def is_away() -> bool:
                    return await street.payee.call("health") == "away"

                await until(is_away)
                for _ in range(2):
                    assert (await alice.call("buy", "Hi"))["text"] == ANSWER, "on the channel that is there"

                async def last_voucher_is_there() -> bool:
                    return await street.payee.call("promised") == 3 * PRICE

                await until(last_voucher_is_there)  # it follows the answer
                refused = await alice.call("buy", "Hi")
                assert "the chain is away and 0.000225 OCTO wait to be redeemed" in refused["error"]

            async def is_back() -> bool:
                return await street.payee.call("health") == "up"

            await until(is_back)
            assert (await alice.call("buy", "Hi"))["text"] == ANSWER

            async def paid() -> bool:
                return await street.payee.call("settle") >= 0 and await street.octo_of("bob") == had + 4 * PRICE

            await until(paid)
        finally:
            await alice.kill()
