"""The local ledger: money for peers that share no chain.

Each node grants itself a sum, locks parts of it in channels that it opens, and takes channels that a
payer's wallet signed. The receipts, vouchers and rules are those of the chain; nothing but the payer's
signature stands behind the deposit, so both sides cap it. Every balance follows from the channels in
the Books: there is no second account that could disagree. Knows no database and no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from market.channel import Channel, ChannelState
from market.errors import InsufficientFunds, PaymentRefused, SignatureInvalid
from market.identity import WalletSigner
from market.money import format_octo
from market.ports import Balances, Books
from market.rails import LEDGER
from market.signing import address_text
from market.voucher import ChannelTerms, Opening, check_opening, sign_opening


class LedgerRail:
    """Implements `market.ports.Rail`. `granted` and `deposit_cap` are in 10^-18 OCTO."""

    name = LEDGER

    def __init__(self, *, network: str, wallet: WalletSigner, books: Books, granted: int, deposit_cap: int) -> None:
        self._network = network
        self._wallet = wallet
        self._books = books
        self._granted = granted
        self._deposit_cap = deposit_cap
        # Openings that were signed but are not in the books yet, by channel id. They stay locked until
        # the books hold them: a signed opening may already be with its payee.
        self._signed: dict[bytes, Opening] = {}
        self._opening = asyncio.Lock()

    async def open_channel(self, terms: ChannelTerms, deposit: int) -> Opening:
        """Lock `deposit` and sign it away; the same terms and deposit again give the same opening.

        Raises InsufficientFunds when it is not there, PaymentRefused for terms that are not ours to sign.
        """
        self._check_terms(terms)
        if terms.payer != self._wallet.address:
            raise PaymentRefused(f"the payer {address_text(terms.payer)} is not this node's wallet.")
        if not 0 < deposit <= self._deposit_cap:
            raise InsufficientFunds(
                f"a deposit of {format_octo(deposit)} is not above 0 and up to the cap "
                f"of {format_octo(self._deposit_cap)}.",
                next_step="Raise payment.deposit_cap on both sides, or ask for fewer tokens.",
            )
        # One at a time. An older look at the books must never meet a newer `_signed`: a channel that was
        # written down between the two would count in neither.
        async with self._opening:
            known = self._signed.get(terms.channel_id())
            if known is not None and known.deposit == deposit:
                return known
            channels = await self._books.channels()
            for channel in (c for c in channels if c.role == "payer"):
                self._signed.pop(channel.id, None)
            balances = self._balances(channels)
            if deposit > balances.available:
                raise InsufficientFunds(
                    f"{format_octo(deposit)} are needed, {format_octo(balances.available)} are available "
                    f"({format_octo(balances.locked)} locked in channels).",
                    next_step="Raise payment.grant, or wait until channels close.",
                )
            if known is not None or any(c.role == "payer" and c.id == terms.channel_id() for c in channels):
                raise PaymentRefused("these terms were signed before: a new channel takes a new salt.")
            opening = sign_opening(terms, deposit, self._wallet)
            self._signed[terms.channel_id()] = opening
            return opening

    async def check_channel(self, opening: Opening) -> int:
        """The deposit behind a channel that someone opened to us; raises PaymentRefused if there is none."""
        terms = opening.terms
        self._check_terms(terms)
        if terms.payee != self._wallet.address:
            raise PaymentRefused(f"the channel pays {address_text(terms.payee)}, which is not this node's wallet.")
        if not 0 < opening.deposit <= self._deposit_cap:
            raise PaymentRefused(
                f"the deposit of {format_octo(opening.deposit)} is not between 0 and our cap of "
                f"{format_octo(self._deposit_cap)}.",
                next_step=f"Open the channel with at most {format_octo(self._deposit_cap)}.",
            )
        try:
            check_opening(opening)
        except SignatureInvalid as error:
            raise PaymentRefused(error.message) from None
        for channel in await self._books.channels():
            if channel.role != "payee" or channel.id != terms.channel_id():
                continue
            if channel.deposit != opening.deposit:
                raise PaymentRefused(f"this channel was opened before, with {format_octo(channel.deposit)}.")
            if channel.state is not ChannelState.OPEN:
                raise PaymentRefused(f"this channel is {channel.state}.", next_step="Open a new one.")
        return opening.deposit

    async def check_serving(self) -> None:
        """Nothing to wait for: a voucher on the ledger is as good as it gets."""

    async def balances(self) -> Balances:
        return self._balances(await self._books.channels())

    def _balances(self, channels: Iterable[Channel]) -> Balances:
        locked = spent = earned = 0
        unwritten = dict(self._signed)
        for channel in channels:
            if channel.terms.rail != LEDGER or channel.terms.network != self._network:
                continue
            if channel.role == "payee":
                earned += channel.paid
                continue
            unwritten.pop(channel.id, None)
            spent += channel.paid
            if channel.state is not ChannelState.CLOSED:
                locked += channel.left
        locked += sum(opening.deposit for opening in unwritten.values())
        # A grant that was lowered below what is out already leaves nothing, not less than nothing.
        available = max(0, self._granted - locked - spent)
        return Balances(granted=self._granted, available=available, locked=locked, spent=spent, earned=earned)

    def _check_terms(self, terms: ChannelTerms) -> None:
        if terms.rail != LEDGER:
            raise PaymentRefused(f"the channel is on rail {terms.rail!r}, not {LEDGER!r}.")
        if terms.network != self._network:
            raise PaymentRefused(f"the channel is on network {terms.network!r}, not {self._network!r}.")
