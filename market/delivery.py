"""The second half of the selling story: generate, meter, receipt, collect.

Tokens, or pieces, stream while money follows: each tick is receipted, and generation runs at most two ticks ahead of
the vouchers. A receipt is on disk before it is sent; no disk write stands between two tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Literal

import structlog

from market.caching import Original
from market.errors import OctoError, PaymentRefused
from market.goods import Goods, Item
from market.message import Cancel, Payment, TaskResponse, TickReceipt
from market.parts import SellerParts
from market.quote import SignedQuote
from market.receipt import Receipt, sign_receipt
from market.record import Commitment, ReceiptRecord, record_of
from market.talk import Talk, stop_tasks
from market.task import Mode, TaskId
from market.till import Account
from market.values import encode

log = structlog.get_logger()

COALESCE_S = 0.015
"""Later tokens wait this long for company: one Python loop carries many streams (DESIGN section 5)."""
TICKS_AHEAD = 2

Finish = Literal["", "stop", "length", "cancelled", "error"]


class Delivery:
    """One accepted task, from its first token to its last voucher."""

    def __init__(
        self,
        *,
        talk: Talk,
        goods: Goods,
        salt: bytes,
        quote: SignedQuote,
        account: Account,
        seller: SellerParts,
        begun: Callable[[], None],
    ) -> None:
        """`begun` is called when the first item is there."""
        self._talk = talk
        self._task_id = TaskId(talk.conversation.task)
        self._goods = goods
        self._salt = salt
        self._signed_quote = quote
        self._quote = quote.read()
        self._account = account
        self._seller = seller
        self._begun = begun
        self._transcript = seller.verifier.open_transcript(
            task=self._task_id,
            quote=quote.digest(),
            prompt=self._quote.prompt,
            sampling=self._quote.sampling,
            pieces=goods.pieces,
        )
        self._started_ms = seller.clock.now_ms()
        self._buffer: list[Item] = []
        self._pending: list[Item] = []
        self._units = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._finish: Finish = ""
        self._failure: Exception | None = None
        self._issued: list[tuple[Receipt, bytes]] = []
        self._generating: asyncio.Task[None] | None = None
        self._issuing: asyncio.Task[None] | None = None
        self.original: Original | None = None
        """Set once the answer is whole and paid: what a later telling of it can be proved with."""

    async def story(self, prepayment: Coroutine[object, object, None]) -> None:
        prepaid = asyncio.create_task(prepayment)
        self._generating = asyncio.create_task(self._generate())
        reading: asyncio.Task[None] | None = None
        try:
            # Prefill runs while the voucher goes to disk; what it yields waits for both.
            await prepaid
            reading = asyncio.create_task(self._read())
            finish = await self._meter()
            await stop_tasks(self._generating)
            original = await self._respond(finish)
            await self._collect(self._issued[-1])
            self.original = original
        finally:
            await stop_tasks(self._generating, reading, prepaid, self._issuing)

    # ---- generate ----

    async def _generate(self) -> None:
        """Pump the engine into the buffer, and no further than the buffer."""
        try:
            async with aclosing(self._goods.stream()) as stream:
                async for items, ending in stream:
                    self._buffer.extend(items)
                    self._finish = self._finish or ending
                    self._wake.set()
                    while len(self._buffer) > self._goods.buffer_limit:
                        self._room.clear()
                        await self._room.wait()
        except OctoError as error:
            self._failure = error
            self._wake.set()

    async def _read(self) -> None:
        """What the client says while we deliver: vouchers, or stop."""
        try:
            while True:
                body = await self._talk.hear(3600.0)
                if isinstance(body, Payment):
                    await self._seller.till.take(self._account, body.voucher)
                elif isinstance(body, Cancel):
                    log.info("task_cancelled", task=self._task_id.hex(), peer=self._talk.peer)
                    self._finish = "cancelled"
                    if self._generating is not None:
                        self._generating.cancel()
                    self._wake.set()
        except OctoError as error:
            self._failure = error
            self._wake.set()
            self._account.progress.set()

    # ---- meter ----

    async def _meter(self) -> Finish:
        """Send items as they come, coalesced; at each tick, a receipt. Returns why the answer ended."""
        loop = asyncio.get_running_loop()
        last_send = last_tick = loop.time()
        first = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seller.terms.tick_s):
                    await self._wake.wait()
            self._wake.clear()
            self._raise_failure()
            if not first and self._finish == "":
                await asyncio.sleep(max(0.0, last_send + COALESCE_S - loop.time()))
            items, self._buffer = self._buffer, []
            self._room.set()
            if self._finish == "cancelled":
                return "cancelled"
            if items:
                self._begun()
            for item in items:
                if self._count(item):
                    await self._flush()
                    return "stop"
                if self._since_receipt() >= self._seller.terms.tick_tokens:
                    await self._tick()
                    last_tick = loop.time()
            if self._pending and loop.time() - last_tick >= self._seller.terms.tick_s:
                await self._tick()
                last_tick = loop.time()
            await self._flush()
            if not items and not self._finish and (first or self._goods.pieces or self._is_patient()):
                await self._talk.say(self._goods.alive())
            first = first and not items
            last_send = loop.time()
            if self._finish and not self._buffer:
                return self._finish

    def _is_patient(self) -> bool:
        """A task that gave its slot to a realtime one may be still for minutes, and goes on."""
        return self._quote.mode is not Mode.REALTIME

    def _count(self, item: Item) -> bool:
        """Whether it was the last that was asked for."""
        self._transcript.add(item.number, item.data)
        self._units += item.units
        self._pending.append(item)
        return self._goods.take(item)

    def _since_receipt(self) -> int:
        return self._units - (self._issued[-1][0].tokens_out if self._issued else 0)

    async def _flush(self, commitment: Commitment | None = None) -> None:
        """Send what is pending; with `commitment`, close the chunk after it."""
        pending: Sequence[Item]
        pending, self._pending = self._pending, []
        for frame in self._goods.frames(pending, commitment.head if commitment else None):
            await self._talk.say(frame)

    # ---- receipt ----

    async def _tick(self) -> None:
        """Close the chunk, receipt it, and wait if the client is two ticks behind."""
        commitment = self._transcript.close_chunk()
        await self._flush(commitment)
        record = self._receipt(commitment, final=False, finish="")
        self._issuing = asyncio.create_task(self._issue(record, self._issuing))
        self._issuing.add_done_callback(lambda _: self._account.progress.set())
        if len(self._issued) >= TICKS_AHEAD:
            await self._collect(self._issued[-TICKS_AHEAD])

    async def _issue(self, record: ReceiptRecord, previous: asyncio.Task[None] | None) -> None:
        """On disk, then on the wire, in order; beside the token stream, not in it."""
        if previous is not None:
            await previous
        await self._seller.books.save(None, receipts=(record,))
        await self._talk.say(TickReceipt(receipt=record.receipt))

    async def _respond(self, finish: Finish) -> Original:
        if self._issuing is not None:
            await self._issuing
        quote = self._quote
        record = self._receipt(self._transcript.close_chunk(), final=True, finish=finish)
        await self._seller.books.save(None, receipts=(record,))
        reason: Literal["stop", "length", "cancelled", "error"] = finish or "error"
        await self._talk.say(TaskResponse(receipt=record.receipt, finish=reason))
        log.info(
            "task_served",
            task=self._task_id.hex(),
            peer=self._talk.peer,
            tokens_in=quote.tokens_in,
            tokens_out=self._units,
            finish=finish,
            receipt=record.receipt.cid(),
            cached=quote.cached,
        )
        return Original(receipt=record.receipt, salt=self._salt, chunk_sizes=record.chunk_sizes)

    def _receipt(self, commitment: Commitment, *, final: bool, finish: Finish) -> ReceiptRecord:
        seller, quote = self._seller, self._quote
        amount = quote.cost_of(commitment.tokens)
        receipt = Receipt(
            network=seller.network,
            rail=seller.rail,
            provider=seller.peer,
            client=self._talk.peer,
            binding=seller.binding.cid(),
            channel=self._account.channel,
            task=self._task_id,
            seq=len(self._issued),
            final=final,
            finish=finish,
            model=quote.model,
            weights=quote.weights,
            engine=quote.engine,
            quote=self._signed_quote.digest(),
            prompt=quote.prompt,
            sampling=quote.sampling,
            tokens_in=quote.tokens_in,
            tokens_out=commitment.tokens,
            chunks=commitment.chunks,
            chain_head=commitment.head,
            transcript_root=commitment.root,
            amount=amount,
            kind="cached" if quote.cached else "generated",
            cached=quote.cached,
            started_ms=self._started_ms,
            ended_ms=max(self._started_ms, seller.clock.now_ms()),
        )
        signed = sign_receipt(receipt, seller.receipt_key)
        self._issued.append((receipt, signed.digest()))
        self._account.owed = amount
        return record_of(
            "provider",
            signed,
            commitment,
            quote=self._signed_quote,
            binding=encode(type(seller.binding), seller.binding),
            transcript=self._transcript,
            salt=self._salt,
        )

    # ---- collect ----

    async def _collect(self, issued: tuple[Receipt, bytes]) -> None:
        """Wait until the client has paid for a receipt; raises PaymentRefused when it does not."""
        receipt, digest = issued
        try:
            async with asyncio.timeout(self._seller.terms.payment_timeout_s):
                while not self._account.has_paid(receipt.amount, digest):
                    self._raise_failure()
                    self._account.progress.clear()
                    await self._account.progress.wait()
        except TimeoutError:
            raise PaymentRefused("no voucher came for what was delivered.") from None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        issuing = self._issuing
        if issuing is not None and issuing.done() and not issuing.cancelled():
            issuing.result()  # a receipt that could not be written down or sent is not the client's debt
