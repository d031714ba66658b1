"""The node's side of a chain: the rail, the stake behind our offers, and who else has one.

Imported only when a chain is configured. What happens on the chain is `contracts`; here it meets the
node's settings, its books and the market's question, "may this provider see a shared prompt?".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from contracts.channels import OnChain
from contracts.deployments import read_deployment
from contracts.faults import ChainAway, ChainError
from contracts.keeping import FileKeeper
from contracts.rail import RailTerms
from contracts.rails import ChainParts, open_chain_rail
from contracts.sender import SendTerms
from contracts.settlement import SettlePolicy
from contracts.staking import Staking
from contracts.staking import Tier as StakeTier
from market.errors import NodeMisconfigured
from market.identity import PeerId
from market.money import OCTO
from market.offer import CheckedOffer, Tier
from market.ports import Books, Clock
from market.purse import Purse
from market.signing import address_text
from market.till import Till
from node.cashier import Cashier
from node.folder import Folder
from node.keys import Keys
from node.settings import Settings
from node.staker import STAKE_TIERS, Staker

log = structlog.get_logger()

LOW_GAS_WEI = 10**16
"""Some hundred transactions at 2 gwei; below it a devnet node asks the faucet."""
STAKE_FRESH_S = 30.0


class Stakes:
    """Which providers are staked for the tier they offer: asked of the chain, remembered for a while."""

    def __init__(self, staking: Staking) -> None:
        self._staking = staking
        self._known: dict[tuple[bytes, Tier, bytes], tuple[float, str | None]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def vet(self, checked: CheckedOffer) -> str | None:
        """Why this provider gets no shared prompts, as of now; a provider that was never looked at waits."""
        offer, binding = checked.offer, checked.binding
        key = (binding.wallet, offer.tier, binding.receipt_key)
        asked_s, reason = self._known.get(key, (0.0, "its stake is being looked up; try again in a second"))
        if time.monotonic() - asked_s > STAKE_FRESH_S:
            self._known[key] = (time.monotonic(), reason)
            task = asyncio.create_task(self._ask(key))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        return reason

    async def watch(
        self, offers: Callable[[], Sequence[CheckedOffer]], changed: Callable[[int], Awaitable[int]]
    ) -> None:
        """Look at new providers as they are heard of, before anybody wants to buy; until cancelled."""
        version = -1
        while True:
            version = await changed(version)
            for checked in offers():
                key = (checked.binding.wallet, checked.offer.tier, checked.binding.receipt_key)
                if key not in self._known:
                    await self._ask(key)

    async def _ask(self, key: tuple[bytes, Tier, bytes]) -> None:
        wallet, tier, receipt_key = key
        try:
            active = await self._staking.is_active(wallet, STAKE_TIERS[tier])
            bound = (await self._staking.identity_of(wallet)).receipt_signer
        except ChainError as error:
            log.info("stake_not_seen", wallet=address_text(wallet), why=error.message)
            self._known.pop(key, None)
            return
        reason = None
        if not active:
            reason = f"has no stake for the {tier} tier"
        elif bound != receipt_key:
            reason = "its stake answers for another receipt key than its offer's"
        self._known[key] = (time.monotonic(), reason)


class Closing:
    """Tells purse and till when a channel closes on chain. They are made after the rail: what comes before
    them waits."""

    def __init__(self) -> None:
        self._money: tuple[Purse, Till] | None = None
        self._waiting: list[tuple[bytes, bool]] = []

    async def attach(self, purse: Purse, till: Till) -> None:
        self._money = purse, till
        waiting, self._waiting = self._waiting, []
        for channel_id, closed in waiting:
            await self._tell(channel_id, closed=closed)

    async def __call__(self, channel_id: bytes, state: OnChain) -> None:
        if self._money is None:
            self._waiting.append((channel_id, state.closed))
        else:
            await self._tell(channel_id, closed=state.closed)

    def is_busy(self, channel_id: bytes) -> bool:
        """Whether a task that this channel pays runs here now."""
        return self._money is not None and self._money[1].is_busy(channel_id)

    async def _tell(self, channel_id: bytes, *, closed: bool) -> None:
        assert self._money is not None
        for side in self._money:
            await side.closing(channel_id, closed=closed)


class ChainSide:
    """What the node does with its chain, beyond the rail's port."""

    def __init__(
        self, parts: ChainParts, staking: Staking, *, staker: Staker, cashier: Cashier, closing: Closing
    ) -> None:
        self.parts = parts
        self.closing = closing
        self.staking = staking
        self.stakes = Stakes(staking)
        self.staker = staker
        self.cashier = cashier

    async def fill(self) -> None:
        """On a devnet: draw from the faucet when there is too little gas, OCTO or OCTO-A. A chain that is away is
        no reason not to start."""
        try:
            funds = await self.cashier.funds()
            staked = await self.staking.minimum_of(StakeTier.CONSUMER)
            if funds.gas_wei < LOW_GAS_WEI or funds.octo < OCTO or funds.octo_a < staked:
                await self.cashier.draw()
        except ChainAway as away:
            log.warning("faucet_not_asked", why=away.message)

    async def stake(self) -> None:
        """Stake for the offered tier and bind the receipt key, as far as it is not done. Raises InsufficientFunds."""
        try:
            await self.staker.add()
        except ChainAway as away:
            log.warning("stake_not_checked", why=away.message)

    def facts(self) -> dict[str, Any]:
        """For `status`: where we settle, and how the chain is; the endpoint by its host only."""
        health = self.parts.chain.health
        deployment = self.parts.deployment
        return {
            "chain_id": deployment.chain_id,
            "host": self.parts.chain.host,
            "state": health.state,
            "contracts": {name: one.address for name, one in deployment.contracts.items()},
        }

    async def stake_facts(self) -> dict[str, Any]:
        return await self.staker.facts()


@asynccontextmanager
async def open_chain_side(
    settings: Settings, *, folder: Folder, keys: Keys, peer: PeerId, tier: Tier, books: Books, clock: Clock
) -> AsyncIterator[ChainSide]:
    """The rail and the stake registry of the chain in the settings. Raises NodeMisconfigured or WrongChain."""
    chain, payment = settings.chain, settings.payment
    if chain.url is None or chain.deployment is None:
        raise NodeMisconfigured(
            "chain.url needs chain.deployment, the file that says where the contracts are.",
            next_step="`octo-node contracts deploy` writes one.",
        )
    url, closing = chain.url.get_secret_value(), Closing()
    async with open_chain_rail(
        url,
        deployment=await asyncio.to_thread(read_deployment, chain.deployment),
        network=settings.network,
        wallet=keys.wallet,
        books=books,
        clock=clock,
        keepers=lambda name: FileKeeper(folder.path("chain", f"{name}.json")),
        terms=RailTerms(deposit_cap=payment.deposit_cap, away_limit=payment.credit * 100),
        policy=SettlePolicy(
            worth=chain.settle_at,
            age_s=chain.settle_after_s,
            dust=chain.settle_dust,
            period_s=min(60.0, chain.settle_after_s),
        ),
        send_terms=SendTerms(confirmations=chain.confirmations),
        on_closing=closing,
    ) as parts:
        staking = Staking(parts.chain, parts.deployment)
        side = ChainSide(
            parts,
            staking,
            staker=Staker(parts, staking, keys.wallet, tier=tier, receipt_key=keys.receipt, peer=peer),
            cashier=Cashier(
                parts, books, wallet=keys.wallet.address, url=url, closing=closing, is_busy=closing.is_busy
            ),
            closing=closing,
        )
        if chain.faucet:
            await side.fill()
        yield side
