"""A seller and its cache: which kept answer fits a call, and which answer may be kept.

The cache is not believed: an entry that is not what this provider once signed for is thrown away, so that a poisoned
file costs a miss and nothing else.
"""

from __future__ import annotations

from market.admitting import Admitted
from market.caching import Original, names_its_content
from market.errors import EncodingInvalid
from market.identity import PeerId
from market.kept import Kept, place_of
from market.message import CallForProposals
from market.parts import SellerParts, Served, Serving
from market.receipt import Receipt, check_receipt_signature
from market.retelling import is_as_receipted, items_of
from market.task import Privacy


async def find_kept(seller: SellerParts, call: CallForProposals, served: Serving, *, asker: PeerId) -> Kept | None:
    """The answer that may be told again to `asker`, checked against the receipt that it was signed for."""
    if seller.cache is None or call.cache is None or call.privacy is not Privacy.PUBLIC:
        return None
    place = place_of(call.cache, asker)
    kept = await seller.cache.find(place)
    if kept is None:
        return None
    try:
        receipt = check_receipt_signature(kept.original.receipt, receipt_key=seller.receipt_key.address)
    except EncodingInvalid:  # before the receipt key was changed, or never
        await seller.cache.wrong(place)
        return None
    if not _fits(receipt, call, served):
        return None
    is_text = isinstance(served, Served)
    items = items_of(kept, served.tokenizer if isinstance(served, Served) else None)
    if (
        items is None
        or kept.place() != place
        or not is_as_receipted(kept, items, receipt, seller.verifier, pieces=not is_text)
    ):
        await seller.cache.wrong(place)
        return None
    return kept


def _fits(receipt: Receipt, call: CallForProposals, served: Serving) -> bool:
    """An answer of another engine class, or of weights that were replaced, is not what would be said today."""
    said = (receipt.model, receipt.weights, receipt.engine, receipt.sampling, receipt.tokens_in)
    return said == (
        call.model,
        served.model.weights,
        served.engine.info.name,
        call.sampling,
        call.tokens_in,
    ) and (receipt.tokens_out <= call.max_tokens)


async def keep_answer(
    seller: SellerParts, call: CallForProposals, admitted: Admitted, original: Original, *, asker: PeerId
) -> None:
    """Keep an answer that is whole and paid, if its buyer named a key for it."""
    recorded = admitted.recorded
    if seller.cache is None or call.cache is None or recorded is None or recorded.items is None:
        return
    finish = original.receipt.read().finish
    if call.privacy is not Privacy.PUBLIC or finish not in ("stop", "length"):
        return
    if not names_its_content(call.cache, admitted.content):
        return  # somebody wants another answer to be found under this key
    items = recorded.items
    await seller.cache.keep(
        Kept(
            key=call.cache,
            owner=asker,
            content=admitted.content,
            original=original,
            numbers=tuple(item.number for item in items),
            pieces=tuple(item.data for item in items) if recorded.pieces else (),
            logprobs=tuple(item.logprobs for item in items if item.logprobs is not None),
            finish=finish,
            kept_ms=seller.clock.now_ms(),
        )
    )
