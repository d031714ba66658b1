"""The selling story, in order: quote, admit, generate, meter, receipt, collect.

Here is the negotiation, and the order of it all; the other parts are `market.admitting` and `market.delivery`, and
`market.quoting` and `market.remembering` help. Talks to the world through ports only; the money rules stand
in `market.till` and `market.channel`.
"""

from __future__ import annotations

import structlog

from market.admitting import Admitted, Turn, admit
from market.delivery import Delivery
from market.errors import OctoError, PaymentRefused, PeerBrokeProtocol, PeerGone, RequestInvalid
from market.identity import Binding, check_binding
from market.kept import Kept
from market.message import (
    Accept,
    CallForProposals,
    Counter,
    Forget,
    Forgotten,
    Input,
    Propose,
    Refuse,
    Reject,
    TaskError,
    TaskRequest,
)
from market.modes import priority_of
from market.parts import SellerParts, Serving
from market.ports import Conversation
from market.quote import Quote, SignedQuote, sign_quote
from market.quoting import Quoting
from market.remembering import find_kept, keep_answer
from market.talk import Talk
from market.till import Account

log = structlog.get_logger()


class Seller(SellerParts):
    async def serve(self, conversation: Conversation) -> None:
        """One task, whole. Never raises for what the client or the connection does: it is told, or gone."""
        try:
            await Sale(self, conversation).story()
        except PeerGone:
            log.info("client_gone", task=conversation.task.hex(), peer=conversation.peer)
        except OctoError as error:
            log.info("task_ended", task=conversation.task.hex(), peer=conversation.peer, why=str(error))
            await tell(conversation, error)


async def tell(conversation: Conversation, error: OctoError) -> None:
    """Say what went wrong; a peer that is gone cannot be told. What a peer did to us is the peer's fault."""
    fault = error.fault if error.fault != "node" else "provider"
    if isinstance(error, PeerBrokeProtocol):
        fault = "client"
    try:
        await conversation.send(TaskError(fault=fault, code=error.code, message=str(error)[:500], retry=error.retry))
    except OctoError:
        return


class Sale:
    """One conversation, from the call for proposals to the last voucher."""

    def __init__(self, seller: Seller, conversation: Conversation) -> None:
        self._seller = seller
        self._task = conversation.task
        self._peer = conversation.peer
        self._talk = Talk(conversation, "seller")
        self._timeout_s = seller.terms.step_timeout_s

    async def story(self) -> None:
        call = await self._talk.hear(self._timeout_s)
        if isinstance(call, Forget):
            await self._forget()
            return
        if not isinstance(call, CallForProposals):
            raise PeerBrokeProtocol(f"expected a call for proposals, got {call.kind!r}.", peer=self._peer)
        seller = self._seller
        client = check_binding(call.binding, network=seller.network, now_ms=seller.clock.now_ms())
        if client.peer != self._peer:
            raise RequestInvalid("the binding is another peer's.")
        try:
            quoting = Quoting(seller, call, task=self._task, client=client)
            kept = await find_kept(seller, call, quoting.served, asker=self._peer)
            quoting.check_room(kept)
            seller.till.check_open(call.channel)
            await seller.till.check_serving()
        except OctoError as error:
            await self._talk.say(Refuse(code=error.code, reason=str(error)[:500]))
            return
        agreed = await self._negotiate(call, quoting, kept)
        if agreed is None:
            return
        signed, accept = agreed
        quote = signed.read()
        log.info("task_accepted", task=self._task.hex(), peer=self._peer, model=quote.model, tokens_in=quote.tokens_in)
        request = await self._talk.hear_a(TaskRequest, self._timeout_s)
        admitted = await admit(
            request.task,
            call=call,
            quote=quote,
            served=quoting.served,
            turn=self._turn(quote, quoting.served, client),
            kept=kept,
            hear_blob=self._hear_blob,
        )
        await self._deliver(call, request, signed=signed, accept=accept, client=client, admitted=admitted)

    async def _deliver(
        self,
        call: CallForProposals,
        request: TaskRequest,
        *,
        signed: SignedQuote,
        accept: Accept,
        client: Binding,
        admitted: Admitted,
    ) -> None:
        seller, quote = self._seller, signed.read()
        account = await seller.till.admit(accept.voucher.voucher.channel, accept.opening, client=client, quote=quote)
        account.owed = quote.cost_in()
        try:
            with seller.line.stand(quote.model, quote.mode) as place:
                delivery = Delivery(
                    talk=self._talk,
                    goods=admitted.goods,
                    salt=request.task.salt,
                    quote=signed,
                    account=account,
                    seller=seller,
                    begun=place.leave,
                )
                await delivery.story(self._collect_prepayment(account, accept, quote))
        finally:
            seller.till.close(account)
        if delivery.original is not None:
            await keep_answer(seller, call, admitted, delivery.original, asker=self._peer)

    def _turn(self, quote: Quote, served: Serving, client: Binding) -> Turn:
        """Modes in order, the owner and paying clients before strangers; who pays more has a larger share."""
        seller = self._seller
        known = self._peer == seller.peer or seller.till.is_paying(client.wallet)
        _, price = served.model.prices(quote.mode)
        weight = 100 if self._peer == seller.peer or not price else max(1, min(100, quote.price_out * 100 // price))
        return Turn(
            priority=priority_of(quote.mode, known=known),
            weight=weight,
            deadline_s=seller.terms.waits[quote.mode].deadline_s,
        )

    # ---- quote ----

    async def _negotiate(
        self, call: CallForProposals, quoting: Quoting, kept: Kept | None
    ) -> tuple[SignedQuote, Accept] | None:
        quote = quoting.quote(kept, quoting.asked(kept), final=False)
        while True:
            signed = sign_quote(quote, self._seller.receipt_key)
            await self._talk.say(
                Propose(
                    quote=signed,
                    binding=self._seller.binding,
                    taken=self._seller.till.taken(call.channel),
                    original=kept.original if kept else None,
                )
            )
            body = await self._talk.hear(self._timeout_s)
            if isinstance(body, Accept):
                if body.quote != signed.digest():
                    raise RequestInvalid("the accepted quote is not the one that was proposed.")
                if self._seller.clock.now_ms() >= quote.expires_ms:
                    raise RequestInvalid("the quote has expired.", next_step="Ask for a new one.")
                return signed, body
            if isinstance(body, Reject) and body.is_final:
                return None
            prices = quoting.answer(body, kept) if isinstance(body, Counter) else quoting.asked(kept)
            quote = quoting.quote(kept, prices, final=True)

    # ---- admit ----

    async def _hear_blob(self, size: int) -> bytes:
        blob = bytearray()
        while len(blob) < size:
            part = await self._talk.hear_a(Input, self._timeout_s)
            if part.start != len(blob) or len(blob) + len(part.data) > size:
                raise RequestInvalid("a part of the input is not the one that comes next.")
            blob += part.data
        return bytes(blob)

    async def _collect_prepayment(self, account: Account, accept: Accept, quote: Quote) -> None:
        """The voucher that came with accept, on disk: before that, no token leaves."""
        added = await self._seller.till.take(account, accept.voucher)
        if added < quote.cost_in():
            raise PaymentRefused("the voucher with accept does not pay for the input.")

    # ---- forget ----

    async def _forget(self) -> None:
        cache = self._seller.cache
        answers = await cache.forget(self._peer) if cache is not None else 0
        log.info("answers_forgotten", peer=self._peer, answers=answers)
        await self._talk.say(Forgotten(answers=answers))
