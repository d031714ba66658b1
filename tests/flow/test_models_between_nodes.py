"""Models travel between whole nodes: by offer, DHT, HTTP and mesh, past liars, with trust asked first."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from model_town import MB, a_model, a_node, flip_a_bit, until, wallet_of

from inference.models.search import Filters
from market.errors import BlockInvalid, ContentUnavailable, ModelUntrusted, RequestInvalid

pytestmark = pytest.mark.net


def whole(node, cid: str) -> bool:
    return cid in node.desk.sharing.stores()


async def file_of(node, cid: str) -> str:
    return next(f["cid"] for f in (await node.desk.view.show(cid))["files"] if f["role"] == "weights")


async def test_a_model_is_added_here_offered_and_pulled_there_under_the_same_cid(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        path = a_model(tmp_path / "files")
        added = await a.desk.add(str(path))
        await until(lambda: any(added["model"] in c.offer.stores for c in b.offers()), what="the offer names it")
        seen = []
        told = await b.desk.pull(added["model"], trust=True, progress=seen.append)
        assert told["model"] == added["model"]
        assert await file_of(b, told["model"]) == await file_of(a, added["model"])
        stored = await b.desk._store.checked_path(await file_of(b, told["model"]))
        assert stored.read_bytes() == path.read_bytes()
        assert seen[-1].done_bytes == seen[-1].total_bytes > 5 * MB
        await until(lambda: whole(b, added["model"]), what="it is served on")


async def test_an_unknown_creator_needs_trust_before_a_byte_of_weights_moves(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        with pytest.raises(ModelUntrusted, match=wallet_of(a)) as refused:
            await b.desk.pull(cid)
        assert f"octo-node models trust {wallet_of(a)}" in refused.value.next_step
        assert not (await b.desk.view.store_facts())["files"]
        await b.desk.choose("trust", wallet_of(a))
        assert (await b.desk.pull(cid))["model"] == cid


async def test_a_name_that_looks_like_a_trusted_ones_is_refused(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        await b.desk.add(str(a_model(tmp_path / "b-files", seed="b", name="Otter-1B")))
        cid = (await a.desk.add(str(a_model(tmp_path / "a-files", seed="a", name="0tter-1B"))))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        with pytest.raises(ModelUntrusted, match="looks like"):
            await b.desk.pull(cid)


async def test_a_peer_without_reachable_http_serves_over_the_mesh(tmp_path: Path) -> None:
    # The mesh listens on 127.0.0.2, so that is where the offer says content is; but nobody listens there.
    lonely = a_node(tmp_path / "a", listen="127.0.0.2", content="127.0.0.1")
    async with lonely as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        assert (await b.desk.pull(cid, trust=True))["model"] == cid


async def test_one_who_is_offered_by_nobody_is_found_in_the_dht(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        path = a_model(tmp_path / "files")
        cid = (await a.desk.add(str(path)))["model"]
        root = await file_of(a, cid)  # a file's root stands in no offer
        async with a_node(tmp_path / "c", join=(b,)) as c:
            await until(lambda: len(c.peers()) >= 1)
            told = await c.desk.pull(root, trust=True)
            assert await file_of(c, told["model"]) == root
            assert told["model"] != cid  # c's own manifest: nobody had signed the bare file


async def test_a_storage_peer_keeps_what_it_is_asked_for_and_serves_when_the_maker_is_gone(tmp_path: Path) -> None:
    async with AsyncExitStack() as makers:
        maker = await makers.enter_async_context(a_node(tmp_path / "a"))
        cid = (await maker.desk.add(str(a_model(tmp_path / "files"))))["model"]
        friends = {"peers": (maker.peer,), "trust": (wallet_of(maker),)}
        async with a_node(tmp_path / "s", join=(maker,), **friends) as storage:
            await until(lambda: len(maker.peers()) == 1)
            await maker.desk.push(cid, to=[storage.peer])
            await until(lambda: whole(storage, cid), what="the storage peer has pulled it")
            await makers.aclose()
            async with a_node(tmp_path / "b", join=(storage,)) as b:
                assert (await b.desk.pull(cid, trust=True))["model"] == cid


async def test_a_stranger_cannot_have_us_keep_anything(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await until(lambda: len(a.peers()) == 1)
        with pytest.raises(ContentUnavailable):
            await a.desk.push(cid, to=[b.peer])
        assert await b.desk.choices_told("pins") == []


async def test_what_is_not_public_is_for_friends_with_a_ticket_only(tmp_path: Path) -> None:
    async with AsyncExitStack() as nodes:
        friend = await nodes.enter_async_context(a_node(tmp_path / "f"))
        a = await nodes.enter_async_context(a_node(tmp_path / "a", join=(friend,), peers=(friend.peer,)))
        stranger = await nodes.enter_async_context(a_node(tmp_path / "b", join=(a,)))
        cid = (await a.desk.add(str(a_model(tmp_path / "files")), public=False))["model"]
        await until(lambda: len(a.peers()) == 2)
        with pytest.raises(ContentUnavailable):
            await stranger.desk.pull(cid, trust=True, given=[a.addresses()[0]])
        url = "http://127.0.0.1:" + a.content_addresses[0].split("/")[4]
        with pytest.raises(ContentUnavailable):
            await friend.desk.pull(cid, trust=True, given=[url])  # no ticket: an address has no peer
        assert (await friend.desk.pull(cid, trust=True, given=[a.addresses()[0]]))["model"] == cid


async def test_a_rotten_disk_is_found_out_and_the_pull_completes_from_the_others(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        path = a_model(tmp_path / "files", size=40 * MB)
        cid = (await a.desk.add(str(path)))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        await b.desk.pull(cid, trust=True)
        async with a_node(tmp_path / "c", join=(a, b)) as c:
            await until(lambda: sum(cid in o.offer.stores for o in c.offers()) == 2)
            flip_a_bit(a, await file_of(a, cid))
            await c.desk.pull(cid, trust=True)
            assert (await c.desk._store.checked_path(await file_of(c, cid))).read_bytes() == path.read_bytes()
        verified = await a.desk.verify(None)
        assert [entry["cid"] for entry in verified["damaged"]] == [await file_of(a, cid)]


async def test_a_catalog_is_published_followed_searched_and_pulled_from_by_name(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files", name="Heron-7B"))))["model"]
        published = await a.desk.publish_catalog("birds", ["Heron-7B"])
        assert await b.desk.choose("catalogs", published["catalog"])
        await until(b.desk.catalogs.entries, what="the catalog arrives")
        (found,) = await b.desk.view.search("heron", Filters(), fits=False)
        assert found["model"] == cid
        # To follow a catalog is to believe what it lists.
        assert (await b.desk.pull("heron-7b"))["model"] == cid
        more = (await a.desk.add(str(a_model(tmp_path / "more", seed="2", name="Stork-3B"))))["model"]
        await a.desk.publish_catalog("birds", [cid, more])
        await b.desk.catalogs.refresh(a.binding.wallet, "birds")
        assert {entry.manifest for _, entry in b.desk.catalogs.entries()} == {cid, more}


async def test_what_runs_or_is_pinned_is_not_removed_and_the_rest_goes(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await a.desk.choose("pins", cid)
        with pytest.raises(RequestInvalid, match="pinned"):
            await a.desk.remove(cid)
        await a.desk.unchoose("pins", cid)
        assert (await a.desk.remove(cid))["freed_bytes"] > 5 * MB
        assert await a.desk.view.stored() == []
        assert not whole(a, cid)


async def test_signing_again_makes_a_new_manifest_over_the_same_file_with_its_parent(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        await b.desk.pull(cid, trust=True)
        signed = await b.desk.sign(cid)
        shown = await b.desk.view.show(signed["model"])
        assert (shown["parent"], shown["creator"]) == (cid, wallet_of(b))
        assert await file_of(b, signed["model"]) == await file_of(a, cid)


async def test_pickles_are_refused_unless_asked_for_by_name(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a:
        folder = tmp_path / "files"
        folder.mkdir()
        (folder / "model.pt").write_bytes(b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00\x8c\x06posix\x94.")
        with pytest.raises(ModelUntrusted, match=r"(?i)pickle"):
            await a.desk.add(str(folder / "model.pt"))


async def test_a_quota_evicts_what_was_used_longest_ago_never_what_is_in_use(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a", quota=14 * MB) as a:
        first = (await a.desk.add(str(a_model(tmp_path / "1", seed="1", name="A-1"))))["model"]
        second = (await a.desk.add(str(a_model(tmp_path / "2", seed="2", name="B-1"))))["model"]
        with a.desk._store.using(await file_of(a, first)):
            third = (await a.desk.add(str(a_model(tmp_path / "3", seed="3", name="C-1"))))["model"]
        states = {model["model"]: model["state"] for model in await a.desk.view.stored()}
        assert states[first] == states[third] == "whole"
        assert states[second] != "whole"


async def test_a_manifest_whose_file_is_damaged_by_its_only_holder_is_unavailable_not_wrong(tmp_path: Path) -> None:
    async with a_node(tmp_path / "a") as a, a_node(tmp_path / "b", join=(a,)) as b:
        cid = (await a.desk.add(str(a_model(tmp_path / "files"))))["model"]
        await until(lambda: any(cid in c.offer.stores for c in b.offers()))
        flip_a_bit(a, await file_of(a, cid))
        with pytest.raises((ContentUnavailable, BlockInvalid)):
            await b.desk.pull(cid, trust=True)
        assert all(model["state"] != "whole" for model in await b.desk.view.stored())
