"""What every route needs to understand a request: names of models, defaults, chance, time. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from market.buyer import WorkOrder
from market.caching import Caching
from market.errors import EncodingInvalid, ModelUnknown, NoProvider, RequestInvalid
from market.ports import Meter, Tokenizer
from market.task import MICRO, Mode, Privacy
from market.work import REQUEST_LIMIT_BYTES, Work, WorkRequest, decode_request, encode_request
from node.api.bodies import Shape
from node.node import Node

MEANS_NOTHING: tuple[object, ...] = (None, False, "", [], {}, "auto", "none", {"type": "text"}, ["text"])


def unsupported(what: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported", "{what} not supported yet by this node", {"what": what})


def _refuse(raw: object) -> None:
    """Values that ask for nothing pass: clients send `functions: []` and `store: null` as a matter of course."""
    if raw not in MEANS_NOTHING:
        raise unsupported("it is")


Ignored = Annotated[Any, AfterValidator(lambda _: None)]
Refused = Annotated[Any, AfterValidator(_refuse)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class OctoOptions(Shape):
    """What OpenAI's API has no word for, as `extra_body={"octo": {…}}`."""

    privacy: Privacy | None = None
    mode: Mode | None = None
    cache: Caching | None = None


class Terms(TypedDict):
    """Those of an order that are no part of the work itself."""

    mode: Mode
    privacy: Privacy
    cache: Caching | None


class Clerk:
    """`privacy` and `mode` hold for requests that name none; `random` gives seeds and ids; `now_s` is Unix time."""

    def __init__(
        self,
        node: Node,
        *,
        privacy: Privacy,
        random: Callable[[int], bytes],
        now_s: Callable[[], float],
        mode: Mode = Mode.REALTIME,
    ) -> None:
        self._node = node
        self._privacy = privacy
        self._mode = mode
        self.random = random
        self._now_s = now_s

    def for_mode(self, mode: Mode) -> Clerk:
        return Clerk(self._node, privacy=self._privacy, random=self.random, now_s=self._now_s, mode=mode)

    def resolve(self, name: str) -> str:
        """The manifest CID of a model's name; raises ModelUnknown, and NoProvider while this node is starting: it may
        know the name in a moment."""
        try:
            return self._node.catalog.resolve(name)
        except ModelUnknown:
            if self._node.status().get("ready", True):
                raise
            raise NoProvider(
                "this node is starting: its models are being loaded.",
                reasons={},
                next_step="Try again in a moment; /healthz says when it is ready.",
            ) from None

    async def tokenizer(self, model: str) -> Tokenizer:
        return await self._node.catalog.tokenizer(model)

    async def meter(self, model: str, work: Work) -> Meter:
        return await self._node.catalog.meter(model, work)

    def now(self) -> int:
        return int(self._now_s())

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{self.random(12).hex()}"

    def terms(self, octo: OctoOptions | None) -> Terms:
        octo = octo or OctoOptions()
        return Terms(mode=octo.mode or self._mode, privacy=octo.privacy or self._privacy, cache=octo.cache)

    def work_order(
        self,
        model: str,
        request: WorkRequest,
        octo: OctoOptions | None,
        *,
        blob: bytes = b"",
        param: str,
        seeded: bool = False,
    ) -> WorkOrder:
        """`request` for the model of that name. Raises RequestInvalid for one that no provider would read; `param`
        is what of it can be large."""
        data = encode_request(request)
        if len(data) > REQUEST_LIMIT_BYTES:
            raise RequestInvalid(
                f"{param}: {len(data)} bytes in one request are over the limit of {REQUEST_LIMIT_BYTES}.",
                next_step="Send it in several requests.",
                param=param,
            )
        try:
            decode_request(data)
        except EncodingInvalid as error:
            raise RequestInvalid(error.message, param=param) from None
        return WorkOrder(model=self.resolve(model), request=request, blob=blob, seeded=seeded, **self.terms(octo))


def micro(number: float) -> int:
    return round(number * MICRO)
