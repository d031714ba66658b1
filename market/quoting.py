"""What a seller answers to a call for proposals: whether it can, and for how much. Reads its books, writes none."""

from __future__ import annotations

from market.errors import EngineFailed, RequestInvalid
from market.identity import Binding
from market.kept import Kept
from market.message import CallForProposals, Counter
from market.parts import SellerParts, Served, Serving
from market.quote import Quote
from market.task import TaskId
from market.work import ONE_BY_ONE

Prices = tuple[int, int]
"""Per million tokens in and out."""


class Quoting:
    """One call, and the model that serves it. Making it raises RequestInvalid for what is not served here."""

    def __init__(self, seller: SellerParts, call: CallForProposals, *, task: TaskId, client: Binding) -> None:
        self._seller = seller
        self._call = call
        self._task = task
        self._client = client
        self._is_own = client.peer == seller.peer  # this node's own gateway pays nothing to itself
        self.served = self._serving()

    def _serving(self) -> Serving:
        seller, call = self._seller, self._call
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
        if room > served.engine.info.context and call.work not in ONE_BY_ONE:
            raise RequestInvalid(f"the context here is {served.engine.info.context} tokens.")
        return served

    def check_room(self, kept: Kept | None) -> None:
        """Raises EngineFailed when too many wait in this mode, unless the engine is not needed; PaymentRefused when
        this client, or all together, owe too much."""
        seller, mode = self._seller, self._call.mode
        if kept is None and seller.line.waiting(self._call.model, mode) >= seller.terms.waits[mode].limit:
            raise EngineFailed(f"too many {mode} tasks are waiting here.", next_step="Try again soon.")
        if not self._is_own:
            quote = self.quote(kept, self.asked(kept), final=False)
            tick = quote.cost_of(seller.terms.tick_tokens) - quote.cost_in()
            seller.till.check_credit(self._client.wallet, tick)

    def asked(self, kept: Kept | None) -> Prices:
        """Our own price, as it was offered for this mode."""
        return self.served.model.prices(self._call.mode, cached=kept is not None)

    def answer(self, counter: Counter, kept: Kept | None) -> Prices:
        """Their price if it is not below our floor, else our own."""
        floor = self._seller.terms.floor_percent
        price_in, price_out = self.asked(kept)
        if counter.price_in * 100 >= price_in * floor and counter.price_out * 100 >= price_out * floor:
            return min(counter.price_in, price_in), min(counter.price_out, price_out)
        return price_in, price_out

    def quote(self, kept: Kept | None, prices: Prices, *, final: bool) -> Quote:
        seller, call = self._seller, self._call
        return Quote(
            network=seller.network,
            task=self._task,
            provider=seller.peer,
            client=self._client.peer,
            model=call.model,
            weights=self.served.model.weights,
            engine=self.served.engine.info.name,
            rail=seller.rail,
            prompt=call.prompt,
            sampling=call.sampling,
            tokens_in=call.tokens_in,
            max_tokens=call.max_tokens,
            price_in=0 if self._is_own else prices[0],
            price_out=0 if self._is_own else prices[1],
            tick_tokens=seller.terms.tick_tokens,
            expires_ms=seller.clock.now_ms() + int(seller.terms.quote_ttl_s * 1000),
            final=final,
            mode=call.mode,
            cached=kept.original.receipt.cid() if kept else "",
        )
