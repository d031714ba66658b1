"""An engine that is somebody's OpenAI-compatible server: Ollama, llama-server, trtllm-serve, SGLang, LiteLLM, resold
quota; and, speaking token ids, the vLLM that `inference.engines.vllm` starts.

Lives here: the port, who waits, how long the server may be silent, when to ask again. Knows no event's fields.

What a buyer may conclude from `EngineInfo.name` in a receipt:
- `openai_http/attached/<the server's own word>`: this provider signed that this text came for that prompt and price.
  Nothing about the weights: neither which model answered nor whether it was one. The counts are of text, which the
  buyer has: they are right if the units are canonical (`plain_tokenizer.is_canonical`), and no trust is needed for it.
  No replay proves anything, so such receipts are audited for price and speed only.
- `openai_http/vllm/<version>/<device>/<dtype>`: this provider ran these weights in vLLM and says which tokens came.
  A replay within the tolerance of other engine classes applies; bits differ with batching (facts: 1 of 16 sequences).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import structlog

from inference.engines.openai_client import Key, Upstream, UpstreamFailed, UpstreamModel, open_upstream, parse_base
from inference.engines.openai_dialect import Chat, Dialect, Finish, Heard, Reader, check_job, limit_bytes
from inference.engines.places import Places
from market.errors import EngineFailed, NodeMisconfigured
from market.ports import EngineInfo, EngineLoad, Generated, Job, TokenLogprobs
from market.values import value

SLOTS_LIMIT: Final = 1024
UNTOLD_CONTEXT: Final = 2048
"""Where neither the server nor its owner says more: Ollama's default is 4,096 of its tokens."""
_NAMES_SHOWN: Final = 8
_TRIES: Final = 3
_WAIT_S: Final = 10.0
"""A server that asks to be left alone for longer is believed: another provider is faster."""
_CLOUD: Final = ("-cloud", ":cloud")
"""How Ollama names models that it does not run itself."""
_SHOWN: Final = re.compile(r"[\x21-\x7e]{1,80}")

T = TypeVar("T")

log = structlog.get_logger()


@value
class Patience:
    """`first_s` from the request to the first token, `silence_s` between two: a server that fetches a model from disk
    is slow once. Comments and empty deltas do not count as tokens. `pause_s` before asking again, then twice that."""

    first_s: float = 120.0
    silence_s: float = 30.0
    pause_s: float = 0.25
    list_s: float = 15.0


class OpenAiEngine:
    """A `market.ports.Engine`. `leaves_host`: prompts go to another machine, so offers may take `public` tasks only;
    a loopback server may take `shared` ones too. `isolation` is the word the Offer publishes; a server that somebody
    else started has none that we know of."""

    def __init__(
        self,
        upstream: Upstream,
        dialect: Dialect,
        info: EngineInfo,
        *,
        leaves_host: bool,
        patience: Patience,
        isolation: str = "none",
        unavailable: Callable[[], EngineFailed | None] = lambda: None,
        on_silence: Callable[[], None] = lambda: None,
        pids: Callable[[], tuple[int, ...]] = lambda: (),
    ) -> None:
        self._upstream = upstream
        self._dialect = dialect
        self._patience = patience
        self._places = Places(info.slots)
        self._unavailable = unavailable
        self._on_silence = on_silence
        self._pids = pids
        self.info = info
        self.leaves_host = leaves_host
        self.isolation = isolation

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Of a server that we started, its first process; the others are below it."""
        return self._pids()

    @property
    def down(self) -> bool:
        """Known to serve nobody now: who accepts a task would take money for nothing."""
        return self._unavailable() is not None

    def load(self) -> EngineLoad:
        return self._places.load()

    async def check(self) -> None:
        """Whether the server answers now, and does its work. Raises EngineFailed."""
        if (error := self._unavailable()) is not None:
            raise error
        await self._upstream.models(self._patience.list_s)

    async def generate(self, job: Job) -> AsyncGenerator[Generated]:
        """See the port. Raises EngineFailed for all that the server does wrong. It is asked again only as long as
        nothing of its answer was given out."""
        check_job(job, self.info)
        body = self._dialect.body(job)
        async with self._places.place(job):
            for attempt in range(1, _TRIES + 1):
                if (error := self._unavailable()) is not None:
                    raise error
                started = False
                answer = self._answer(job, body)
                try:
                    async for generated in answer:
                        started = True
                        yield generated
                except UpstreamFailed as failed:
                    pause_s = max(failed.wait_s, self._patience.pause_s * 2 ** (attempt - 1))
                    if started or not failed.passing or attempt == _TRIES or pause_s > _WAIT_S:
                        raise
                    log.info("upstream_asked_again", engine=self.info.name, why=failed.message, attempt=attempt)
                else:
                    return
                finally:
                    await answer.aclose()
                await asyncio.sleep(pause_s)

    async def _answer(self, job: Job, body: dict[str, object]) -> AsyncGenerator[Generated]:
        reader = self._dialect.reader(job)
        loop = asyncio.get_running_loop()
        allowed_s = self._patience.first_s
        until = loop.time() + allowed_s
        async with AsyncExitStack() as stack:
            stream = self._upstream.stream(self._dialect.path, body, limit_bytes=limit_bytes(job))
            events = await self._in_time(stack.enter_async_context(stream), until)
            while True:
                heard, error = _hear(await self._in_time(events.take(), until), reader)
                if heard.generated.tokens or heard.generated.finish:
                    yield heard.generated
                    allowed_s = self._patience.silence_s
                if error is not None:
                    raise error
                if heard.generated.finish:
                    await events.drain()
                    return
                if heard.alive:
                    until = loop.time() + allowed_s  # from now: the time that our reader took is not the server's

    async def _in_time(self, work: Awaitable[T], until: float) -> T:
        try:
            async with asyncio.timeout_at(until):
                return await work
        except TimeoutError:
            self._on_silence()
            raise UpstreamFailed(
                "the server behind this engine fell silent.",
                next_step="Look at that server's log; if it is merely slow, allow it more time in the settings.",
            ) from None


def _hear(events: list[Any] | None, reader: Reader) -> tuple[Heard, UpstreamFailed | None]:
    """What events that came together say, as one; and what was wrong with the last one: what came before it counts."""
    if events is None:
        return Heard(generated=reader.end()), None
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    finish: Finish = ""
    alive, error = False, None
    for event in events:
        try:
            heard = reader.hear(event)
        except UpstreamFailed as failed:
            error = failed
            break
        tokens += heard.generated.tokens
        logprobs += heard.generated.logprobs
        finish, alive = heard.generated.finish, alive or heard.alive
        if finish:
            break
    generated = Generated(tokens=tuple(tokens), finish=finish, logprobs=tuple(logprobs))
    return Heard(generated=generated, alive=alive), error


@asynccontextmanager
async def open_openai_engine(
    url: str,
    *,
    model: str,
    key: Key | None = None,
    slots: int = 4,
    context: int = 0,
    forwards: bool = False,
    patience: Patience | None = None,
) -> AsyncIterator[OpenAiEngine]:
    """Attach to a server that runs. `url` is the base of its API, `model` the name under which it knows the model.

    `key` is called for each request. `slots` jobs are asked for at once. `context` is in units of three bytes, prompt
    and answer together; 0 takes the server's word (in its tokens, which have three bytes or more in most texts), or
    2,048. `forwards`: the server itself sends prompts to another machine (resold quota). Messages come as
    `inference.models.plain_tokenizer` renders them.

    Raises NodeMisconfigured for a bad address or number, a key that would travel in the clear, or a model that the
    server does not have; EngineFailed if it does not answer.
    """
    if not 1 <= slots <= SLOTS_LIMIT or not 0 <= context <= 1 << 24:
        raise NodeMisconfigured(
            f"the engine has {slots} slots and a context of {context}.",
            next_step=f"Choose 1 to {SLOTS_LIMIT} slots, and a context of at most {1 << 24} or 0 for the server's own.",
        )
    patience = patience or Patience()
    base, here = parse_base(url, with_key=key is not None)
    async with open_upstream(base, key or (lambda: None), connections=slots + 2) as upstream:
        found = _choose(await upstream.models(patience.list_s), model)
        told = [number for number in (context, found.context) if number]
        info = EngineInfo(
            name=f"openai_http/attached/{found.owner or 'unknown'}",
            context=min(told, default=UNTOLD_CONTEXT),
            slots=slots,
            features=Chat.features,
        )
        leaves_host = forwards or not here or found.name.endswith(_CLOUD)
        log.info("engine_attached", engine=info.name, context=info.context, slots=slots, leaves_host=leaves_host)
        yield OpenAiEngine(upstream, Chat(found.name), info, leaves_host=leaves_host, patience=patience)


def _choose(models: Sequence[UpstreamModel], name: str) -> UpstreamModel:
    """The model of that name; Ollama adds `:latest` to names without a tag."""
    for wanted in (name, f"{name}:latest"):
        for found in models:
            if found.name == wanted:
                return found
    shown = [found.name for found in models if _SHOWN.fullmatch(found.name)][:_NAMES_SHOWN]
    raise NodeMisconfigured(
        f"the server behind this engine has no model {name[:80]!r}.",
        next_step=f"It has {', '.join(shown)}." if shown else "It has none at all: load one there first.",
    )
