"""One key's transactions: nonces in order, fees that rise when a block leaves them out, confirmations.

Whoever calls `send` and goes away leaves the transaction in good hands: it is tended until it is confirmed
or `patience_s` is over. Nothing is written down: after a restart the chain says which nonce is next, and
what we send (open, redeem, stake) is refused by its contract the second time.

Two programs with one key are noticed, not prevented: a nonce that another transaction took is given up
once the chain has counted past it, and the call is simulated and sent anew with the next one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from contracts.chain import Chain, TxReceipt
from contracts.contract import Call, explained
from contracts.faults import ChainAway, ChainError, ChainRefused, GasPurseEmpty, Reverted
from contracts.transactions import Fees, SignedTransaction, Transaction, sign_transaction
from market.identity import WalletSigner
from market.signing import address_text
from market.values import value

log = structlog.get_logger()

GWEI = 10**9
_TRIES = 40


@value
class SendTerms:
    """`confirmations`: blocks from the one that holds the transaction, that one included. `bump_after_s`: how long
    a fee may be ignored before it is raised by `bump_per_cent` (nodes want 10 at least). `max_fee` is in wei for a
    unit of gas. `taken_after_s`: how long a used nonce and no receipt must be seen before we believe that another
    program took it: behind one URL may be several nodes, one of which lags."""

    confirmations: int = 1
    poll_s: float = 0.5
    bump_after_s: float = 30.0
    bump_per_cent: int = 25
    max_fee: int = 500 * GWEI
    taken_after_s: float = 3.0
    patience_s: float = 600.0


class Sender:
    """Use `open_sender`: one for each key."""

    def __init__(self, chain: Chain, signer: WalletSigner, terms: SendTerms) -> None:
        self._chain = chain
        self._signer = signer
        self._terms = terms
        self._lock = asyncio.Lock()
        self._next = 0
        self._tended: set[asyncio.Task[TxReceipt]] = set()
        self._under_way = 0
        self.address = signer.address

    async def send(self, call: Call, *, gas: int | None = None) -> TxReceipt:
        """Send and wait until it is confirmed. `gas` is estimated if not given.

        Raises Reverted (nothing was sent, or gas was spent for nothing), GasPurseEmpty, ChainAway or ChainError.
        """
        task = asyncio.create_task(self._carry_out(call, gas), name=call.what)
        self._tended.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[TxReceipt]) -> None:
        self._tended.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.info("transaction_failed", what=task.get_name(), why=str(task.exception())[:300])

    async def aclose(self) -> None:
        """What is under way stays under way on the chain; it is only not tended any more."""
        for task in self._tended:
            task.cancel()
        await asyncio.gather(*self._tended, return_exceptions=True)

    async def _carry_out(self, call: Call, gas: int | None) -> TxReceipt:
        for _ in range(_TRIES):
            limit = gas or await self._gas(call)
            sent = await self._submit(call, limit)
            try:
                receipt = await self._tend(sent, call, limit)
            finally:
                self._under_way -= 1
            if receipt is None:
                log.warning("nonce_taken", wallet=address_text(self.address), nonce=sent.nonce, what=call.what)
                continue
            if not receipt.ok:
                raise await self._why(call, receipt)
            log.info("transaction_confirmed", what=call.what, transaction="0x" + receipt.transaction.hex(),
                     block=receipt.block, gas=receipt.gas_used)  # fmt: skip
            return receipt
        raise ChainError(
            f"{call.what}: the nonces of {address_text(self.address)} are used up by another program.",
            next_step="Give each node a wallet of its own.",
        )

    async def _gas(self, call: Call) -> int:
        """A fifth more than the call takes now: storage that another transaction fills first costs more."""
        try:
            estimate = await self._chain.estimate(sender=self.address, to=call.to, data=call.data, amount=call.amount)
        except ChainRefused as refused:
            if refused.gas_purse_empty:
                raise self._empty() from None
            raise explained(refused, what=call.what, abi=call.abi) from None
        return estimate * 6 // 5

    async def _submit(self, call: Call, gas: int) -> SignedTransaction:
        """Sign with the next nonce and hand in, one at a time."""
        async with self._lock:
            fees, outbid = Fees(max_fee=0, tip=0), -1
            for _ in range(_TRIES):
                pending, usual = await asyncio.gather(self._chain.nonce(self.address, pending=True), self._fees())
                # While nothing of ours is under way the chain is right, even if it counts less than we did.
                nonce = max(self._next, pending) if self._under_way else pending
                fees = max(fees, usual, key=lambda f: f.max_fee)
                sent = self._sign(call, gas, nonce, fees)
                try:
                    await self._chain.broadcast(sent.raw)
                except ChainAway:
                    pass  # it may have arrived: tending asks, and hands it in again
                except ChainRefused as refused:
                    if refused.gas_purse_empty:
                        raise self._empty() from None
                    if refused.nonce_used and await self._chain.receipt(sent.hash) is None:
                        self._next = 0
                        await _give_way()
                        continue
                    if refused.underpriced:
                        # Another transaction waits with this nonce: go behind it once the node counts it. One that
                        # it still does not count next time is stuck, and we pay more than it.
                        if nonce == outbid:
                            fees = fees.bumped(self._terms.bump_per_cent)
                        self._next, outbid = 0, nonce
                        if fees.max_fee > self._terms.max_fee:
                            break
                        await _give_way()
                        continue
                    if not (refused.known or refused.nonce_used):
                        raise explained(refused, what=call.what, abi=call.abi) from None
                self._next = nonce + 1
                self._under_way += 1
                return sent
        raise ChainError(f"{call.what}: the chain's node takes no transaction of this wallet at a fee up to the cap.",
                         next_step="Try again when the chain is less busy.")  # fmt: skip

    async def _tend(self, sent: SignedTransaction, call: Call, gas: int) -> TxReceipt | None:
        """The receipt, once confirmed; None when another transaction took the nonce."""
        started = broadcast = time.monotonic()
        versions, wait_s, taken_since, complaint = [sent], 0.02, 0.0, ""
        while time.monotonic() - started < self._terms.patience_s:
            try:
                head = await self._chain.head()
                receipt = await self._receipt(versions)
                if receipt is not None:
                    taken_since = 0.0
                    if head.number - receipt.block + 1 >= self._terms.confirmations:
                        return receipt
                elif await self._chain.nonce(self.address) > sent.nonce:
                    taken_since = taken_since or time.monotonic()
                    if time.monotonic() - taken_since >= self._terms.taken_after_s:
                        return None
                else:
                    taken_since = 0.0
                    if time.monotonic() - broadcast > self._terms.bump_after_s:
                        versions.append(await self._again(versions[-1], call, gas))
                        broadcast = time.monotonic()
            except ChainError as error:
                if error.message != complaint:
                    log.info("transaction_waits", what=call.what, nonce=sent.nonce, why=error.message)
                complaint = error.message
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._terms.poll_s)
        raise ChainAway(
            f"{call.what}: transaction 0x{sent.hash.hex()} is not confirmed after {self._terms.patience_s:.0f} s.",
            next_step="It may still be. See `octo-node status` for the state of the chain.",
        )

    async def _receipt(self, versions: list[SignedTransaction]) -> TxReceipt | None:
        for version in reversed(versions):
            receipt = await self._chain.receipt(version.hash)
            if receipt is not None:
                return receipt
        return None

    async def _again(self, last: SignedTransaction, call: Call, gas: int) -> SignedTransaction:
        """The same with a higher fee, up to the cap; at the cap, the very same once more: the node may have lost it."""
        usual = await self._fees()
        fees = last.fees.bumped(self._terms.bump_per_cent)
        fees = Fees(max_fee=max(fees.max_fee, usual.max_fee), tip=max(fees.tip, usual.tip))
        again = last if fees.max_fee > self._terms.max_fee else self._sign(call, gas, last.nonce, fees)
        try:
            await self._chain.broadcast(again.raw)
        except ChainRefused as refused:
            log.info("bump_refused", what=call.what, why=refused.message)
        log.info("transaction_sent_again", what=call.what, nonce=again.nonce, max_fee=again.fees.max_fee)
        return again

    def _sign(self, call: Call, gas: int, nonce: int, fees: Fees) -> SignedTransaction:
        transaction = Transaction(
            chain_id=self._chain.chain_id, nonce=nonce, fees=fees, gas=gas, to=call.to, amount=call.amount,
            data=call.data,
        )  # fmt: skip
        return sign_transaction(transaction, self._signer)

    async def _fees(self) -> Fees:
        """Twice the base fee: it may rise by an eighth a block, so six full blocks pass before it is too low."""
        head, tip = await asyncio.gather(self._chain.head(), self._chain.tip())
        if head.base_fee + tip > self._terms.max_fee:
            raise ChainError(
                f"gas costs {(head.base_fee + tip) / GWEI:.1f} gwei, over the cap of {self._terms.max_fee / GWEI:.1f}.",
                next_step="Wait until the chain asks for less.",
            )
        # A few wei of chance in what may be paid, not in what is: two programs with one key would else sign the very
        # same bytes for the same call, and each take the one transaction for its own.
        return Fees(max_fee=min(2 * head.base_fee + tip, self._terms.max_fee) + secrets.randbelow(1 << 16), tip=tip)

    def _empty(self) -> GasPurseEmpty:
        return GasPurseEmpty(
            f"the wallet {address_text(self.address)} cannot pay for gas.",
            next_step="Send it some of the chain's own coin; on a devnet, `octo-node wallet faucet`.",
        )

    async def _why(self, call: Call, receipt: TxReceipt) -> ChainError:
        """Run it again where it failed, to hear the contract's reason: a receipt has none."""
        if call.to is not None:
            try:
                await self._chain.read(call.to, call.data, at=receipt.block, sender=self.address)
            except ChainRefused as refused:
                return explained(refused, what=call.what, abi=call.abi)
            except ChainAway:
                pass
        return Reverted(call.what)


async def _give_way() -> None:
    """Two programs that contend for nonces step out of each other's time."""
    await asyncio.sleep(secrets.randbelow(50) / 1000)


@asynccontextmanager
async def open_sender(chain: Chain, signer: WalletSigner, terms: SendTerms | None = None) -> AsyncIterator[Sender]:
    sender = Sender(chain, signer, terms or SendTerms())
    try:
        yield sender
    finally:
        await sender.aclose()
