"""An answer that was given before may be told again: under which key, to whom, and what proves where it is from.

Only for public tasks whose answer is settled by the request: temperature 0, or a seed that the user named. A key is
salted with a secret of the buyer's own, so that it tells a provider nothing before the task does, and no two buyers
hit the same entry, nor two users of one buyer; with sharing asked for by both, the salt is a constant. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Protocol

from pydantic import Field

from market.errors import EncodingInvalid
from market.quote import Quote
from market.receipt import Receipt, SignedReceipt, check_receipt_signature
from market.task import MAX_TOKENS_LIMIT, ChatTask, Privacy, Sampling, prompt_digest
from market.values import Word, encode, value
from market.work import ImageRequest, TranscribeRequest, WorkRequest, WorkTask, input_digest

SHARED_SALT = hashlib.sha256(b"octo/cache/shared/1").digest()
_NO_SALT = bytes(32)
Digest = Annotated[bytes, Field(min_length=32, max_length=32)]


class Caching(Word):
    """What a buyer wants of providers' caches: nothing, answers to the same user of its own, or anyone's who shares
    too."""

    OFF = "off"
    OWN = "own"
    SHARED = "shared"


@value
class CacheKey:
    """Named in a call for proposals, for public tasks only. `shared`: others who share may hit what it leaves."""

    key: Digest
    shared: bool = False


@value
class Original:
    """What an answer from the cache is proved with: the first answer's final receipt, what opens its prompt's hash,
    and how its transcript was cut into chunks. Who shares shows all this to whoever asks the same."""

    receipt: SignedReceipt
    salt: Digest
    chunk_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(max_length=MAX_TOKENS_LIMIT)]


class Asked(Protocol):
    """The part of `market.asking.Ask` that matters here."""

    @property
    def max_tokens(self) -> int: ...

    def prompt_under(self, salt: bytes) -> bytes:
        """The prompt's hash under another salt."""


@value
class _Content:
    """All of a request that settles its answer."""

    model: str
    prompt: bytes
    sampling: bytes
    max_units: int
    stop: tuple[str, ...]
    logprobs: int | None


def text_content(task: ChatTask, prompt: tuple[int, ...]) -> bytes:
    """The digest of all that settles the answer to a text; equal only for equal requests."""
    return _digest(
        _Content(
            model=task.model,
            prompt=prompt_digest(_NO_SALT, prompt),
            sampling=task.sampling_digest(),
            max_units=task.max_tokens,
            stop=task.stop,
            logprobs=task.logprobs,
        )
    )


def work_content(task: WorkTask, blob: bytes) -> bytes:
    """As `text_content`. The request has its seed inside."""
    return _digest(
        _Content(
            model=task.model,
            prompt=input_digest(_NO_SALT, task.request, blob),
            sampling=b"",
            max_units=task.max_units,
            stop=(),
            logprobs=None,
        )
    )


def _digest(content: _Content) -> bytes:
    return hashlib.sha256(b"octo/cache/content/1" + encode(_Content, content)).digest()


def cache_key(content: bytes, *, salt: bytes, shared: bool, whose: str = "") -> CacheKey:
    """`salt` is the buyer's own secret, `whose` tells its users apart; both are unused for a shared key.

    With one key for all its users, the price of a request would tell one of them what another had asked."""
    salt = SHARED_SALT if shared else hashlib.sha256(b"octo/cache/user/1" + salt + whose.encode()).digest()
    return CacheKey(key=hashlib.sha256(b"octo/cache/key/1" + salt + content).digest(), shared=shared)


def names_its_content(key: CacheKey, content: bytes) -> bool:
    """Whether what a shared key is the key of can be seen to be `content`; of an own key only its buyer knows.

    Without this, anyone could leave the answer to another question under the key of a popular one.
    """
    return not key.shared or key == cache_key(content, salt=b"", shared=True)


def text_is_settled(sampling: Sampling, privacy: Privacy, *, seeded: bool) -> bool:
    """Whether the rules allow a text's answer to be kept. `seeded`: the user named the seed."""
    return privacy is Privacy.PUBLIC and (seeded or sampling.temperature_micro == 0)


def work_is_settled(request: WorkRequest, privacy: Privacy, *, seeded: bool) -> bool:
    if isinstance(request, ImageRequest) and not seeded:
        return False
    if isinstance(request, TranscribeRequest) and request.temperature_micro:
        return False
    return privacy is Privacy.PUBLIC


def settled(sampling: Sampling) -> Sampling:
    """At temperature 0 nothing is drawn: equal requests then name equal samplings, whatever seed each was given."""
    return sampling if sampling.temperature_micro else replace(sampling, seed=bytes(32), choice=0)


_ALIKE = ("network", "provider", "model", "weights", "engine", "sampling", "tokens_in")


def check_original(original: Original, quote: Quote, *, receipt_key: bytes, asked: Asked, shared: bool) -> Receipt:
    """The first answer's receipt, once it is the quoted provider's own, is cited by the quote, and is for exactly what
    is asked now. Raises EncodingInvalid with the reason."""
    if original.receipt.cid() != quote.cached:
        raise EncodingInvalid("the quote cites another receipt than the one that came with it.")
    receipt = check_receipt_signature(original.receipt, receipt_key=receipt_key)
    if receipt.kind != "generated" or not receipt.final or receipt.finish not in ("stop", "length"):
        raise EncodingInvalid("the cited receipt is not of a whole answer that was generated.")
    for name in _ALIKE:
        if getattr(receipt, name) != getattr(quote, name):
            raise EncodingInvalid(f"the cited receipt is for another {name}.")
    if not shared and receipt.client != quote.client:
        raise EncodingInvalid("the cited receipt is for another client.")
    if receipt.prompt != asked.prompt_under(original.salt):
        raise EncodingInvalid("the cited receipt is for another prompt.")
    if len(original.chunk_sizes) != receipt.chunks or receipt.tokens_out > asked.max_tokens:
        raise EncodingInvalid("the cited receipt is for another answer than can be told here.")
    return receipt
