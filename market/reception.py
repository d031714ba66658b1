"""The second half of the buying story: stream, verify, pay.

Every token or piece extends our own transcript; a receipt is paid only if it says what we saw. Vouchers
are written and sent beside the stream, so that no disk write stands between two tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

import structlog

from market.errors import OctoError, PeerBrokeProtocol, PeerTimedOut
from market.identity import Binding, PeerId, SignedBinding
from market.message import Body, Cancel, Payment, Piece, Progress, TaskResponse, TickReceipt, Tokens
from market.parts import DealParts
from market.ports import Expectation
from market.purse import Spending
from market.quote import SignedQuote
from market.receipt import Receipt, SignedReceipt
from market.record import Commitment, ReceiptRecord, record_of
from market.retelling import Echo
from market.taking import Shown, Taken, Taking
from market.talk import Talk, stop_tasks
from market.task import Mode, TaskId
from market.values import encode, value
from market.voucher import VoucherFrame

log = structlog.get_logger()

Emit = Callable[[Shown], None]
"""Takes what may be shown, piece by piece."""


@value
class Outcome:
    """How an answer ended, who gave it, at what price, and why that provider. `not_chosen` and `failed`
    map peers to reasons; prices are 10^-18 OCTO per million tokens. `cached` is the CID of the receipt whose answer
    was told again; empty, it was generated. `engine` is the class of the engine that made it."""

    task: bytes
    provider: str
    model: str
    finish: str
    receipt: str
    channel: bytes
    tokens_in: int
    tokens_out: int
    amount: int
    price_in: int
    price_out: int
    first_token_ms: int
    total_ms: int
    cached: str = ""
    engine: str = ""
    because: str = ""
    not_chosen: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    def explained(self, because: str, not_chosen: Mapping[str, str], failed: Mapping[str, str]) -> Outcome:
        return replace(self, because=because, not_chosen=not_chosen, failed=failed)


class Reception:
    def __init__(
        self,
        *,
        parts: DealParts,
        echo: Echo | None,
        talk: Talk,
        task_id: TaskId,
        salt: bytes,
        taking: Taking,
        quote: SignedQuote,
        provider: Binding,
        binding: SignedBinding,
        spending: Spending,
        cancelled: asyncio.Event,
        emit: Emit,
        on_start: Callable[[], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """`echo` hears what an answer from the cache should be; `on_progress` how far the provider says that it is, in
        percent: a claim, and nothing that is paid for."""
        self._parts = parts
        self._echo = echo
        self._talk = talk
        self._task_id = task_id
        self._salt = salt
        self._taking = taking
        self._signed_quote = quote
        self._quote = quote.read()
        self._provider = provider
        self._binding = binding
        self._spending = spending
        self._cancelled = cancelled
        self._emit = emit
        self._on_start = on_start
        self._on_progress = on_progress
        self._transcript = parts.verifier.open_transcript(
            task=task_id,
            quote=quote.digest(),
            prompt=self._quote.prompt,
            sampling=self._quote.sampling,
            pieces=taking.pieces,
        )
        self._commitments: dict[int, Commitment] = {}
        self._previous: Receipt | None = None
        self._to_pay: asyncio.Queue[tuple[Receipt, ReceiptRecord] | None] = asyncio.Queue()
        self._began_ms = parts.clock.now_ms()
        self._first_token_ms = 0
        self._moved_s = asyncio.get_running_loop().time()
        self._progress = 0

    async def story(self) -> Outcome:
        paying = asyncio.create_task(self._pay())
        watching = asyncio.create_task(self._watch_cancel())
        try:
            response = await self._stream(paying)
            self._check_echo(response)
            receipt = self._check(response.receipt, self._transcript.close_chunk())
            if receipt.finish != response.finish or not receipt.final:
                raise PeerBrokeProtocol("the last receipt does not say how the answer ended.", peer=self._talk.peer)
            self._to_pay.put_nowait(None)
            await paying
        finally:
            await stop_tasks(paying, watching)
        self._show(self._taking.finish())
        return self._outcome(response, receipt)

    # ---- stream ----

    async def _stream(self, paying: asyncio.Task[None]) -> TaskResponse:
        terms, mode = self._parts.terms, self._quote.mode
        while True:
            wait_s = terms.settle_timeout_s if self._cancelled.is_set() else terms.message_timeout_s(mode)
            body = await self._talk.hear(wait_s)
            self._check_moves(body)
            if paying.done():
                await paying  # raises what went wrong with a voucher
            taken = self._taking.take(body, limit=self._quote.max_tokens)
            if taken is not None:
                self._take(taken)
            elif isinstance(body, TickReceipt):
                receipt = body.receipt.read()
                commitment = self._commitments.pop(receipt.tokens_out, None)
                if commitment is None:
                    raise PeerBrokeProtocol(
                        f"a receipt for {receipt.tokens_out} tokens, where no chunk was closed; not paid.",
                        peer=self._talk.peer,
                    )
                self._check(body.receipt, commitment)
            elif isinstance(body, TaskResponse):
                return body

    def _check_moves(self, body: Body) -> None:
        """Raises PeerTimedOut when a provider has only said for too long that it is alive."""
        now_s = asyncio.get_running_loop().time()
        if isinstance(body, Tokens | Piece) or (isinstance(body, Progress) and body.percent > self._progress):
            self._moved_s = now_s
            if isinstance(body, Progress):
                self._progress = body.percent
                self._on_progress(body.percent)
        patience_s = self._parts.terms.patience_s[self._quote.mode]
        if now_s - self._moved_s > patience_s:
            raise PeerTimedOut(
                f"nothing of the answer came for {patience_s:g} s, only signs of life.", peer=self._talk.peer
            )

    def _take(self, taken: Taken) -> None:
        transcript = self._transcript
        if not transcript.tokens:
            self._first_token_ms = self._parts.clock.now_ms() - self._began_ms
            self._on_start()
        for number, data in taken.items:
            transcript.add(number, data)
            if self._echo is not None:
                self._echo.add(number, data)
        if taken.closes is not None:
            commitment = transcript.close_chunk()
            if commitment.head != taken.closes:
                raise PeerBrokeProtocol("the provider's transcript is not of what it sent.", peer=self._talk.peer)
            self._commitments[commitment.tokens] = commitment
        self._show(taken.shown)

    def _show(self, shown: Sequence[Shown]) -> None:
        for item in shown:
            self._emit(item)

    async def _watch_cancel(self) -> None:
        await self._cancelled.wait()
        try:
            await self._talk.say(Cancel(reason="nobody reads the answer any more"))
        except OctoError:
            log.debug("cancel_not_delivered", task=self._task_id.hex(), peer=self._talk.peer)

    # ---- verify ----

    def _check_echo(self, response: TaskResponse) -> None:
        if self._echo is None or self._cancelled.is_set():
            return
        if not self._echo.holds(response.finish):
            raise PeerBrokeProtocol(
                "what came is not the answer of the receipt that was cited; the rest was not paid.",
                peer=self._talk.peer,
            )

    def _check(self, signed: SignedReceipt, commitment: Commitment) -> Receipt:
        """A receipt that holds is queued to be paid; one that does not raises PeerBrokeProtocol."""
        receipt = self._parts.verifier.check_receipt(
            signed,
            Expectation(
                network=self._parts.network,
                rail=self._parts.rail,
                client=self._parts.peer,
                provider=self._provider,
                provider_binding_cid=self._binding.cid(),
                channel=self._spending.channel,
                task=self._task_id,
                quote=self._signed_quote,
                prompt=self._quote.prompt,
                sampling=self._quote.sampling,
                tokens_in=self._quote.tokens_in,
                commitment=commitment,
                previous=self._previous,
            ),
        )
        self._previous = receipt
        record = record_of(
            "client",
            signed,
            commitment,
            quote=self._signed_quote,
            binding=encode(SignedBinding, self._binding),
            transcript=self._transcript,
            salt=self._salt,
        )
        self._to_pay.put_nowait((receipt, record))
        return receipt

    # ---- pay ----

    async def _pay(self) -> None:
        async def send(frame: VoucherFrame) -> None:
            await self._talk.say(Payment(voucher=frame))

        while (item := await self._to_pay.get()) is not None:
            receipt, record = item
            await self._spending.pay_up_to(receipt.amount, record.receipt.digest(), receipts=(record,), send=send)

    def _outcome(self, response: TaskResponse, receipt: Receipt) -> Outcome:
        total_ms = self._parts.clock.now_ms() - self._began_ms
        streaming_ms = max(1, total_ms - self._first_token_ms)
        facts = {"success": 1.0}
        if receipt.tokens_out and self._quote.mode is Mode.REALTIME:  # the others are meant to wait
            facts["first_token_ms"] = float(self._first_token_ms)
        if receipt.tokens_out > 16 and not self._taking.pieces and self._quote.mode is Mode.REALTIME:
            facts["tokens_per_s"] = (receipt.tokens_out - 1) * 1000 / streaming_ms  # fewer say nothing about speed
        if self._echo is None:  # telling again says nothing about who can think
            self._parts.standing.note(PeerId(self._provider.peer), **facts)
        return Outcome(
            task=self._task_id,
            provider=self._provider.peer,
            model=self._quote.model,
            finish=response.finish,
            receipt=response.receipt.cid(),
            channel=self._spending.channel,
            tokens_in=receipt.tokens_in,
            tokens_out=receipt.tokens_out,
            amount=receipt.amount,
            price_in=self._quote.price_in,
            price_out=self._quote.price_out,
            first_token_ms=self._first_token_ms,
            total_ms=total_ms,
            cached=receipt.cached,
            engine=receipt.engine,
        )
