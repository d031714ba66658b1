"""Names of models on offer, and what `default` means among them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from market.errors import ModelUnknown
from market.offer import CheckedOffer, ModelOffer
from market.task import Mode
from market.values import cid_of
from market.work import Work
from node.catalog import MeshCatalog


def model(name: str, *works: Work, price_out: int = 5) -> ModelOffer:
    return ModelOffer(
        model=cid_of(name.encode()),
        weights=cid_of(b"w" + name.encode()),
        name=name,
        context=512,
        price_in=1,
        price_out=price_out,
        modes=(Mode.REALTIME,),
        engine="e",
        tokens_per_s=1,
        works=works,
    )


def catalog_of(*offers: tuple[ModelOffer, ...]) -> MeshCatalog:
    said = [SimpleNamespace(offer=SimpleNamespace(peer=f"peer-{at}", models=m)) for at, m in enumerate(offers)]
    unused = cast(Any, None)
    return MeshCatalog(offers=lambda: cast(list[CheckedOffer], said), store=unused, finder=unused, changed=unused)


CHAT, EMBED = model("chat", Work.CHAT), model("vectors", Work.EMBED, price_out=1)


def test_default_writes_text_however_many_serve_something_else() -> None:
    for market in ([(EMBED, CHAT)], [(CHAT,), (EMBED,)], [(EMBED,), (EMBED,), (CHAT,)]):
        assert catalog_of(*market).resolve("default") == CHAT.model


def test_among_those_that_write_text_default_is_the_most_widely_served() -> None:
    other = model("other", Work.CHAT, price_out=1)
    assert catalog_of((other, CHAT), (CHAT,)).resolve("default") == CHAT.model


def test_where_nothing_writes_text_default_is_what_there_is() -> None:
    assert catalog_of((EMBED,)).resolve("default") == EMBED.model
    with pytest.raises(ModelUnknown, match="nothing yet"):
        catalog_of().resolve("default")


def test_a_model_is_found_by_name_and_cid_with_all_that_its_providers_do() -> None:
    catalog = catalog_of((model("both", Work.EMBED),), (model("both", Work.RERANK),))
    assert catalog.resolve("BOTH") == catalog.resolve(cid_of(b"both")) == cid_of(b"both")
    (on_offer,) = catalog.on_offer()
    assert set(on_offer.works) == {Work.EMBED, Work.RERANK} and len(on_offer.providers) == 2
