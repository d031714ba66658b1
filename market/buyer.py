"""The buying story, in order: choose, negotiate, call, stream, verify, pay.

`Buyer.buy` hands out a Purchase to read from; the story behind it runs as a task of the buyer's own, so
that a reader who hangs up does not leave the provider unpaid. One candidate's part is `market.deal`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from market.answer_memory import AnswerMemory
from market.asking import Ask, TextAsk, WorkAsk
from market.caching import Caching, settled, text_content, text_is_settled, work_content, work_is_settled
from market.deal import Deal
from market.errors import NoProvider, OctoError, PeerError, PeerFailed, PromptTooLong, RequestInvalid, WorkImpossible
from market.identity import PeerId
from market.message import Forget, Forgotten
from market.money import format_octo
from market.offer import CheckedOffer
from market.parts import DealParts
from market.ports import Meters, Network, Tokenizers
from market.reception import Outcome
from market.routing import Choice, Needs, Policy, choose
from market.taking import Delta, Part, Shown
from market.talk import Talk
from market.task import ChatMessage, ChatTask, Mode, Privacy, Sampling, TaskId, may_fit
from market.tools import Tool
from market.values import value
from market.work import WorkRequest, WorkTask, encode_request, work_of

log = structlog.get_logger()

FORGETTING = 16
"""So many providers are asked at once to forget."""

SILENT_LIMIT = 2.5
"""Three prepayments kept lately: what standing remembers of them fades."""


Vet = Callable[[CheckedOffer], str | None]
"""Why a provider may see public prompts only; None if nothing speaks against it."""


def all_vetted(_offer: CheckedOffer) -> None:
    """Where there is no stake to look at, a checked binding has to do."""


@value
class Order:
    """A text that the user asks for: an answer to `messages`, or the continuation of `text` (see `ChatTask`).
    `max_tokens` None means: as many as fit, up to the buyer's own default. `cache` None means: as the buyer's terms
    say; `seeded`: the user named the seed, so that the answer may be one that was given before; `whose` tells the
    buyer's users apart, who find nothing of one another's unless they share."""

    model: str
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Tool, ...] = ()
    text: str = ""
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str = ""
    logprobs: int | None = None
    mode: Mode = Mode.REALTIME
    privacy: Privacy = Privacy.SHARED
    cache: Caching | None = None
    seeded: bool = False
    whose: str = ""


@value
class WorkOrder:
    """Work other than text: what `request` says, with a blob of audio or an image where it wants one. `cache`,
    `seeded` and `whose` as in an Order."""

    model: str
    request: WorkRequest
    blob: bytes = b""
    mode: Mode = Mode.REALTIME
    privacy: Privacy = Privacy.SHARED
    cache: Caching | None = None
    seeded: bool = False
    whose: str = ""


@value
class BuyerTerms:
    """`attempts` is how many providers are tried before the first token; `own_peers` may see private prompts.
    `caching` is what orders that say nothing want of providers' caches."""

    attempts: int = 3
    default_max_tokens: int = 1024
    close_timeout_s: float = 5.0
    own_peers: frozenset[str] = frozenset()
    caching: Caching = Caching.OFF


class Purchase:
    """An answer in the making. Iterate over its deltas, or over its parts; then `outcome` is set. `on_progress` hears
    how far the provider says that it is, in percent."""

    def __init__(self, order: Order | WorkOrder) -> None:
        self.order = order
        self.outcome: Outcome | None = None
        self.cancelled = asyncio.Event()
        self.on_progress: Callable[[int], None] = lambda _percent: None
        self._queue: asyncio.Queue[Shown | OctoError | None] = asyncio.Queue()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Of an Order. Raises the OctoError that ended the answer, if one did."""
        async for item in self._shown():
            assert isinstance(item, Delta)
            yield item

    async def parts(self) -> AsyncIterator[Part]:
        """Of a WorkOrder. Raises the OctoError that ended the work, if one did."""
        async for item in self._shown():
            assert isinstance(item, Part)
            yield item

    async def _shown(self) -> AsyncIterator[Shown]:
        while (item := await self._queue.get()) is not None:
            if isinstance(item, OctoError):
                raise item
            yield item

    def cancel(self) -> None:
        """Nobody reads on: stop the provider, settle what was delivered."""
        self.cancelled.set()

    def note_progress(self, percent: int) -> None:
        self.on_progress(percent)

    def put(self, item: Shown | OctoError | None) -> None:
        self._queue.put_nowait(item)  # bounded by max_tokens, so a slow reader needs no other bound


class Buyer:
    def __init__(
        self,
        *,
        parts: DealParts,
        network: Network,
        offers: Callable[[], Sequence[CheckedOffer]],
        tokenizers: Tokenizers,
        meters: Meters,
        policy: Policy,
        terms: BuyerTerms,
        vet: Vet = all_vetted,
        cache_salt: Callable[[], bytes] | None = None,
    ) -> None:
        """`cache_salt` is 32 secret bytes, the same each time: under another salt, what providers keep is not found.
        Without it no answer is told twice."""
        self._parts = parts
        self._network = network
        self._offers = offers
        self._tokenizers = tokenizers
        self._meters = meters
        self._policy = policy
        self._terms = terms
        self._vet = vet
        self.memory = AnswerMemory(cache_salt)
        self._running: set[asyncio.Task[None]] = set()
        self._silences: Counter[str] = Counter()

    @asynccontextmanager
    async def buy(self, order: Order | WorkOrder) -> AsyncIterator[Purchase]:
        """Start buying; leaving the block before the end cancels, and settles in the background."""
        purchase = Purchase(order)
        story = asyncio.create_task(self._tell(purchase))
        self._running.add(story)
        story.add_done_callback(self._running.discard)
        try:
            yield purchase
        finally:
            if not story.done():
                purchase.cancel()

    async def aclose(self) -> None:
        """Cancel what runs and give it a moment to settle."""
        running = list(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=self._terms.close_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _tell(self, purchase: Purchase) -> None:
        try:
            purchase.outcome = await self._story(purchase)
        except OctoError as error:
            purchase.put(error)
        except Exception:
            log.exception("purchase_failed")
            purchase.put(OctoError("this node made a mistake.", next_step="Its log says more."))
        finally:
            purchase.put(None)

    async def _story(self, purchase: Purchase) -> Outcome:
        order = purchase.order
        ask = await (self._ask_for_text(order) if isinstance(order, Order) else self._ask_for_work(order))
        task_id = TaskId(self._parts.random(32))
        choice = self.memory.prefer(ask, self._choose(task_id, ask))
        failures: dict[str, str] = {}
        blamed: list[RequestInvalid] = []
        for candidate in choice.ranked[: self._terms.attempts]:
            silences = self._silences[candidate.peer]
            deal = Deal(
                parts=self._parts,
                candidate=candidate,
                task_id=task_id,
                ask=ask,
                cancelled=purchase.cancelled,
                emit=purchase.put,
                on_progress=purchase.note_progress,
            )
            try:
                conversation = await self._network.open_conversation(PeerId(candidate.peer), task_id)
                outcome = await deal.story(conversation)
            except PeerError as error:
                log.info("provider_failed", task=task_id.hex(), peer=candidate.peer, why=str(error))
                if purchase.cancelled.is_set():
                    raise  # we left: what was not finished is not the provider's failure
                self._note_failure(deal, candidate.peer, silences)
                if deal.started:
                    error.message = f"the provider failed in the middle of the answer: {error.message}"
                    error.next_step = error.next_step or "What was receipted is paid, nothing more. Ask again."
                    raise
                failures[candidate.peer] = str(error)
                blamed += _asked_wrongly(error)
            else:
                self.memory.note(ask, outcome)
                return outcome.explained(choice.because, _not_chosen(choice, candidate.peer, failures), failures)
        if blamed and len(blamed) == len(failures):
            raise blamed[0]  # one alone may be wrong, or lie; asking all of them again would end the same way
        raise NoProvider(
            "every provider that was tried failed.",
            reasons={**choice.refused, **failures},
            next_step="Try again in a moment; `octo-node offers` shows who is there.",
        )

    async def _ask_for_text(self, order: Order) -> Ask:
        tokenizer = await self._tokenizers.tokenizer(order.model)
        context = max(self._contexts(order.model), default=0)
        if context and not may_fit(order.messages, order.text, context, order.tools):
            raise PromptTooLong(
                f"the prompt is too long for the largest context on offer, {context} tokens.",
                next_step="Shorten the messages.",
                param="messages",
            )
        prompt = tokenizer.render(order.messages, order.tools) if order.messages else tokenizer.encode(order.text)
        task = self._task(order, len(prompt))
        wanted = order.cache or self._terms.caching
        if not self.memory.may_ask(wanted) or not text_is_settled(order.sampling, order.privacy, seeded=order.seeded):
            return TextAsk(task, prompt, tokenizer)
        task = replace(task, sampling=settled(task.sampling))
        return TextAsk(task, prompt, tokenizer, self.memory.key(text_content(task, prompt), wanted, order.whose))

    async def _ask_for_work(self, order: WorkOrder) -> Ask:
        meter = await self._meters.meter(order.model, work_of(order.request))
        units_in = meter.units_in(order.request, order.blob)  # first: it judges the input
        task = WorkTask(
            model=order.model,
            request=encode_request(order.request),
            blob_bytes=len(order.blob),
            max_units=meter.units_out_limit(order.request, order.blob),
            mode=order.mode,
            privacy=order.privacy,
            salt=self._parts.random(32),
        )
        wanted, cache = order.cache or self._terms.caching, None
        if self.memory.may_ask(wanted) and work_is_settled(order.request, order.privacy, seeded=order.seeded):
            cache = self.memory.key(work_content(task, order.blob), wanted, order.whose)
        return WorkAsk(task, order.request, blob=order.blob, units_in=units_in, meter=meter, cache=cache)

    async def forget_answers(self) -> Mapping[str, int | str]:
        """Ask every provider that may keep answers of ours to throw them away: how many each had, or why it did not.

        Whoever cannot be reached keeps them until they are too old; under a new salt they are never asked for again.
        """
        keeping = {o.offer.peer for o in self._offers() if any(model.keeps_answers for model in o.offer.models)}
        peers = sorted(keeping | self.memory.told_us())
        self.memory.clear()
        few = asyncio.Semaphore(FORGETTING)
        ends = await asyncio.gather(*(self._ask_to_forget(PeerId(peer), few) for peer in peers))
        return dict(zip(peers, ends, strict=True))

    async def _ask_to_forget(self, peer: PeerId, few: asyncio.Semaphore) -> int | str:
        async with few:
            return await self._forgotten_by(peer)

    async def _forgotten_by(self, peer: PeerId) -> int | str:
        try:
            conversation = await self._network.open_conversation(peer, TaskId(self._parts.random(32)))
            try:
                talk = Talk(conversation, "buyer")
                await talk.say(Forget())
                return (await talk.hear_a(Forgotten, self._parts.terms.propose_timeout_s)).answers
            finally:
                await conversation.aclose()
        except OctoError as error:
            return str(error)

    def _contexts(self, model: str) -> list[int]:
        """The context of every offer of the model, in tokens."""
        return [m.context for checked in self._offers() for m in checked.offer.models if m.model == model]

    def _task(self, order: Order, tokens_in: int) -> ChatTask:
        contexts = self._contexts(order.model)
        room = max(contexts, default=0) - tokens_in
        if contexts and room < 1:
            raise PromptTooLong(
                f"the prompt is {tokens_in} tokens long, the largest context on offer is {max(contexts)}.",
                next_step="Shorten the messages.",
                param="messages",
            )
        if contexts and order.max_tokens is not None and order.max_tokens > room:
            raise PromptTooLong(
                f"{tokens_in} prompt tokens and max_tokens {order.max_tokens} do not fit in the largest context on"
                f" offer, {max(contexts)}.",
                next_step=f"Ask for at most {room} tokens.",
                param="max_tokens",
            )
        return ChatTask(
            model=order.model,
            messages=order.messages,
            tools=order.tools,
            text=order.text,
            grammar=order.grammar,
            logprobs=order.logprobs,
            sampling=order.sampling,
            max_tokens=order.max_tokens or max(1, min(room, self._terms.default_max_tokens)),
            stop=order.stop,
            mode=order.mode,
            privacy=order.privacy,
            salt=self._parts.random(32),
        )

    def _choose(self, task_id: TaskId, ask: Ask) -> Choice:
        offers = self._offers()
        needs = Needs(
            task=task_id,
            work=ask.work,
            features=ask.features,
            model=ask.model,
            tokens_in=ask.tokens_in,
            max_tokens=ask.max_tokens,
            mode=ask.mode,
            privacy=ask.privacy,
            rail=self._parts.rail,
            own=self._terms.own_peers | {self._network.peer},
            unvetted={o.offer.peer: why for o in offers if (why := self._vet(o)) is not None},
        )
        standing = {checked.offer.peer: self._parts.standing.of(PeerId(checked.offer.peer)) for checked in offers}
        silent = {
            peer: f"took {round(facts['silent'])} prepayments and stayed silent"
            for peer, facts in standing.items()
            if facts.get("silent", 0) >= SILENT_LIMIT
        }
        choice = choose(needs, [o for o in offers if o.offer.peer not in silent], standing, self._policy)
        refused = {**choice.refused, **silent}
        if not choice.ranked:
            raise NoProvider(
                "no provider can serve this task.",
                reasons=refused,
                next_step="`octo-node offers` shows who is there and what they serve.",
            )
        return Choice(ranked=choice.ranked, refused=refused, because=choice.because)

    def _note_failure(self, deal: Deal, peer: str, silences: int) -> None:
        """`silences`: how many there were when the deal began. A provider that dies leaves all that it had just
        accepted unanswered: that is one silence."""
        silent = float(deal.prepaid and not deal.started and silences == self._silences[peer])
        self._silences[peer] += int(silent)
        self._parts.standing.note(PeerId(peer), failure=1.0, silent=silent)


def _asked_wrongly(error: PeerError) -> list[RequestInvalid]:
    """What a provider's engine found wrong with the request itself; nothing for whatever else failed."""
    if isinstance(error, PeerFailed) and error.remote_code == WorkImpossible.code:
        return [RequestInvalid(f"no provider can do what was asked: {error.message}")]
    return []


def _not_chosen(choice: Choice, chosen: str, failures: Mapping[str, str]) -> dict[str, str]:
    """Why each other peer did not get the task; those that were tried and failed are told apart."""
    others = {
        candidate.peer: f"ranked {place} of {len(choice.ranked)}: at most {format_octo(candidate.max_cost)}"
        for place, candidate in enumerate(choice.ranked, start=1)
        if candidate.peer != chosen and candidate.peer not in failures
    }
    return {**choice.refused, **others}
