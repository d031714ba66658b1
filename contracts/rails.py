"""A chain rail with all its parts, opened and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from contracts.chain import Chain, open_chain
from contracts.channels import Channels
from contracts.collector import Collector
from contracts.cursor import Cursor
from contracts.deployments import Deployment, check_deployment
from contracts.faults import ChainAway, WrongChain
from contracts.follower import Follower, FollowTerms, OnClosing
from contracts.keeping import Keeper
from contracts.openings import Openings
from contracts.rail import ChainRail, RailTerms
from contracts.sender import Sender, SendTerms, open_sender
from contracts.settlement import SettlePolicy
from contracts.tokens import Token
from contracts.views import Views
from market.identity import WalletSigner
from market.ports import Books, Clock
from market.values import value

log = structlog.get_logger()


@value
class ChainParts:
    """What the rail is made of, for those who stake, transfer or look at the chain themselves. One wallet has one
    sender: two would take each other's nonces."""

    chain: Chain
    sender: Sender
    rail: ChainRail
    collector: Collector
    follower: Follower
    deployment: Deployment


@asynccontextmanager
async def open_chain_rail(
    url: str,
    *,
    deployment: Deployment,
    network: str,
    wallet: WalletSigner,
    books: Books,
    clock: Clock,
    keepers: Callable[[str], Keeper],
    terms: RailTerms,
    policy: SettlePolicy | None = None,
    send_terms: SendTerms | None = None,
    follow_terms: FollowTerms | None = None,
    on_closing: OnClosing | None = None,
) -> AsyncIterator[ChainParts]:
    """The rail of `deployment` through the endpoint at `url`, following the chain until closed. `on_closing` has heard
    by then of each channel that ended, or began to, since the books were closed.

    `keepers(name)` gives a place to keep a few bytes: "openings", "cursor", "settlement". A chain that is away is no
    reason not to start. Raises WrongChain when it is there and not the deployment's, or of another network.
    """
    if deployment.network != network:
        raise WrongChain(
            f"the contracts are for network {deployment.network!r}, not {network!r}.",
            next_step="Set network, or take the deployments file of yours.",
        )
    send_terms = send_terms or SendTerms()
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(
            open_chain(url, chain_id=deployment.chain_id, genesis=deployment.genesis_hash)
        )
        try:
            await check_deployment(chain, deployment)
        except ChainAway as away:
            log.warning("chain_away", host=chain.host, why=away.message)
        sender = await stack.enter_async_context(open_sender(chain, wallet, send_terms))
        channels = Channels(chain, deployment)
        views = Views(channels, confirmations=send_terms.confirmations)
        collector = Collector(
            wallet=wallet.address, rail=deployment.rail, channels=channels, views=views, sender=sender, books=books,
            clock=clock, policy=policy or SettlePolicy(), keeper=keepers("settlement"),
        )  # fmt: skip
        cursor = Cursor(
            chain, keepers("cursor"), addresses=[channels.contract.address],
            start=deployment.contracts["PaymentChannels"].block,
        )  # fmt: skip
        openings = Openings(keepers("openings"))
        rail = ChainRail(
            network=network, wallet=wallet, books=books, clock=clock, chain=chain, channels=channels,
            octo=Token(chain, deployment, "Octo"), sender=sender, views=views, collector=collector, openings=openings,
            terms=terms,
        )  # fmt: skip
        follower = Follower(
            chain=chain, channels=channels, views=views, collector=collector, openings=openings, sender=sender,
            cursor=cursor, books=books, clock=clock, terms=follow_terms or FollowTerms(), on_closing=on_closing,
        )  # fmt: skip
        await openings.load()
        await collector.load()
        if chain.health.state != "away":
            await follower.catch_up()
        following = [asyncio.create_task(follower.run(), name="follower"), asyncio.create_task(chain.watch())]
        try:
            yield ChainParts(
                chain=chain, sender=sender, rail=rail, collector=collector, follower=follower, deployment=deployment
            )
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
