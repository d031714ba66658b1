"""Money: gas of real transactions, vouchers per CPU-second, and what paying on a chain costs a streamed answer.

The last runs two devnets side by side, one that settles on the embedded chain and one on the local ledger, each with
one provider and the same model; they take turns, so both meet the same noise, the chain's process included.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import aiohttp
import structlog

from bench import gas, vouchers
from bench.path import TEXTS, stream_through
from bench.rows import Row, as_dicts, compared
from node.devnet import Devnet, Plan, open_devnet

RUNS = 21


def run() -> list[dict[str, Any]]:
    """Rows `gas_…`, `vouchers_…` and `rail_tokens_per_s`."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return as_dicts([*asyncio.run(gas.rows()), *vouchers.rows(), asyncio.run(_rails())])


async def _rails() -> Row:
    prices = (("0.1", "0.3"),)
    chain: list[float] = []
    ledger: list[float] = []

    async def measure(devnet: Devnet) -> float:
        _, tokens_per_s = await stream_through(session, devnet, TEXTS[0])
        return tokens_per_s

    async with (
        open_devnet(Plan(prices=prices, chain="embedded"), tell=lambda _: None) as on_chain,
        open_devnet(Plan(prices=prices, chain="none"), tell=lambda _: None) as on_ledger,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
    ):
        await measure(on_chain)  # the first task opens the channel
        await measure(on_ledger)
        for number in range(RUNS):
            order = [(on_chain, chain), (on_ledger, ledger)]
            for devnet, figures in order if number % 2 else reversed(order):
                figures.append(await measure(devnet))
    return compared("rail_tokens_per_s", "tokens/s", chain, ledger, "the local ledger", at_least=0.98)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["money"]))
