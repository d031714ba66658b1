"""Channels on a real chain: the rail behind the port that the local ledger implements too.

The escrow contract holds deposits; here is how one gets there, how a payee makes sure that it did, and what both
have. `contracts.follower` follows the chain. While it is away vouchers go on, up to a limit, and settlement waits.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts.chain import Chain, Health
from contracts.channels import DEPOSIT_LIMIT, Channels, OnChain
from contracts.collector import Collector
from contracts.faults import ChainError, GasPurseEmpty, Reverted
from contracts.openings import Openings
from contracts.sender import Sender
from contracts.tokens import Token
from contracts.views import Views
from market.channel import Channel
from market.errors import InsufficientFunds, OctoError, PaymentRefused, SignatureInvalid
from market.identity import WalletSigner
from market.money import AMOUNT_LIMIT, format_octo
from market.ports import Balances, Books, Clock
from market.signing import address_text
from market.values import value
from market.voucher import ChannelTerms, Opening, check_opening, sign_opening

log = structlog.get_logger()

# Measured 46,629 and 85,310 at most: sent together, before an estimate of the second could know of the first.
_APPROVE_GAS, _OPEN_GAS = 80_000, 150_000


@value
class RailTerms:
    """Amounts in 10^-18 OCTO. `deposit_cap`: the most that one channel may hold, ours or a client's. `away_limit`: how
    much may stand in vouchers that are not redeemed while the chain is away. `open_s`: how long a payer waits for its
    channel; `check_s`: how long a payee waits to see it, as its node may lag."""

    deposit_cap: int
    away_limit: int
    open_s: float = 120.0
    check_s: float = 10.0


class ChainRail:
    """Implements `market.ports.Rail`. Use `contracts.rails.open_chain_rail`, which makes its parts."""

    def __init__(
        self, *, network: str, wallet: WalletSigner, books: Books, clock: Clock, chain: Chain, channels: Channels,
        octo: Token, sender: Sender, views: Views, collector: Collector, openings: Openings, terms: RailTerms,
    ) -> None:  # fmt: skip
        self.name = channels.rail
        self.collector = collector
        self._network = network
        self._wallet = wallet
        self._books = books
        self._clock = clock
        self._chain = chain
        self._channels = channels
        self._octo = octo
        self._sender = sender
        self._views = views
        self._openings = openings
        self._terms = terms
        self._balance = 0
        self._approving = asyncio.Lock()
        self._approved = False

    @property
    def health(self) -> Health:
        return self._chain.health

    # ---- the port --------------------------------------------------------------------------------

    async def open_channel(self, terms: ChannelTerms, deposit: int) -> Opening:
        """Lock `deposit` on chain and wait until it is confirmed. The same terms again give the same opening.

        Raises InsufficientFunds (GasPurseEmpty when it is the gas), PaymentRefused for terms that are not ours,
        ChainAway when the chain does not confirm in time; the deposit is then asked back later.
        """
        self._check_terms(terms)
        if terms.payer != self._wallet.address:
            raise PaymentRefused(f"the payer {address_text(terms.payer)} is not this node's wallet.")
        if not 0 < deposit <= min(self._terms.deposit_cap, DEPOSIT_LIMIT):
            raise InsufficientFunds(
                f"a deposit of {format_octo(deposit)} is not above 0 and up to the cap "
                f"of {format_octo(self._terms.deposit_cap)}.",
                next_step="Raise payment.deposit_cap on both sides, or ask for fewer tokens.",
            )
        channel_id = terms.channel_id()
        (there,) = await self._views.look_newest([channel_id])
        if there.opened:
            if there.deposit != deposit or there.closes_at:
                raise PaymentRefused("these terms were used before: a new channel takes a new salt.")
            return sign_opening(terms, deposit, self._wallet)
        self._balance = await self._octo.balance(self._wallet.address)
        # No await between this look and `making`, which counts the deposit as spent: two at once cannot both have it.
        if deposit > self._available():
            raise self._too_little(deposit)
        async with self._openings.making(terms, deposit, now_ms=self._clock.now_ms()):
            try:
                await self._open(terms, deposit)
            except (Reverted, GasPurseEmpty) as error:  # for certain not opened; after any other error it may be
                await self._openings.forget(channel_id)
                if isinstance(error, Reverted) and error.name == "ERC20InsufficientBalance":
                    raise self._too_little(deposit) from None
                raise
        return sign_opening(terms, deposit, self._wallet)

    def _too_little(self, deposit: int) -> InsufficientFunds:
        return InsufficientFunds(
            f"{format_octo(deposit)} are needed, the wallet has {format_octo(self._available())}.",
            next_step=f"Send OCTO to {address_text(self._wallet.address)}; on a devnet, `octo-node wallet faucet`.",
        )

    async def _open(self, terms: ChannelTerms, deposit: int) -> None:
        try:
            async with asyncio.timeout(self._terms.open_s):
                if not self._approved:
                    await self._approve_and_open(terms, deposit)
                    return
                try:
                    await self._sender.send(self._channels.open(terms, deposit))
                except Reverted as reverted:
                    if reverted.name != "ERC20InsufficientAllowance":
                        raise
                    self._approved = False  # a reorganisation took it away, or the wallet's owner did
                    await self._approve_and_open(terms, deposit)
        except TimeoutError:
            raise ChainError(
                f"the chain has not confirmed the channel's deposit in {self._terms.open_s:.0f} s.",
                next_step="The task can be tried again; this deposit comes back by itself.",
            ) from None

    async def _approve_and_open(self, terms: ChannelTerms, deposit: int) -> None:
        """The first time: an approval without end, and the channel right behind it in the same block.

        The escrow takes only from whoever calls it, has no owner and cannot be changed; a limit would be written
        anew with each channel, for 3,000 gas."""
        escrow = self._channels.contract.address
        async with self._approving:
            if not self._approved:
                if await self._octo.allowance(self._wallet.address, escrow) <= DEPOSIT_LIMIT * 2**32:
                    approving = self._sender.send(self._octo.approve(escrow, AMOUNT_LIMIT), gas=_APPROVE_GAS)
                    opening = self._sender.send(self._channels.open(terms, deposit), gas=_OPEN_GAS)
                    for done in await asyncio.gather(approving, opening, return_exceptions=True):
                        if isinstance(done, BaseException):
                            raise done
                    self._approved = True
                    return
                self._approved = True
        await self._sender.send(self._channels.open(terms, deposit))

    async def check_channel(self, opening: Opening) -> int:
        """The deposit that the chain shows behind a channel that pays us; raises PaymentRefused if there is none."""
        terms = opening.terms
        self._check_terms(terms)
        if terms.payee != self._wallet.address:
            raise PaymentRefused(f"the channel pays {address_text(terms.payee)}, which is not this node's wallet.")
        try:
            check_opening(opening)
        except SignatureInvalid as error:
            raise PaymentRefused(error.message) from None
        await self.check_serving()
        state = await self._seen(terms.channel_id())
        if state.closes_at:
            raise PaymentRefused("the channel is closing or closed.", next_step="Open a new one.")
        if state.deposit < opening.deposit:
            raise PaymentRefused(
                f"the chain shows {format_octo(state.deposit)} in this channel, not {format_octo(opening.deposit)}."
            )
        if not 0 < state.deposit <= (cap := self._terms.deposit_cap):
            raise PaymentRefused(
                f"the deposit of {format_octo(state.deposit)} is over our cap of {format_octo(cap)}.",
                next_step=f"Open the channel with at most {format_octo(cap)}.",
            )
        if state.redeemed:
            # We hold no voucher of it and yet it was drawn on: our books are not the ones it was opened for.
            raise PaymentRefused("this channel was drawn on before we knew it.", next_step="Open a new one.")
        return state.deposit

    async def _seen(self, channel_id: bytes) -> OnChain:
        """Waits a little: the payer's node may be a block ahead of ours, or ask for fewer confirmations."""
        until, loop = asyncio.get_running_loop().time() + self._terms.check_s, asyncio.get_running_loop()
        while True:
            try:
                state = await self._views.look(channel_id)
            except ChainError as error:
                raise PaymentRefused(
                    f"the channel cannot be checked: {error.message}", next_step=error.next_step
                ) from None
            if state.opened or loop.time() >= until:
                break
            await asyncio.sleep(0.2)
        if not state.opened:
            raise PaymentRefused(
                f"the chain shows no such channel, {self._terms.check_s:.0f} s after it was named.",
                next_step="Wait for its confirmation, and check that both nodes use one chain (`octo-node status`).",
            )
        return state

    async def balances(self) -> Balances:
        """From the chain when it answers, else as it last was."""
        ours = await self._ours()
        ending = [c.id for c in ours if c.role == "payer" and (known := self._views.known(c.id)) and known.closing]
        try:
            self._balance = await self._octo.balance(self._wallet.address)
            await self._views.look_newest(ending)  # or what came back would count as locked too
        except OctoError:
            log.debug("balance_is_old")
        locked = spent = earned = 0
        for channel in ours:
            on_chain = self._views.known(channel.id)
            if channel.role == "payee":
                earned += channel.paid
            elif on_chain is not None and on_chain.closed:  # what was not redeemed came back
                spent += on_chain.redeemed
            else:
                locked, spent = locked + channel.left, spent + channel.paid
        available = self._available()
        return Balances(
            granted=available + locked + spent, available=available, locked=locked, spent=spent, earned=earned
        )

    # ---- beyond the port -------------------------------------------------------------------------

    async def check_serving(self) -> None:
        """Raises PaymentRefused while the chain is away and more than `away_limit` waits to be redeemed."""
        if self._chain.health.state not in ("away", "wrong"):
            return
        unsettled = await self.collector.unsettled()
        if unsettled > self._terms.away_limit:
            raise PaymentRefused(
                f"the chain is away and {format_octo(unsettled)} wait to be redeemed.", next_step="Try again later."
            )

    def state_of(self, channel_id: bytes) -> OnChain | None:
        """What the chain last said of a channel; asks nobody."""
        return self._views.known(channel_id)

    async def request_close(self, channel: Channel) -> None:
        """As payer: start the challenge period, after which the rest comes back (the loop sees to it)."""
        await self._sender.send(self._channels.request_close(channel.terms))
        await self._views.look_newest([channel.id])

    async def close(self, channel: Channel) -> None:
        """As payee: redeem the last voucher and give the rest back at once. As payer: after the challenge period."""
        if channel.role == "payee":
            await self.collector.settle(everything=True)
        await self._sender.send(self._channels.close(channel.terms))
        await self._views.look_newest([channel.id])

    async def _ours(self) -> list[Channel]:
        return [c for c in await self._books.channels() if c.terms.rail == self.name]

    def _available(self) -> int:
        return max(0, self._balance - self._openings.under_way())

    def _check_terms(self, terms: ChannelTerms) -> None:
        if terms.rail != self.name:
            raise PaymentRefused(f"the channel is on rail {terms.rail!r}, not {self.name!r}.")
        if terms.network != self._network:
            raise PaymentRefused(f"the channel is on network {terms.network!r}, not {self._network!r}.")
