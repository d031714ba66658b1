"""What POST /api/v1/inference takes: one shape for every kind of work, parsed once, within limits.

Here the request becomes what a purchase needs (`Prepared`); each kind's answer has the shape that its /v1 route gives.
A parameter that the kind of work cannot heed is refused by name. Knows no HTTP and no queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, Field

from inference.work.images import image_size
from market.caching import Caching
from market.errors import RequestInvalid
from market.task import MICRO, Mode, Privacy
from market.work import ImageRequest, LookRequest, SpeakRequest, TranscribeRequest, Work
from node.api.answering import Prepared
from node.api.audio import speech
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, ModelName, OctoOptions, micro
from node.api.embeddings import Embeddings
from node.api.images import ImagesForm
from node.api.octo_facts import to_json
from node.api.openai import Chat
from node.api.rerank import Rerank
from node.api.transcripts import TranscriptForm
from node.api.vision import LookForm
from node.node import Node

DAY_S = 24 * 60 * 60
_CHAT_OPTIONS = (
    "top_p", "top_k", "n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_format", "tools", "tool_choice", "parallel_tool_calls",
)  # fmt: skip
_HEED: Mapping[str, frozenset[Work]] = {
    "max_tokens": frozenset({Work.CHAT}),
    "temperature": frozenset({Work.CHAT, Work.TRANSCRIBE}),
    "seed": frozenset({Work.CHAT, Work.IMAGE}),
    **dict.fromkeys(_CHAT_OPTIONS, frozenset({Work.CHAT})),
}
"""Which kinds of work heed an option; what it may be, the kind says itself."""
_OPTIONS = frozenset(_HEED)

_Small = Annotated[str, Field(max_length=512)]


class InferenceBody(Shape):
    """`input` is looked at once the kind of work is known. `wait_s`: how long the answer may stay open for the result;
    `expires_in_s`: after so long a task that is not done is given up."""

    model: ModelName
    input: Any
    work: Work | None = None
    mode: Mode = Mode.ASYNC
    privacy: Annotated[Privacy | None, Field(validation_alias=AliasChoices("privacy", "privacy_level"))] = None
    cache: Caching | None = None
    max_tokens: Any = None
    temperature: Any = None
    seed: Any = None
    top_p: Any = None
    top_k: Any = None
    n: Any = None
    stop: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    stream: bool = False
    wait_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    expires_in_s: Annotated[int, Field(ge=1, le=30 * DAY_S)] = DAY_S
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], _Small], Field(max_length=16)] | None = None

    def options(self) -> dict[str, Any]:
        """Those that say something."""
        return {name: given for name in sorted(_OPTIONS) if (given := getattr(self, name)) is not None}

    def kept(self, work: Work, input: object) -> bytes:
        """What has to be known to buy it later: `parse_body` reads it again."""
        said = {"mode": str(self.mode), **_octo_words(self), **self.options()}
        return to_json({"model": self.model, "input": input, "work": str(work), **said})


class _Chat(Shape):
    messages: Any


class _Transcribe(Shape):
    """The audio came before, and apart."""

    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""
    prompt: Annotated[str, Field(max_length=4096)] = ""
    translate: bool = False
    words: bool = False


class _Speak(Shape):
    text: Annotated[str, Field(min_length=1, max_length=8192)]
    voice: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")] = ""
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0


class _Draw(Shape):
    prompt: Annotated[str, Field(min_length=1, max_length=4096)]
    negative: Annotated[str, Field(max_length=4096)] = ""
    width: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512
    height: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512
    steps: Annotated[int, Field(ge=1, le=150)] = 20
    guidance: Annotated[float, Field(ge=0, le=50)] = 7.5
    count: Annotated[int, Field(ge=1, le=10)] = 1


class _Look(Shape):
    """The image came before, and apart."""

    what: Literal["detect", "classify", "read"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.25


class _Warmth(Shape):
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0


class _Seed(Shape):
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None


S = TypeVar("S", bound=Shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request whose `body.work` is known. `blob` is its audio or image, `whose` is `node.api.guard.CALLER`."""

    node: Node
    clerk: Clerk
    body: InferenceBody
    blob: bytes
    whose: str


async def prepare(ask: Ask) -> Prepared:
    """Raises RequestInvalid or ModelUnknown."""
    asked, blob, work = ask.body, ask.blob, ask.body.work
    assert work is not None
    for name in asked.options():
        if work not in _HEED[name]:
            raise RequestInvalid(f"{name}: work of the kind {work} has no such parameter.", param=name)
    if bool(blob) != (work in (Work.TRANSCRIBE, Work.LOOK)):
        named = {Work.TRANSCRIBE: "audio", Work.LOOK: "image"}.get(work)
        why = f"it holds no {named}" if named else f"work of the kind {work} takes no file"
        raise RequestInvalid(f"input: {why}.", next_step="docs/api.md tells how to send one.", param="input")
    return await _KINDS[work](replace(ask, clerk=ask.clerk.for_mode(asked.mode)))


async def _chat(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    messages = _input(_Chat, asked, short="messages").messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": asked.model, "messages": messages, "octo": _octo_words(asked), **asked.options()}
    with _inside():
        return await Chat(clerk).prepare(to_json(body))


async def _embed(ask: Ask) -> Prepared:
    asked, given = ask.body, ask.body.input
    said = dict(given) if isinstance(given, dict) else {"texts": given}
    if not said.keys() <= {"texts", "dimensions"}:
        raise RequestInvalid("input: it should hold texts, and may hold dimensions.", param="input")
    body = {"model": asked.model, "octo": _octo_words(asked), "input": said.pop("texts", None), **said}
    with _inside({"input": "texts"}):
        return await Embeddings(ask.clerk, ask.node).prepare(to_json(body), ask.whose)


async def _rerank(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    given = asked.input if isinstance(asked.input, dict) else {}
    if not given or given.keys() & {"model", "octo"}:
        raise RequestInvalid("input: it should be an object with query and documents.", param="input")
    with _inside():
        return await Rerank(clerk).prepare(to_json({**given, "model": asked.model, "octo": _octo_words(asked)}))


async def _transcribe(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    said = _input(_Transcribe, asked)
    warmth = parse_body(_Warmth, to_json({"temperature": asked.temperature or 0})).temperature
    request = TranscribeRequest(
        language=said.language,
        prompt=said.prompt,
        temperature_micro=micro(warmth),
        translate=said.translate,
        words=said.words,
    )
    task: Literal["transcribe", "translate"] = "translate" if said.translate else "transcribe"
    form = TranscriptForm("verbose_json", task=task, temperature=warmth, words=said.words, segments=True)
    order = clerk.work_order(asked.model, request, _octo(asked), blob=ask.blob, param="input")
    return Prepared(orders=[order], form=form)


async def _speak(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    said = _input(_Speak, asked, short="text")
    speed = max(MICRO // 4, min(4 * MICRO, micro(said.speed)))
    request = SpeakRequest(text=said.text, voice=said.voice, speed_micro=speed)
    return await speech(clerk, asked.model, request, _octo(asked), kind="wav", param="input")


async def _draw(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    said = _input(_Draw, asked, short="prompt")
    seed = parse_body(_Seed, to_json({"seed": asked.seed})).seed
    request = ImageRequest(
        prompt=said.prompt,
        negative=said.negative,
        width=said.width,
        height=said.height,
        steps=said.steps,
        guidance_micro=micro(said.guidance),
        count=said.count,
        seed=int.from_bytes(clerk.random(6), "big") if seed is None else seed,
    )
    order = clerk.work_order(asked.model, request, _octo(asked), param="input", seeded=seed is not None)
    form = ImagesForm(request, created=clerk.now(), size=f"{said.width}x{said.height}")
    return Prepared(orders=[order], form=form)


async def _look(ask: Ask) -> Prepared:
    asked, clerk = ask.body, ask.clerk
    said = _input(_Look, asked)
    size = image_size(ask.blob)  # judges what is too large, or would be once it is unpacked
    request = LookRequest(what=said.what, threshold_micro=micro(said.threshold))
    order = clerk.work_order(asked.model, request, _octo(asked), blob=ask.blob, param="input")
    return Prepared(orders=[order], form=LookForm(request, model=asked.model, size=size))


def _input(shape: type[S], asked: InferenceBody, *, short: str = "") -> S:
    """`short`: what a text or a list alone stands for."""
    given = asked.input
    if short and isinstance(given, str | list):
        given = {short: given}
    with _inside():
        return parse_body(shape, to_json({} if given is None else given))


@contextmanager
def _inside(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """What is wrong stands in `input`, unless it is an option beside it; `names` are what is called otherwise there."""
    try:
        yield
    except RequestInvalid as error:
        param = error.param or ""
        for theirs, ours in (names or {}).items():
            param = param.replace(theirs, ours, 1)
        if param.split(".")[0].split("[")[0] in {*_OPTIONS, "model"}:
            raise
        where = f"input.{param}" if param else "input"
        message = error.message.removeprefix(f"{error.param}: ")
        raise RequestInvalid(f"{where}: {message}", next_step=error.next_step, param=where) from None


def _octo(asked: InferenceBody) -> OctoOptions:
    return OctoOptions(privacy=asked.privacy, cache=asked.cache)


def _octo_words(asked: InferenceBody) -> dict[str, str]:
    terms = {"privacy": asked.privacy, "cache": asked.cache}
    return {name: str(said) for name, said in terms.items() if said is not None}


_KINDS: Mapping[Work, Callable[[Ask], Awaitable[Prepared]]] = {
    Work.CHAT: _chat,
    Work.EMBED: _embed,
    Work.RERANK: _rerank,
    Work.TRANSCRIBE: _transcribe,
    Work.SPEAK: _speak,
    Work.IMAGE: _draw,
    Work.LOOK: _look,
}
