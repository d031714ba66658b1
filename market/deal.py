"""One deal with one chosen provider: negotiate and call; `market.reception` streams, verifies and pays.

What arrives is checked before anything is paid: the quote must be signed, for exactly what was asked, at
no more than the offer said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from market.asking import Ask
from market.caching import check_original
from market.errors import EncodingInvalid, OctoError, PeerBrokeProtocol, PeerError, PeerRefused, RequestInvalid
from market.identity import Binding, SignedBinding, check_binding
from market.message import (
    Accept,
    CallForProposals,
    Counter,
    Propose,
    Refuse,
    Reject,
    TaskError,
)
from market.money import format_octo
from market.parts import DealParts
from market.ports import Conversation
from market.purse import Spending
from market.quote import Quote, SignedQuote, check_quote
from market.reception import Emit, Outcome, Reception
from market.retelling import Echo
from market.routing import Candidate
from market.talk import Talk
from market.task import TaskId
from market.voucher import Opening, VoucherFrame
from market.work import Work

log = structlog.get_logger()


class Deal:
    def __init__(
        self,
        *,
        parts: DealParts,
        candidate: Candidate,
        task_id: TaskId,
        ask: Ask,
        cancelled: asyncio.Event,
        emit: Emit,
        on_progress: Callable[[int], None],
    ) -> None:
        self._parts = parts
        self._candidate = candidate
        self._task_id = task_id
        self._ask = ask
        self._cancelled = cancelled
        self._emit = emit
        self._on_progress = on_progress
        self.prepaid = False
        """Whether money left before anything came back."""
        self.started = False
        """Whether a token arrived: before that, another provider may be tried."""

    async def story(self, conversation: Conversation) -> Outcome:
        """Raises PeerError when the provider fails or lies, InsufficientFunds when we cannot pay."""
        talk = Talk(conversation, "buyer")
        try:
            return await self._buy(talk)
        except EncodingInvalid as error:
            await self._complain(talk, error)
            raise PeerBrokeProtocol(str(error), peer=talk.peer) from None
        except OctoError as error:
            await self._complain(talk, error)
            raise
        finally:
            await conversation.aclose()

    async def _buy(self, talk: Talk) -> Outcome:
        named = self._parts.purse.channel_for(self._candidate.offer.binding.wallet, self._candidate.max_cost)
        signed, propose = await self._negotiate(talk, named)
        provider = self._check_binding(talk, propose.binding)
        echo = self._check_cached(talk, signed.read(), propose)
        spending, opening = await self._parts.purse.spend_on(
            signed.read(), provider=provider, named=named, taken=propose.taken
        )
        cost_in = signed.read().cost_in()
        self._parts.prepaid.take(cost_in)
        broken = True
        try:
            await self._accept(talk, signed, spending, opening)
            reception = Reception(
                parts=self._parts,
                echo=echo,
                talk=talk,
                task_id=self._task_id,
                salt=self._ask.salt,
                taking=self._ask.taking(talk.peer),
                quote=signed,
                provider=provider,
                binding=propose.binding,
                spending=spending,
                cancelled=self._cancelled,
                emit=self._emit,
                on_start=lambda: self._on_start(cost_in),
                on_progress=self._on_progress,
            )
            outcome = await reception.story()
            broken = False
        finally:
            spending.close(broken=broken)
        return outcome

    def _on_start(self, cost_in: int) -> None:
        self.started = True
        self._parts.prepaid.answered(cost_in)

    async def _complain(self, talk: Talk, error: OctoError) -> None:
        """Tell the provider what we will not pay for, or wait for any longer: it would go on working for nobody."""
        if talk.ended:
            return
        try:
            await talk.say(
                TaskError(
                    fault="provider" if isinstance(error, PeerError | EncodingInvalid) else "client",
                    code=error.code,
                    message=str(error)[:500],
                    retry=False,
                )
            )
        except OctoError:
            log.debug("complaint_not_delivered", task=self._task_id.hex(), peer=talk.peer)

    # ---- negotiate ----

    async def _negotiate(self, talk: Talk, named: bytes | None) -> tuple[SignedQuote, Propose]:
        await talk.say(
            CallForProposals(
                binding=self._parts.binding,
                work=self._ask.work,
                model=self._ask.model,
                tokens_in=self._ask.tokens_in,
                max_tokens=self._ask.max_tokens,
                prompt=self._ask.prompt,
                sampling=self._ask.sampling,
                mode=self._ask.mode,
                privacy=self._ask.privacy,
                rail=self._parts.rail,
                channel=named,
                cache=self._ask.cache if self._candidate.model.keeps_answers else None,
            )
        )
        while True:
            body = await talk.hear(self._parts.terms.propose_timeout_s)
            if isinstance(body, Refuse):
                raise PeerRefused(body.reason, peer=talk.peer, reason_code=body.code)
            if not isinstance(body, Propose):
                raise PeerBrokeProtocol(f"expected a proposal, got {body.kind!r}.", peer=talk.peer)
            quote = self._check_quote(talk, body.quote)
            if self._cancelled.is_set():
                await talk.say(Reject(reason="the request was cancelled", is_final=True))
                raise RequestInvalid("the request was cancelled.")
            # What an answer costs that is told again was offered as well.
            price_in, price_out = self._candidate.model.prices(self._ask.mode, cached=quote.cached != "")
            if quote.price_in <= price_in and quote.price_out <= price_out:
                return body.quote, body
            if quote.final:
                await talk.say(Reject(reason="the quote is above the offer", is_final=True))
                asked = f"{format_octo(quote.price_in)} and {format_octo(quote.price_out)}"
                raise PeerRefused(f"asks {asked} per million tokens, more than it offered.", peer=talk.peer)
            await talk.say(Counter(price_in=price_in, price_out=price_out))

    def _check_quote(self, talk: Talk, signed: SignedQuote) -> Quote:
        """The quote, once it is signed and for exactly what we asked."""
        quote = check_quote(signed, receipt_key=self._candidate.offer.binding.receipt_key)
        if quote.tokens_in != self._ask.tokens_in:
            raise PeerBrokeProtocol(
                f"the quote counts {quote.tokens_in} prompt tokens, ours has {self._ask.tokens_in}; nothing was paid.",
                peer=talk.peer,
            )
        asked: dict[str, object] = {
            "network": self._parts.network,
            "task": self._task_id,
            "provider": self._candidate.peer,
            "client": self._parts.peer,
            "model": self._ask.model,
            "weights": self._candidate.model.weights,
            "rail": self._parts.rail,
            "prompt": self._ask.prompt,
            "sampling": self._ask.sampling,
            "max_tokens": self._ask.max_tokens,
            "mode": self._ask.mode,
        }
        for name, ours in asked.items():
            if getattr(quote, name) != ours:
                raise PeerBrokeProtocol(
                    f"the quote's {name} is not the one that was asked for; nothing was paid.", peer=talk.peer
                )
        if quote.expires_ms <= self._parts.clock.now_ms():
            raise PeerBrokeProtocol("the quote had expired when it arrived.", peer=talk.peer)
        return quote

    def _check_cached(self, talk: Talk, quote: Quote, propose: Propose) -> Echo | None:
        """What is told again is compared with what was told then; None for an answer that is generated."""
        if (quote.cached != "") != (propose.original is not None):
            raise PeerBrokeProtocol("a quote cites an earlier receipt that is not there.", peer=talk.peer)
        if propose.original is None:
            return None
        if self._ask.cache is None:
            raise PeerBrokeProtocol("an answer from the cache was not asked for; nothing was paid.", peer=talk.peer)
        receipt = check_original(
            propose.original,
            quote,
            receipt_key=self._candidate.offer.binding.receipt_key,
            asked=self._ask,
            shared=self._ask.cache.shared,
        )
        pieces = self._ask.work is not Work.CHAT
        return Echo(propose.original, receipt, self._parts.verifier, pieces=pieces)

    def _check_binding(self, talk: Talk, signed: SignedBinding) -> Binding:
        """The provider's binding, whose keys must be those of its offer."""
        offered = self._candidate.offer.binding
        binding = check_binding(signed, network=self._parts.network, now_ms=self._parts.clock.now_ms())
        if (binding.peer, binding.receipt_key, binding.wallet) != (offered.peer, offered.receipt_key, offered.wallet):
            raise PeerBrokeProtocol("the proposal's binding names other keys than the offer's.", peer=talk.peer)
        return binding

    # ---- call ----

    async def _accept(self, talk: Talk, signed: SignedQuote, spending: Spending, opening: Opening | None) -> None:
        """Accept, with the voucher for the input, and the task right behind it."""

        async def send(frame: VoucherFrame) -> None:
            self.prepaid = True
            await talk.say(Accept(quote=signed.digest(), opening=opening, voucher=frame))

        await spending.pay_up_to(signed.read().cost_in(), signed.digest(), send=send)
        for body in self._ask.bodies():
            await talk.say(body)
