"""Names that several models have: which one is meant, and when to ask back."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.models.catalog import CatalogEntry
from inference.models.default_model import DEFAULT_NAME, DEFAULT_WHEEL
from inference.models.draft import Wishes
from inference.models.library import import_model
from inference.models.manifest import Format, Role
from inference.models.store import Store
from market.errors import ModelUnknown, RequestInvalid
from market.signing import Secp256k1Signer
from node.models.naming import Namesake, namesake_of, the_one_called
from node.models.view import ModelView
from node.settings import Api, Content, Mesh, Settings
from node.wiring import open_node
from tests.flow.model_town import a_node
from tests.inference import onnx_kit
from tests.inference.models.model_kit import CHAT, a_cid, a_file, a_manifest, gguf_bytes
from tests.node.bench_kit import OWNER, store

__all__ = ["store"]

STRANGER = Secp256k1Signer(bytes([2] * 32))
HERE = (True, True)


def a_namesake(seed: str, *, rank: tuple[bool, bool] = HERE, own: bool = True, weights: str = "", **said) -> Namesake:
    weights_file = a_file(Role.WEIGHTS, name=f"{weights or seed}.bin")
    return namesake_of(a_cid(seed), a_manifest(files=(weights_file,), **said), rank=rank, own=own)


# ---- the rule --------------------------------------------------------------------------------------


def test_two_formats_under_one_name_are_refused_with_cids_formats_and_what_to_say() -> None:
    both = [a_namesake("a"), a_namesake("b", format=Format.ONNX, quantisation="unknown")]
    with pytest.raises(RequestInvalid) as refused:
        the_one_called("minilm", both)
    assert f"{a_cid('a')} (gguf Q4_0, 1.2.3, 0.0 MB)" in refused.value.message
    assert f"{a_cid('b')} (onnx, 1.2.3, 0.0 MB)" in refused.value.message
    assert "'minilm' is the name of 2 models" in refused.value.message and "CID" in refused.value.next_step


def test_a_higher_version_is_meant_within_its_format_and_does_not_stand_for_another() -> None:
    old, new = a_namesake("a", version="1.9.0"), a_namesake("b", version="1.10.0")
    assert the_one_called("n", [new, old]) == new.cid
    with pytest.raises(RequestInvalid):
        the_one_called("n", [old, a_namesake("c", version="2.0.0", format=Format.ONNX)])


def test_two_quantisations_of_one_version_are_two_models() -> None:
    with pytest.raises(RequestInvalid):
        the_one_called("n", [a_namesake("a"), a_namesake("b", quantisation="Q8_0")])


def test_who_is_not_trusted_or_here_in_part_only_makes_no_name_ambiguous() -> None:
    meant = a_namesake("a")
    strangers = [a_namesake(f"s{at}", rank=(False, True), own=False) for at in range(3)]
    in_part = a_namesake("p", rank=(True, False), format=Format.ONNX)
    assert the_one_called("n", [*strangers, in_part, meant]) == meant.cid


def test_manifests_of_the_same_weights_are_one_model_the_one_signed_last() -> None:
    first = a_namesake("a", weights="w", own=False)
    again = a_namesake("b", weights="w", own=False, parent=first.cid)
    own = a_namesake("c", weights="w")
    assert the_one_called("n", [again, first]) == again.cid
    assert the_one_called("n", [first, again, own]) == own.cid


def test_a_long_list_of_namesakes_is_cut() -> None:
    with pytest.raises(RequestInvalid) as refused:
        the_one_called("n", [a_namesake(str(at)) for at in range(20)])
    assert "20 models" in refused.value.message and refused.value.message.endswith("; and 12 more.")


# ---- looking into a store ----------------------------------------------------------------------------


class NoChoices:
    def all(self, _kind: str) -> tuple[str, ...]:
        return ()


def view_of(store: Store, *, entries=()) -> ModelView:
    return ModelView(
        store=store, choices=NoChoices(), own_wallet=OWNER.address, shipped_creator=bytes(20), hardware=None,
        quota_bytes=None, missing={}, offered=lambda: [], running=set, entries=lambda: entries,
    )  # fmt: skip


def minilm_files(folder: Path) -> tuple[Path, Path]:
    """As GGUF and as ONNX."""
    gguf = folder / "minilm.gguf"
    gguf.write_bytes(gguf_bytes(CHAT))
    onnx = onnx_kit.write_model(
        folder / "onnx", model_onnx=onnx_kit.pooling_embedder(), tokenizer_json=onnx_kit.tokenizer_json()
    )
    return gguf, onnx


async def test_default_is_what_came_out_of_the_wheel_whatever_else_has_its_name(store, tmp_path) -> None:
    gguf, onnx = minilm_files(tmp_path)
    files = {file.name: file for file in onnx.iterdir()}
    other = await import_model(store, files, OWNER, wishes=Wishes(name=DEFAULT_NAME, modality="embedding"))
    view = view_of(store)
    assert await view.find(DEFAULT_NAME) == await view.find("default") == other
    own = await import_model(
        store, {"m.gguf": gguf}, OWNER, source=DEFAULT_WHEEL.reference, wishes=Wishes(name=DEFAULT_NAME)
    )
    assert await view.find("default") == own
    with pytest.raises(RequestInvalid, match="2 models"):
        await view.find(DEFAULT_NAME)


async def test_a_strangers_model_of_the_same_name_changes_nothing(store, tmp_path) -> None:
    gguf, onnx = minilm_files(tmp_path)
    own = await import_model(store, {"m.gguf": gguf}, OWNER, wishes=Wishes(name="MiniLM"))
    files = {file.name: file for file in onnx.iterdir()}
    await import_model(store, files, STRANGER, wishes=Wishes(name="minilm", modality="embedding"))
    assert await view_of(store).find("MINILM") == own


async def test_catalogs_that_list_different_models_under_a_name_are_asked_about(store) -> None:
    def an_entry(seed: str, version: str = "1.0.0") -> CatalogEntry:
        return CatalogEntry(
            name="Otter", version=version, manifest=a_cid(seed), format=Format.GGUF, quantisation="Q4_0",
            modality="text", licence="mit", size_bytes=10, context=0,
        )  # fmt: skip

    async def meant(name: str, *entries: CatalogEntry) -> str:
        return await view_of(store, entries=[(None, entry) for entry in entries]).resolve(name)

    assert await meant("otter", an_entry("a"), an_entry("a"), an_entry("b", "0.9.0")) == a_cid("a")
    with pytest.raises(RequestInvalid, match="2 models"):
        await meant("otter", an_entry("a"), an_entry("b"))
    assert await meant("otter@0.9.0", an_entry("a"), an_entry("b", "0.9.0")) == a_cid("b")


# ---- a whole node --------------------------------------------------------------------------------------


@pytest.mark.net
async def test_every_verb_asks_back_for_a_name_of_two_and_takes_the_cid(tmp_path) -> None:
    gguf, onnx = minilm_files(tmp_path)
    async with a_node(tmp_path / "a") as node:
        desk = node.desk
        wishes = {gguf: Wishes(name="MiniLM"), onnx: Wishes(name="MiniLM", modality="embedding")}
        cids = [(await desk.add(str(path), wishes=wish))["model"] for path, wish in wishes.items()]
        verbs = {
            "show": desk.view.show,
            "push": desk.push,
            "verify": desk.verify,
            "sign": desk.sign,
            "remove": desk.remove,
            "pull": desk.pull,
            "quantize": lambda name: desk.quantizing.quantize(name, "Q4_0"),
            "publish": lambda name: desk.publish_catalog("mine", [name]),
            "pin": lambda name: desk.choose("pins", name),
        }
        for name in ("minilm", "MiniLM@1.0.0"):
            for verb, run in verbs.items():
                with pytest.raises(RequestInvalid) as refused:
                    await run(name)
                assert all(cid in refused.value.message for cid in cids), verb
                assert "gguf" in refused.value.message and "onnx" in refused.value.message
        with pytest.raises(ModelUnknown):
            await desk.push("otter")
        for cid in cids:
            assert (await desk.push(cid))["model"] == (await desk.view.show(cid))["model"] == cid
        assert (await desk.remove(cids[1]))["model"] == cids[1]
        assert (await desk.push("minilm"))["model"] == cids[0]
        await desk.add(str(onnx), wishes=wishes[onnx])
    settings = Settings(
        data_dir=tmp_path / "a", model="minilm", api=Api(port=0), mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
    )  # fmt: skip
    with pytest.raises(RequestInvalid, match="the name of 2 models"):
        async with open_node(settings):
            pass
