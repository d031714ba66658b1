"""The stake behind our own offers: what is bonded, for which tier, and the key that answers for it.

Looks before it sends: what the registry would refuse is said in words, and costs no gas. Knows the registry and
OCTO-A; not who asks, nor what others have staked (that is `node.chain`).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import structlog

from contracts.chain import TxReceipt
from contracts.rails import ChainParts
from contracts.staking import Stake, Staking
from contracts.staking import Tier as StakeTier
from contracts.tokens import Token
from market.errors import InsufficientFunds, RequestInvalid
from market.identity import PeerId, WalletSigner
from market.money import format_octo
from market.offer import Tier
from market.signing import address_text
from node.faults import NotNow

log = structlog.get_logger()

STAKE_TIERS = {
    Tier.CONSUMER: StakeTier.CONSUMER,
    Tier.PROSUMER: StakeTier.PROSUMER,
    Tier.ENTERPRISE: StakeTier.ENTERPRISE,
}


class Staker:
    """`tier` is what this machine offers, `receipt_key` and `peer` what answers for the stake."""

    def __init__(
        self, parts: ChainParts, staking: Staking, wallet: WalletSigner, *, tier: Tier, receipt_key: WalletSigner,
        peer: PeerId,
    ) -> None:  # fmt: skip
        self.tier = tier
        self._parts = parts
        self._staking = staking
        self._octo_a = Token(parts.chain, parts.deployment, "OctoA")
        self._wallet = wallet
        self._receipt_key = receipt_key
        self._peer = peer
        self._one_at_a_time = asyncio.Lock()

    async def add(self, amount: int | None = None, tier: Tier | None = None) -> list[TxReceipt]:
        """Bond `amount` more of OCTO-A (None: what the tier still takes) for `tier` (None: what we offer, or the
        higher one that is reached already), and bind our receipt key if it is not; the transactions that it took.

        Raises RequestInvalid for too little, InsufficientFunds, ChainError.
        """
        async with self._one_at_a_time:
            held = await self._staking.stake_of(self._wallet.address)
            wanted = await self._tier_for(held, amount or 0, tier)
            minimum = await self._staking.minimum_of(wanted)
            if amount is None:
                amount = max(0, minimum - held.bonded)
            elif held.bonded + amount < minimum:
                raise RequestInvalid(
                    f"the {wanted.name.lower()} tier takes {octo_a(minimum)}; bonded are {octo_a(held.bonded)},"
                    f" {octo_a(amount)} more are too little.",
                    next_step=f"Add at least {octo_a(minimum - held.bonded)}.",
                    param="amount",
                )
            done: list[TxReceipt] = []
            if amount:
                done.append(await self._bond(wanted, amount, held))
            elif held.tier != wanted:
                done.append(await self._parts.sender.send(self._staking.change_tier(wanted)))
            return done + await self._bind()

    async def bind(self) -> list[TxReceipt]:
        """Have our receipt key and peer answer for the stake; no transaction if they do already."""
        async with self._one_at_a_time:
            return await self._bind()

    async def unstake(self, amount: int | None = None) -> TxReceipt:
        """Start to unbond `amount`, or all. Raises NotNow, RequestInvalid, ChainError."""
        async with self._one_at_a_time:
            held = await self._staking.stake_of(self._wallet.address)
            if not held.bonded:
                raise NotNow("nothing is bonded.", next_step="`octo-node stake` shows what unbonds.")
            amount = held.bonded if amount is None else amount
            rest, minimum = held.bonded - amount, await self._staking.minimum_of(held.tier)
            if rest < 0 or 0 < rest < minimum:
                free = held.bonded - minimum
                raise RequestInvalid(
                    f"bonded are {octo_a(held.bonded)}, of which the {held.tier.name.lower()} tier takes"
                    f" {octo_a(minimum)}: {octo_a(amount)} cannot leave.",
                    next_step=f"Unstake {f'up to {octo_a(free)}, or ' if free > 0 else ''}all of it.",
                    param="amount",
                )
            return await self._parts.sender.send(self._staking.unstake(amount))

    async def withdraw(self) -> TxReceipt:
        """Take out what has unbonded. Raises NotNow, ChainError."""
        async with self._one_at_a_time:
            held = await self._staking.stake_of(self._wallet.address)
            if not held.unbonding:
                raise NotNow("nothing unbonds.", next_step="`octo-node stake unstake` starts it.")
            if (await self._parts.chain.head()).timestamp < held.release_at:
                leaves = datetime.fromtimestamp(held.release_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                raise NotNow(f"{octo_a(held.unbonding)} unbond until {leaves}.", next_step="Withdraw them then.")
            return await self._parts.sender.send(self._staking.withdraw())

    async def facts(self) -> dict[str, Any]:
        """Amounts in 10^-18. `active`: whether it answers for the tier that we offer."""
        wallet = self._wallet.address
        held, identity = await asyncio.gather(self._staking.stake_of(wallet), self._staking.identity_of(wallet))
        offered = STAKE_TIERS[self.tier]
        bound = identity.receipt_signer
        return {
            "wallet": address_text(wallet),
            "tier": held.tier.name.lower(),
            "bonded": held.bonded,
            "unbonding": held.unbonding,
            "release_at_s": held.release_at,
            "receipt_key": address_text(bound) if any(bound) else None,
            "offered_tier": str(self.tier),
            "minimum": await self._staking.minimum_of(offered),
            "active": bound == self._receipt_key.address and await self._staking.is_active(wallet, offered),
            "octo_a": await self._octo_a.balance(wallet),
            "gas_wei": await self._parts.chain.balance(wallet),
        }

    async def _tier_for(self, held: Stake, amount: int, asked: Tier | None) -> StakeTier:
        """A slash may have left less than the tier takes: then the one that we offer is enough again."""
        wanted = STAKE_TIERS[asked or self.tier]
        if asked is None and held.tier > wanted and held.bonded + amount >= await self._staking.minimum_of(held.tier):
            return held.tier
        return wanted

    async def _bond(self, tier: StakeTier, amount: int, held: Stake) -> TxReceipt:
        have = await self._octo_a.balance(self._wallet.address)
        if have < amount:
            raise InsufficientFunds(
                f"the {tier.name.lower()} tier takes a stake of {octo_a(held.bonded + amount)}; bonded are"
                f" {octo_a(held.bonded)}, the wallet has {octo_a(have)}."
                if held.bonded + amount == await self._staking.minimum_of(tier)
                else f"{octo_a(amount)} are to be staked, the wallet has {octo_a(have)}.",
                next_step=f"Send OCTO-A to {address_text(self._wallet.address)}, or start with chain.stake = false and"
                " serve public tasks only.",
            )
        permit = await self._octo_a.permit(self._wallet, spender=self._staking.contract.address, amount=amount)
        receipt = await self._parts.sender.send(self._staking.stake(tier, amount, permit))
        log.info("staked", tier=tier.name.lower(), amount=octo_a(amount))
        return receipt

    async def _bind(self) -> list[TxReceipt]:
        wallet = self._wallet.address
        identity = await self._staking.identity_of(wallet)
        if identity.receipt_signer == self._receipt_key.address:
            return []
        receipt = await self._parts.sender.send(
            self._staking.bind(staker=wallet, nonce=identity.nonce, receipt_key=self._receipt_key, peer=self._peer)
        )
        log.info("stake_bound", receipt_key=address_text(self._receipt_key.address))
        return [receipt]


def octo_a(amount: int) -> str:
    return format_octo(amount).replace("OCTO", "OCTO-A")
