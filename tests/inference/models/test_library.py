"""Models in a store: imported, pulled with trust asked first, signed again, removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.models.draft import Wishes
from inference.models.library import (
    import_model,
    model_folder,
    model_of,
    models_in,
    open_tokenizer,
    publish_model,
    pull_model,
    remove_model,
    sign_again,
    weights_path,
)
from inference.models.manifest import Format, Manifest, Role, sign_manifest
from inference.models.progress import Progress
from inference.models.store import Store
from market.errors import (
    BlockInvalid,
    ContentUnavailable,
    DiskFull,
    EncodingInvalid,
    ModelFileInvalid,
    ModelUntrusted,
)
from market.testing_content import MemorySource
from tests.inference.models.model_kit import (
    CHAT,
    CREATOR,
    LLAMA,
    PICKLE,
    STRANGER,
    a_file,
    a_manifest,
    gguf_bytes,
    put_files,
    safetensors_bytes,
)

GGUF = gguf_bytes(CHAT, elements=800_000)  # 3.2 MB: a tree with inner nodes


class Counting(MemorySource):
    """All that a store has, from memory; counts what is asked for."""

    def __init__(self, store: Store) -> None:
        files = {file.root: store.path_of(file.root).read_bytes() for file in store.list()}
        super().__init__("counting", blocks=dict(store.blocks()), files=files)
        self._store = store
        self.asked: list[str] = []

    async def block(self, cid: str) -> bytes:
        self.asked.append(cid)
        return await self._store.read_block(cid)


async def put(store: Store, folder: Path, files: dict[str, bytes] | None = None, **options: Any) -> str:
    return await import_model(store, put_files(folder, files or {"Tiny.Q4_0.gguf": GGUF}), CREATOR, **options)


async def test_an_imported_model_is_signed_kept_and_pulled_by_another(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    cid = await put(store, tmp_path / "in", source="local:Tiny.Q4_0.gguf", progress=seen.append)
    manifest = await model_of(store, cid)
    assert (manifest.name, manifest.creator, manifest.source) == ("Tiny", CREATOR.address, "local:Tiny.Q4_0.gguf")
    assert await store.resolve(manifest.directory, "Tiny.Q4_0.gguf") == manifest.file(Role.WEIGHTS).cid
    assert list(store.parts.glob("default-*")) == []
    assert (tmp_path / "in" / "Tiny.Q4_0.gguf").exists()
    assert seen
    assert seen[-1].done_bytes <= seen[-1].total_bytes

    asked: list[Manifest] = []
    pulled = await pull_model(other_store, cid, [Counting(store)], public=True, trust=asked.append)
    assert asked == [manifest] == [pulled]
    assert await models_in(other_store) == {cid: manifest}
    assert (await weights_path(other_store, manifest)).read_bytes() == GGUF
    assert (await open_tokenizer(other_store, manifest)).end_tokens == {0}
    assert await other_store.resolve(manifest.directory, "tokenizer.json", public_only=True)
    folder = await model_folder(other_store, manifest)
    assert sorted(path.name for path in folder.iterdir()) == ["Tiny.Q4_0.gguf", "chat_template.jinja", "tokenizer.json"]


async def test_shards_are_given_to_the_engine_in_one_folder(store: Store, tmp_path: Path) -> None:
    files = {f"m-0000{n}-of-00002.gguf": gguf_bytes(CHAT, elements=64 * n) for n in (1, 2)}
    manifest = await model_of(store, await put(store, tmp_path, files))
    path = await weights_path(store, manifest)
    assert path.name == "m-00001-of-00002.gguf"
    assert {each.name: each.read_bytes() for each in path.parent.glob("*.gguf")} == files


async def test_who_is_not_trusted_gets_no_byte_into_the_store(store: Store, other_store: Store, tmp_path: Path) -> None:
    cid, source = await put(store, tmp_path), Counting(store)

    def nobody(manifest: Manifest) -> None:
        raise ModelUntrusted(f"{manifest.name} is a stranger's.")

    with pytest.raises(ModelUntrusted):
        await pull_model(other_store, cid, [source], trust=nobody)
    assert source.asked == [cid]
    assert (other_store.list(), other_store.blocks()) == ([], {})


async def test_a_pickled_model_is_refused_before_a_file_is_asked_for(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ModelUntrusted):
        await put(store, tmp_path, {"model.pt": PICKLE})
    assert (store.list(), store.blocks()) == ([], {})
    cid = await put(store, tmp_path, {"model.pt": PICKLE}, wishes=Wishes(allow_pickled=True))
    source = Counting(store)
    with pytest.raises(ModelUntrusted):
        await pull_model(other_store, cid, [source])
    assert source.asked == [cid]
    await pull_model(other_store, cid, [source], allow_pickled=True)
    assert list(await models_in(other_store)) == [cid]


async def lying(store: Store, folder: Path, data: bytes, **changes: Any) -> str:
    """A manifest whose signature holds and whose words do not; the publisher's own store did not check it."""
    path = put_files(folder, {"model.gguf": data})["model.gguf"]
    file = a_file(name="model.gguf", cid=await store.add(path, public=True), size_bytes=len(data))
    signed = sign_manifest(a_manifest(**{"files": (file,), **changes}), CREATOR)
    return await store.add_block(signed.encoded(), public=True)


async def test_weights_of_another_format_than_the_manifest_says_are_refused(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    for data, format in [(PICKLE, Format.GGUF), (safetensors_bytes(), Format.GGUF), (gguf_bytes(LLAMA), Format.ONNX)]:
        cid = await lying(store, tmp_path, data, format=format)
        with pytest.raises(ModelFileInvalid):
            await pull_model(other_store, cid, [Counting(store)])
        assert cid not in await models_in(other_store)


async def test_a_directory_that_is_not_made_of_the_files_is_refused(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    real = await model_of(store, await put(store, tmp_path))
    cid = await lying(store, tmp_path, gguf_bytes(LLAMA), directory=real.directory)
    with pytest.raises(BlockInvalid, match="not made of its files"):
        await pull_model(other_store, cid, [Counting(store)])
    with pytest.raises(BlockInvalid, match="not made of its files"):
        await publish_model(store, sign_manifest(await model_of(store, cid), CREATOR))


async def test_a_size_that_is_not_the_files_is_refused(store: Store, other_store: Store, tmp_path: Path) -> None:
    data = gguf_bytes(LLAMA, elements=800_000)
    path = put_files(tmp_path, {"m": data})["m"]
    file = a_file(cid=await store.add(path), size_bytes=len(data) - 1)
    cid = await store.add_block(sign_manifest(a_manifest(files=(file,)), CREATOR).encoded())
    with pytest.raises((BlockInvalid, ContentUnavailable)):
        await pull_model(other_store, cid, [Counting(store)])


async def test_publishing_needs_every_file(store: Store) -> None:
    with pytest.raises(ContentUnavailable):
        await publish_model(store, sign_manifest(a_manifest(), CREATOR))


async def test_a_model_can_be_kept_to_oneself(store: Store, tmp_path: Path) -> None:
    cid = await put(store, tmp_path, public=False)
    manifest = await model_of(store, cid)
    assert not any(store.serves(one) for one in (cid, manifest.directory, *(file.cid for file in manifest.files)))


async def test_another_wallet_vouches_with_a_manifest_of_its_own(store: Store, tmp_path: Path) -> None:
    cid = await put(store, tmp_path)
    again = await sign_again(store, cid, STRANGER)
    first, second = await model_of(store, cid), await model_of(store, again)
    assert second == replace(first, creator=STRANGER.address, parent=cid)
    assert store.serves(again)
    assert await sign_again(store, again, STRANGER) == again
    private = await sign_again(store, await put(store, tmp_path, public=False, wishes=Wishes(name="P")), STRANGER)
    assert not store.serves(private)


async def test_removing_a_model_leaves_what_others_name(store: Store, tmp_path: Path) -> None:
    cid = await put(store, tmp_path)
    again = await sign_again(store, cid, STRANGER)
    size = (await model_of(store, cid)).size_bytes
    assert await remove_model(store, cid) == 0
    assert list(await models_in(store)) == [again]
    assert await remove_model(store, again) == size
    assert (store.list(), store.blocks(), store.directories()) == ([], {}, [])
    with pytest.raises(ContentUnavailable):
        await remove_model(store, again)


async def test_a_pull_never_makes_room_by_evicting_what_it_has_just_brought(store: Store, tmp_path: Path) -> None:
    files = {f"m-0000{n}-of-00003.gguf": gguf_bytes(LLAMA, elements=800_000 + n) for n in (1, 2, 3)}
    cid = await put(store, tmp_path / "in", files)
    small = Store(tmp_path / "small", quota_bytes=12_500_000)
    try:
        old = await small.add(put_files(tmp_path, {"old": bytes(4_000_000)})["old"])
        with small.using(old), pytest.raises(DiskFull):
            await pull_model(small, cid, [Counting(store)])
        assert len(small.list()) == 3  # the old one and two shards
        await pull_model(small, cid, [Counting(store)])
        assert list(await models_in(small)) == [cid]
        assert not small.has(old)
    finally:
        small.close()


async def test_a_block_that_is_no_manifest_is_refused(store: Store) -> None:
    cid = await store.add_block(b"\xa1aa\x01")
    with pytest.raises(EncodingInvalid):
        await model_of(store, cid)
    assert await models_in(store) == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [("local:otter", "otter"), ("hf:acme/otter@0a1b/onnx", "otter"), ("local:model.gguf", "model"), ("", "model")],
)
async def test_files_that_do_not_name_a_model_have_it_named_by_their_folder(
    store: Store, tmp_path: Path, source: str, name: str
) -> None:
    cid = await put(store, tmp_path / "in", {"model.gguf": gguf_bytes({})}, source=source)
    assert (await model_of(store, cid)).name == name
