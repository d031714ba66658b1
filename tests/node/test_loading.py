"""What becomes of the models that the settings name when one of them cannot be brought, read or loaded at a start."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from inference.hardware import detect_hardware
from inference.models.compatibility import EngineKind
from inference.models.draft import Wishes
from inference.models.library import import_model, model_of
from inference.models.manifest import Role
from inference.tuning import Setup
from market.errors import (
    BlockInvalid,
    ContentUnavailable,
    EncodingInvalid,
    EngineFailed,
    ModelFileInvalid,
    ModelUnknown,
    ModelUntrusted,
    NodeMisconfigured,
    RequestInvalid,
)
from node.figures import FILE, FiguresBook
from node.loading import Loading
from node.offered import Providing
from node.room import check_room
from node.settings import EngineSettings, Settings
from tests.inference import onnx_kit as kit
from tests.node.bench_kit import OWNER, store

__all__ = ["store"]

AWAY = ContentUnavailable("the server does not answer.", next_step="Look at the network.")


class House:
    """A provider's loading over real models; `away` are the errors that each reference has before it comes."""

    def __init__(self, folder, store) -> None:
        self.folder, self.store = folder, store
        self.away: dict[str, list[Exception]] = {}
        self.cids: dict[str, str] = {}
        self.asked: list[tuple[str, bool]] = []
        self.providing = Providing()
        self.changes = 0

    async def add(self, name: str) -> str:
        graph = {"embedding": kit.pooling_embedder, "rerank": kit.reranker}[name]()
        files = kit.write_model(self.folder / name, model_onnx=graph, tokenizer_json=kit.tokenizer_json())
        wishes = Wishes(name=name, modality=name)
        self.cids[name] = await import_model(
            self.store, {file.name: file for file in files.iterdir()}, OWNER, wishes=wishes
        )
        return name

    async def bring(self, reference: str, patient: bool) -> str:
        self.asked.append((reference, patient))
        if self.away.get(reference):
            raise self.away[reference].pop(0)
        return self.cids[reference]

    def changed(self) -> None:
        self.changes += 1

    @asynccontextmanager
    async def started(self, *references: str, **engine):
        settings = Settings(data_dir=self.folder, engine=EngineSettings(workers=1, threads=1, context=128, **engine))
        hardware = detect_hardware()
        loading = Loading(
            providing=self.providing, settings=settings, store=self.store, bring=self.bring,
            book=FiguresBook(self.folder), hardware=hardware, changed=self.changed, engine=None, retry_first_s=0.05,
        )  # fmt: skip
        try:
            await loading.start(references)
            yield loading
        finally:
            await loading.aclose()

    def offered(self) -> list[str]:
        return [offer.name for offer in self.providing.offers()]

    async def damage(self, name: str) -> None:
        """Its weights, hashed again before they are loaded, go into quarantine."""
        manifest = await model_of(self.store, self.cids[name])
        path = self.store.path_of(manifest.file(Role.WEIGHTS).cid)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(100)
            file.write(bytes(8))


@pytest.fixture
def house(tmp_path, store):
    return House(tmp_path, store)


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_model_that_cannot_be_brought_costs_its_own_offer_alone_and_is_tried_again(house) -> None:
    await house.add("embedding")
    await house.add("rerank")
    house.away["embedding"] = [AWAY, AWAY, OSError("the disk sleeps")]
    with capture_logs() as logs:
        async with house.started("embedding", "rerank") as loading:
            assert house.offered() == ["rerank"]
            (told,) = loading.troubles()
            assert told.startswith("embedding is not served: the server does not answer. Look at the network.")
            changes = house.changes
            await until(lambda: len(house.providing.offers()) == 2)
            assert house.offered() == ["embedding", "rerank"], "in the order of the settings, however it came"
            await until(lambda: loading.troubles() == [])
            assert house.changes > changes
    waits = [line for line in logs if line["event"] == "model_not_loaded"]
    assert [line["again_s"] for line in waits] == [0.05, 0.1, 0.2]
    assert waits[0]["why"] == AWAY.message and waits[0]["next_step"] == AWAY.next_step
    assert "the disk sleeps" in waits[2]["why"]
    assert house.asked == [("embedding", True), ("rerank", True)] + [("embedding", False)] * 3


async def test_a_model_whose_file_is_damaged_costs_its_own_offer_alone_until_it_is_there_again(house) -> None:
    await house.add("embedding")
    await house.add("rerank")
    await house.damage("embedding")
    cid, somebody_has_it = house.cids["embedding"], False

    async def bring(reference: str, patient: bool) -> str:
        if not patient and not somebody_has_it:
            raise BlockInvalid("nobody has it.")
        if not patient:
            await house.add(reference)
        return house.cids[reference]

    house.bring = bring
    async with house.started("embedding", "rerank") as loading:
        assert house.offered() == ["rerank"]
        assert list(loading.cache.failing()) == [cid]
        assert "embedding is not served: nobody has it." in loading.troubles()[0]
        somebody_has_it = True
        await until(lambda: house.offered() == ["embedding", "rerank"])
        assert loading.troubles() == []


async def test_if_no_model_can_be_served_the_start_ends_with_the_first_cause(house) -> None:
    await house.add("embedding")
    house.away = {"a": [AWAY], "b": [ModelFileInvalid("the weights are cut off.")]}
    with pytest.raises(ContentUnavailable, match="does not answer"):
        async with house.started("a", "b"):
            pass
    await house.damage("embedding")
    house.away = {"b": [ModelFileInvalid("the weights are cut off.")]}
    house.asked.clear()

    async def bring(reference: str, patient: bool) -> str:
        if reference == "embedding" and not patient:
            raise EngineFailed("nobody has it any more.")
        return await House.bring(house, reference, patient)

    house.bring = bring
    with pytest.raises(EngineFailed, match="nobody has it any more"):
        async with house.started("embedding", "b"):
            pass
    assert house.offered() == []


async def test_a_figure_of_yesterday_is_nothing_to_start_with_if_its_model_is_gone(house) -> None:
    """Two that do not fit together, both known: one is loaded at the start, and the other offered unseen."""
    await house.add("embedding")
    await house.add("rerank")
    async with house.started("embedding", "rerank"):
        pass
    sizes = [known["size_bytes"] for known in json.loads((house.folder / FILE).read_text())["entries"]]
    room = {"memory": max(sizes) + min(sizes) // 2}
    house.providing = Providing()
    await house.damage("embedding")

    async def bring(reference: str, patient: bool) -> str:
        if not patient:
            raise EngineFailed(f"nobody has {reference}.")
        return house.cids[reference]

    house.bring = bring
    async with house.started("embedding", "rerank", **room) as loading:
        assert house.offered() == ["rerank"] and loading.cache.counts.loads == 1
    house.providing = Providing()
    await house.damage("rerank")
    with pytest.raises(EngineFailed, match="nobody has embedding"):
        async with house.started("embedding", "rerank", **room):
            pass


@pytest.mark.parametrize("mistake", [EncodingInvalid, ModelUnknown, ModelUntrusted, NodeMisconfigured, RequestInvalid])
async def test_a_mistake_in_the_settings_ends_the_start_though_others_could_be_served(house, mistake) -> None:
    await house.add("embedding")
    house.away["other"] = [mistake("that is not meant.")]
    with pytest.raises(mistake, match="not meant"):
        async with house.started("embedding", "other"):
            pass


async def test_a_model_over_the_memory_of_the_settings_ends_the_start(house) -> None:
    await house.add("embedding")
    with pytest.raises(NodeMisconfigured, match="of memory, and models may have"):
        async with house.started("embedding", memory=1 << 20):
            pass


async def test_a_model_over_what_is_free_now_is_tried_again_and_not_called_a_mistake(house) -> None:
    await house.add("embedding")
    manifest = await model_of(house.store, house.cids["embedding"])
    settings, setup = Settings(data_dir=house.folder), Setup(model="", workers=1, threads=1, slots=1)
    with pytest.raises(EngineFailed, match="needs 2 MB of memory"):
        check_room(manifest, EngineKind.ONNX, setup, settings, size_bytes=2 << 20, budget=1 << 20, here=[manifest])
