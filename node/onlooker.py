"""What anybody can see on a devnet's chain: balances, stakes, channels, and the transactions behind them.

Reads only, through the chain's public door, with no node's help: so it can contradict the nodes. Blocking: each
look opens a client of its own, for a thread that has no event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from contracts.chain import Chain, open_chain
from contracts.channels import Channels, OnChain
from contracts.staking import Staking
from contracts.tokens import Token
from market.values import value
from node.devnet_chain import DevnetChain

T = TypeVar("T")
ESCROW = "escrow"


@value
class StakeSeen:
    """`bonded` and `minimum` (of the tier) in 10^-18 OCTO-A; addresses are 20 bytes."""

    tier: str
    bonded: int
    minimum: int
    active: bool
    receipt_key: bytes


@value
class Movement:
    """A transaction that opened or redeemed from a channel; `total` is what had been redeemed by then."""

    event: str
    channel: bytes
    transaction: bytes
    block: int
    gas: int
    total: int


class Onlooker:
    def __init__(self, chain: DevnetChain) -> None:
        self._where = chain

    def balances(self, wallets: Mapping[str, bytes]) -> dict[str, int]:
        """OCTO of each wallet, by name, and of the escrow."""

        async def read(chain: Chain) -> dict[str, int]:
            octo = Token(chain, self._where.deployment, "Octo")
            owners = {**wallets, ESCROW: self._where.deployment.address("PaymentChannels")}
            return {name: await octo.balance(owner) for name, owner in owners.items()}

        return self._look(read)

    def stakes(self, wallets: Mapping[str, bytes]) -> dict[str, StakeSeen]:
        async def read(chain: Chain) -> dict[str, StakeSeen]:
            staking = Staking(chain, self._where.deployment)
            seen = {}
            for name, wallet in wallets.items():
                held, identity = await staking.stake_of(wallet), await staking.identity_of(wallet)
                seen[name] = StakeSeen(
                    tier=held.tier.name.lower(),
                    bonded=held.bonded,
                    minimum=await staking.minimum_of(held.tier),
                    active=await staking.is_active(wallet, held.tier),
                    receipt_key=identity.receipt_signer,
                )
            return seen

        return self._look(read)

    def channels(self, ids: Sequence[bytes]) -> dict[bytes, OnChain]:
        async def read(chain: Chain) -> dict[bytes, OnChain]:
            found = await Channels(chain, self._where.deployment).channels(ids)
            return dict(zip(ids, found, strict=True))

        return self._look(read)

    def movements(self, ids: Sequence[bytes]) -> list[Movement]:
        """What happened to these channels, in order."""

        async def read(chain: Chain) -> list[Movement]:
            escrow = Channels(chain, self._where.deployment).contract
            first, head = self._where.deployment.first_block, await chain.head()
            logs = await chain.logs(first, head.number, addresses=[escrow.address], topics=[None, list(ids)])
            found: list[Movement] = []
            for log in logs:
                receipt = await chain.receipt(log.transaction)
                found += [
                    Movement(
                        event=event.name,
                        channel=event.arguments["channelId"],
                        transaction=log.transaction,
                        block=log.block,
                        gas=receipt.gas_used if receipt is not None else 0,
                        total=event.arguments.get("cumulativeAmount", 0),
                    )
                    for event in escrow.events([log])
                    if event.name in ("Opened", "Redeemed")
                ]
            return found

        return self._look(read)

    def _look(self, read: Callable[[Chain], Awaitable[T]]) -> T:
        deployment = self._where.deployment

        async def look() -> T:
            async with open_chain(
                self._where.url, chain_id=deployment.chain_id, genesis=deployment.genesis_hash
            ) as chain:
                return await read(chain)

        return asyncio.run(look())
