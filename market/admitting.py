"""An accepted task becomes work for the engine, once it is the one that was quoted. Second part of the selling story.

Nothing that the client sent with the call is believed here: prompt, input and limits are counted and hashed anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from market.caching import text_content, work_content
from market.errors import RequestInvalid
from market.goods import Goods, PieceGoods, TokenGoods
from market.kept import Kept
from market.message import CallForProposals
from market.parts import Served, ServedWork, Serving
from market.ports import Job, WorkJob
from market.quote import Quote
from market.retelling import KeptGoods, RecordedGoods, items_of
from market.task import ChatTask, Privacy, TaskId, may_fit, prompt_digest
from market.values import value
from market.work import NO_SAMPLING, WorkTask, decode_request, input_digest, work_of

HearBlob = Callable[[int], Awaitable[bytes]]


@value
class Turn:
    """When it is whose turn: see `market.ports.Job`."""

    priority: int
    weight: int
    deadline_s: float


@value
class Admitted:
    """`content` is the digest of what was asked (`market.caching`); `recorded` is set where the answer may be kept."""

    goods: Goods
    content: bytes
    recorded: RecordedGoods | None


async def admit(
    task: ChatTask | WorkTask,
    *,
    call: CallForProposals,
    quote: Quote,
    served: Serving,
    turn: Turn,
    kept: Kept | None,
    hear_blob: HearBlob,
) -> Admitted:
    """Raises RequestInvalid for a task that is not the one quoted, or that does not ask what `kept` answers."""
    if (task.model, task.mode, task.privacy) != (quote.model, call.mode, call.privacy):
        raise RequestInvalid("the task is not the one that was quoted.")
    if isinstance(served, Served):
        goods, content = _text(task, quote, served, turn)
    else:
        goods, content = await _work(task, quote, served, turn, hear_blob)
    if kept is not None:
        if kept.content != content:
            raise RequestInvalid("the answer that was quoted is to another request.", next_step="Ask without the key.")
        items = items_of(kept, served.tokenizer if isinstance(served, Served) else None)
        return Admitted(goods=KeptGoods(goods, items or (), kept.finish), content=content, recorded=None)
    if call.cache is None:
        return Admitted(goods=goods, content=content, recorded=None)
    recorded = RecordedGoods(goods)
    return Admitted(goods=recorded, content=content, recorded=recorded)


def _text(task: ChatTask | WorkTask, quote: Quote, served: Served, turn: Turn) -> tuple[Goods, bytes]:
    if not isinstance(task, ChatTask) or task.max_tokens != quote.max_tokens:
        raise RequestInvalid("the task is not the one that was quoted.")
    if task.sampling_digest() != quote.sampling:
        raise RequestInvalid("the task's sampling is not the one that was quoted.")
    if not may_fit(task.messages, task.text, served.engine.info.context, task.tools):
        raise RequestInvalid("the prompt is longer than any that fits.")
    tokenizer = served.tokenizer
    prompt = tokenizer.render(task.messages, task.tools) if task.messages else tokenizer.encode(task.text)
    if len(prompt) != quote.tokens_in or prompt_digest(task.salt, prompt) != quote.prompt:
        raise RequestInvalid("the prompt is not the one that was quoted.")
    job = Job(
        task=TaskId(quote.task),
        prompt=prompt,
        sampling=task.sampling,
        max_tokens=task.max_tokens,
        end_tokens=tokenizer.end_tokens,
        priority=turn.priority,
        client=quote.client,
        weight=turn.weight,
        deadline_s=turn.deadline_s,
        scope="public" if task.privacy is Privacy.PUBLIC else quote.client,
        logprobs=task.logprobs,
        grammar=task.grammar,
    )
    return TokenGoods(served.engine, job, tokenizer, task.stop), text_content(task, prompt)


async def _work(
    task: ChatTask | WorkTask, quote: Quote, served: ServedWork, turn: Turn, hear_blob: HearBlob
) -> tuple[Goods, bytes]:
    if not isinstance(task, WorkTask) or task.max_units != quote.max_tokens:
        raise RequestInvalid("the task is not the one that was quoted.")
    if quote.sampling != NO_SAMPLING:
        raise RequestInvalid("the task's sampling is not the one that was quoted.")
    blob = await hear_blob(task.blob_bytes)
    if input_digest(task.salt, task.request, blob) != quote.prompt:
        raise RequestInvalid("the input is not the one that was quoted.")
    request = decode_request(task.request)
    if work_of(request) not in served.model.works:
        raise RequestInvalid(f"this provider does not {work_of(request)} with that model.")
    if served.meter.units_in(request, blob) != quote.tokens_in:
        raise RequestInvalid(f"the input was quoted as {quote.tokens_in} units, and counts for another number.")
    job = WorkJob(
        task=TaskId(quote.task),
        request=request,
        blob=blob,
        max_units=quote.max_tokens,
        priority=turn.priority,
        client=quote.client,
        weight=turn.weight,
        deadline_s=turn.deadline_s,
    )
    return PieceGoods(served.engine, job, served.meter), work_content(task, blob)
