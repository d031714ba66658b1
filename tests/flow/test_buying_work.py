"""Work that is no token stream is bought like text: quoted, delivered in pieces, receipted, paid, and refused alike."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest
from no_waiting import NO_WAITING
from shop import MODEL, OCTO

from market.buyer import WorkOrder
from market.errors import EngineFailed, NoProvider, PeerError, RequestInvalid
from market.message import Piece
from market.ports import EngineInfo, EngineLoad, Made
from market.testing import ScriptedEngine
from market.testing_work import ByteMeter, HashEmbedder
from market.work import EmbedRequest, RerankRequest, TranscribeRequest, Work
from verifier.examination import examine
from verifier.receipt_file import from_record

TEXTS = ("one", "two and two", "three")
ORDER = WorkOrder(model=MODEL, request=EmbedRequest(inputs=TEXTS))
DIGESTS = [hashlib.sha256(text.encode()).digest() for text in TEXTS]


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def bought(buyer, order=ORDER):
    async with buyer.buy(order) as purchase:
        parts = [part async for part in purchase.parts()]
    return parts, purchase.outcome


async def test_each_piece_arrives_and_the_receipt_counts_units(shop) -> None:
    seller = shop.seller("s", engine=HashEmbedder(), meter=ByteMeter())
    buyer = shop.buyer("b")
    parts, outcome = await bought(buyer.buyer)
    assert [part.data for part in parts] == DIGESTS
    assert (outcome.tokens_in, outcome.tokens_out, outcome.finish) == (19, 3, "stop")
    await asyncio.sleep(0.1)
    assert buyer.spent() == seller.earned() == outcome.amount


@pytest.mark.parametrize("texts", [TEXTS, tuple(f"text {number}" for number in range(500))])
async def test_texts_share_no_context_however_many_there_are(shop, texts) -> None:
    engine = HashEmbedder()
    engine.info = replace(engine.info, context=16)  # of each of them
    shop.seller("s", engine=engine, meter=ByteMeter())
    parts, outcome = await bought(shop.buyer("b").buyer, WorkOrder(model=MODEL, request=EmbedRequest(inputs=texts)))
    assert len(parts) == len(texts)
    assert outcome.tokens_in == sum(map(len, texts)) > 16


async def test_the_receipt_of_work_is_checked_offline_piece_by_piece(shop) -> None:
    shop.seller("s", engine=HashEmbedder(), meter=ByteMeter())
    buyer = shop.buyer("b")
    _, outcome = await bought(buyer.buyer)
    record = next(r for r in buyer.books.records if r.receipt.cid() == outcome.receipt)
    file = from_record(record)
    assert file.pieces
    assert file.text_digests == tuple(hashlib.sha256(digest).digest() for digest in DIGESTS)
    assert examine(file).ok
    assert not examine(replace(file, pieces=False)).ok


async def test_large_pieces_travel_in_parts_and_a_blob_goes_along(shop) -> None:
    class Echo:
        """Gives the blob back, three times, in one piece each."""

        info = EngineInfo(name="echo/1", context=10_000_000, slots=1)
        works = frozenset((Work.TRANSCRIBE,))

        async def make(self, job):
            for count in range(3):
                yield Made(pieces=(job.blob + bytes((count,)),), progress=count * 30)
            yield Made(progress=100, finish="stop")

        def load(self):
            return EngineLoad(running=1, waiting=0)

    class BlobMeter(ByteMeter):
        def units_in(self, request, blob):
            return len(blob) // 1000

        def units_out_limit(self, request, blob):
            return 3

        def units_of(self, request, piece):
            return 1

    blob = hashlib.shake_256(b"audio").digest(1_700_000)
    shop.seller("s", engine=Echo(), meter=BlobMeter())
    buyer = shop.buyer("b", meter=BlobMeter())
    parts, outcome = await bought(buyer.buyer, WorkOrder(model=MODEL, request=TranscribeRequest(), blob=blob))
    assert [part.data for part in parts] == [blob + bytes((count,)) for count in range(3)]
    assert outcome.tokens_in == 1700


async def test_a_seller_that_counts_a_piece_twice_is_not_paid_for_it(shop) -> None:
    def inflate(body):
        return replace(body, units=2) if isinstance(body, Piece) else body

    shop.seller("liar", engine=HashEmbedder(), meter=ByteMeter(), on_send=inflate)
    buyer = shop.buyer("b")
    with pytest.raises((NoProvider, PeerError)):
        await bought(buyer.buyer)
    paid = sum(channel.paid for channel in buyer.books.saved.values())
    assert paid <= 19 * OCTO // 10**6  # the input, and nothing that was made up


async def test_an_engine_that_fails_in_the_middle_ends_with_a_clear_error(shop) -> None:
    broken = HashEmbedder(delay_s=0.1, fail_after=1, failure=EngineFailed("the worker died."))
    shop.seller("s", engine=broken, meter=ByteMeter())
    with pytest.raises(PeerError, match="the worker died"):
        await bought(shop.buyer("b").buyer)


async def test_work_that_nobody_does_is_refused_with_the_reason(shop) -> None:
    shop.seller("s", engine=HashEmbedder(), meter=ByteMeter())
    buyer = shop.buyer("b")
    order = WorkOrder(model=MODEL, request=RerankRequest(query="q", documents=("d",)))
    with pytest.raises(RequestInvalid, match=r"texts to embed"):
        await bought(buyer.buyer, order)


async def test_a_text_model_is_not_chosen_for_embeddings(shop) -> None:
    seller = shop.seller("s", engine=ScriptedEngine())
    with pytest.raises(NoProvider) as refused:
        await bought(shop.buyer("b").buyer)
    assert refused.value.reasons[seller.party.peer] == "does not embed with this model"


def picky() -> HashEmbedder:
    """Its engine cannot do what was asked, whoever asks."""
    return HashEmbedder(fail_after=0, failure=RequestInvalid("the model's vectors have 32 numbers."))


async def test_a_request_that_no_provider_can_serve_is_the_clients_fault(shop) -> None:
    for name in ("s1", "s2"):
        shop.seller(name, engine=picky(), meter=ByteMeter())
    with pytest.raises(RequestInvalid, match="no provider can do what was asked: the model's vectors have 32 numbers"):
        await bought(shop.buyer("b").buyer)


async def test_one_provider_that_blames_the_request_is_passed_over(shop) -> None:
    shop.seller("liar", engine=picky(), meter=ByteMeter(), price_out=OCTO)
    shop.seller("s", engine=HashEmbedder(), meter=ByteMeter())
    parts, outcome = await bought(shop.buyer("b").buyer)
    assert [part.data for part in parts] == DIGESTS
    assert list(outcome.failed.values()) == ["the model's vectors have 32 numbers."]


async def test_a_request_is_not_blamed_while_another_provider_failed_by_itself(shop) -> None:
    shop.seller("liar", engine=picky(), meter=ByteMeter(), price_out=OCTO)
    shop.seller("s", engine=HashEmbedder(failure=EngineFailed("the worker died."), fail_after=0), meter=ByteMeter())
    with pytest.raises(NoProvider) as failed:
        await bought(shop.buyer("b").buyer)
    assert "the worker died." in failed.value.reasons.values()
