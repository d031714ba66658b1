"""The selling story, in order: quote, admit, generate, meter, receipt, collect.

Here are quote and admit; the rest of the story is `market.delivery`. Talks to the world through ports
only; the money rules stand in `market.till` and `market.channel`.
"""

from __future__ import annotations

import structlog

from market.delivery import Delivery
from market.errors import EngineFailed, OctoError, PaymentRefused, PeerBrokeProtocol, PeerGone, RequestInvalid
from market.goods import Goods, PieceGoods, TokenGoods
from market.identity import Binding, check_binding
from market.message import Accept, CallForProposals, Counter, Input, Propose, Refuse, Reject, TaskError, TaskRequest
from market.parts import SellerParts, Served, ServedWork, Serving
from market.ports import Conversation, Job, WorkJob
from market.quote import Quote, SignedQuote, sign_quote
from market.talk import Talk
from market.task import ChatTask, Privacy, may_fit, prompt_digest
from market.till import Account
from market.work import NO_SAMPLING, WorkTask, decode_request, input_digest, work_of

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
        seller = self._seller
        call = await self._talk.hear_a(CallForProposals, self._timeout_s)
        client = check_binding(call.binding, network=seller.network, now_ms=seller.clock.now_ms())
        if client.peer != self._peer:
            raise RequestInvalid("the binding is another peer's.")
        try:
            served = self._can_serve(call, client)
            await seller.till.check_serving()
        except OctoError as error:
            await self._talk.say(Refuse(code=error.code, reason=str(error)[:500]))
            return
        agreed = await self._negotiate(call, served)
        if agreed is None:
            return
        signed, accept = agreed
        quote = signed.read()
        log.info("task_accepted", task=self._task.hex(), peer=self._peer, model=quote.model, tokens_in=quote.tokens_in)
        request = await self._talk.hear_a(TaskRequest, self._timeout_s)
        priority = 0 if seller.till.is_paying(client.wallet) else 1
        if isinstance(served, Served):
            goods: Goods = self._text(request.task, quote, served, priority)
        else:
            goods = await self._work(request.task, quote, served, priority)
        account = await seller.till.admit(accept.voucher.voucher.channel, accept.opening, client=client, quote=quote)
        account.owed = quote.cost_in()
        try:
            delivery = Delivery(
                talk=self._talk,
                goods=goods,
                salt=request.task.salt,
                quote=signed,
                account=account,
                seller=seller,
            )
            await delivery.story(self._collect_prepayment(account, accept, quote))
        finally:
            seller.till.close(account)

    # ---- quote ----

    def _can_serve(self, call: CallForProposals, client: Binding) -> Serving:
        seller = self._seller
        served = seller.served().get(call.model)
        if served is None:
            raise RequestInvalid("this provider does not serve that model.")
        if call.rail != seller.rail:
            raise RequestInvalid(f"this provider is paid over {seller.rail}, not {call.rail}.")
        if call.work not in served.model.works:
            raise RequestInvalid(f"this provider does not {call.work} with that model.")
        if call.mode not in served.model.modes:
            raise RequestInvalid(f"this provider does not serve {call.mode} mode.")
        room = call.tokens_in + (call.max_tokens if isinstance(served, Served) else 0)
        if room > served.engine.info.context:
            raise RequestInvalid(f"the context here is {served.engine.info.context} tokens.")
        if served.engine.load().waiting >= seller.terms.waiting_limit:
            raise EngineFailed("too many tasks are waiting here.", next_step="Try again soon.")
        if client.peer != seller.peer:
            quote = self._quote(call, served, served.model.price_in, served.model.price_out, final=False)
            seller.till.check_credit(client.wallet, quote.cost_of(seller.terms.tick_tokens) - quote.cost_in())
        return served

    async def _negotiate(self, call: CallForProposals, served: Serving) -> tuple[SignedQuote, Accept] | None:
        quote = self._quote(call, served, served.model.price_in, served.model.price_out, final=False)
        while True:
            signed = sign_quote(quote, self._seller.receipt_key)
            taken = self._seller.till.taken(call.channel)
            await self._talk.say(Propose(quote=signed, binding=self._seller.binding, taken=taken))
            body = await self._talk.hear(self._timeout_s)
            if isinstance(body, Accept):
                if body.quote != signed.digest():
                    raise RequestInvalid("the accepted quote is not the one that was proposed.")
                if self._seller.clock.now_ms() >= quote.expires_ms:
                    raise RequestInvalid("the quote has expired.", next_step="Ask for a new one.")
                return signed, body
            if isinstance(body, Reject) and body.is_final:
                return None
            price_in, price_out = self._answer(body, served) if isinstance(body, Counter) else _own(served)
            quote = self._quote(call, served, price_in, price_out, final=True)

    def _answer(self, counter: Counter, served: Serving) -> tuple[int, int]:
        """Their price if it is not below our floor, else our own."""
        floor = self._seller.terms.floor_percent
        price_in, price_out = _own(served)
        if counter.price_in * 100 >= price_in * floor and counter.price_out * 100 >= price_out * floor:
            return min(counter.price_in, price_in), min(counter.price_out, price_out)
        return price_in, price_out

    def _quote(self, call: CallForProposals, served: Serving, price_in: int, price_out: int, *, final: bool) -> Quote:
        seller = self._seller
        own = self._peer == seller.peer  # this node's own gateway pays nothing to itself
        return Quote(
            network=seller.network,
            task=self._task,
            provider=seller.peer,
            client=self._peer,
            model=call.model,
            weights=served.model.weights,
            engine=served.engine.info.name,
            rail=seller.rail,
            prompt=call.prompt,
            sampling=call.sampling,
            tokens_in=call.tokens_in,
            max_tokens=call.max_tokens,
            price_in=0 if own else price_in,
            price_out=0 if own else price_out,
            tick_tokens=seller.terms.tick_tokens,
            expires_ms=seller.clock.now_ms() + int(seller.terms.quote_ttl_s * 1000),
            final=final,
        )

    # ---- admit ----

    def _text(self, task: ChatTask | WorkTask, quote: Quote, served: Served, priority: int) -> Goods:
        """The task as a job, once it is the one that was quoted."""
        if not isinstance(task, ChatTask) or (task.model, task.max_tokens) != (quote.model, quote.max_tokens):
            raise RequestInvalid("the task is not the one that was quoted.")
        if task.sampling_digest() != quote.sampling:
            raise RequestInvalid("the task's sampling is not the one that was quoted.")
        if not may_fit(task.messages, task.text, served.engine.info.context):
            raise RequestInvalid("the prompt is longer than any that fits.")
        tokenizer = served.tokenizer
        prompt = tokenizer.render(task.messages) if task.messages else tokenizer.encode(task.text)
        if len(prompt) != quote.tokens_in or prompt_digest(task.salt, prompt) != quote.prompt:
            raise RequestInvalid("the prompt is not the one that was quoted.")
        job = Job(
            task=self._task,
            prompt=prompt,
            sampling=task.sampling,
            max_tokens=task.max_tokens,
            end_tokens=tokenizer.end_tokens,
            priority=priority,
            client=self._peer,
            scope="public" if task.privacy is Privacy.PUBLIC else self._peer,
            logprobs=task.logprobs,
            grammar=task.grammar,
        )
        return TokenGoods(served.engine, job, tokenizer, task.stop)

    async def _work(self, task: ChatTask | WorkTask, quote: Quote, served: ServedWork, priority: int) -> Goods:
        """As `_text`, once the blob is here."""
        if not isinstance(task, WorkTask) or (task.model, task.max_units) != (quote.model, quote.max_tokens):
            raise RequestInvalid("the task is not the one that was quoted.")
        if quote.sampling != NO_SAMPLING:
            raise RequestInvalid("the task's sampling is not the one that was quoted.")
        blob = await self._hear_blob(task.blob_bytes)
        if input_digest(task.salt, task.request, blob) != quote.prompt:
            raise RequestInvalid("the input is not the one that was quoted.")
        request = decode_request(task.request)
        if work_of(request) not in served.model.works:
            raise RequestInvalid(f"this provider does not {work_of(request)} with that model.")
        if served.meter.units_in(request, blob) != quote.tokens_in:
            raise RequestInvalid(f"the input was quoted as {quote.tokens_in} units, and counts for another number.")
        job = WorkJob(
            task=self._task,
            request=request,
            blob=blob,
            max_units=quote.max_tokens,
            priority=priority,
            client=self._peer,
        )
        return PieceGoods(served.engine, job, served.meter)

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


def _own(served: Serving) -> tuple[int, int]:
    return served.model.price_in, served.model.price_out
