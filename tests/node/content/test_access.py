"""Who gets what from the content listener: strangers, ticket holders, routers, subscribers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import libipld
import pytest

from inference.models.store import Store
from market.errors import ContentUnavailable
from market.identity import PeerId
from node.clock import SystemClock
from node.content.door import ContentLimits
from node.content.tickets import Tickets
from tests.inference.models.store_kit import put, seeded
from tests.node.content.kit import ABSENT, DATA, LEAF, MIB, add_folder, ask, connected, listening

FRIEND, STRANGER = PeerId("friend"), PeerId("stranger")


async def test_what_is_private_absent_or_not_there_reads_the_same(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    folder = await add_folder(store, {"a": root})
    manifest = await store.add_block(libipld.encode_dag_cbor({"a": 1}))
    said = set()
    async with listening(store) as url:
        for cid in (root, LEAF, manifest, folder, f"{folder}/a", f"{folder}/b", ABSENT, f"{ABSENT}/a"):
            for query in ("", "?format=raw"):
                answer = await ask(url, f"/ipfs/{cid}{query}")
                said.add((answer.status, answer.body, answer.headers["cache-control"]))
        for cid in (root, LEAF, manifest, folder, ABSENT):
            assert (await ask(url, f"/routing/v1/providers/{cid}")).status == 404
    assert said == {(404, b"This node does not serve that CID.\n", "no-store")}


async def test_a_ticket_opens_private_roots_to_whom_the_owner_lets_and_no_cache_keeps_them(
    store: Store, tmp_path: Path
) -> None:
    root = await put(store, tmp_path, DATA)
    folder = await add_folder(store, {"a": root})
    tickets = Tickets(b"s" * 32, SystemClock())
    ticket = tickets.issue(FRIEND)
    async with listening(store, tickets=tickets, may_read=lambda peer: peer == FRIEND) as url:

        async def status(said: str, target: str = f"/ipfs/{root}") -> int:
            return (await ask(url, target, headers={"Authorization": said})).status

        for target in (f"/ipfs/{root}", f"/ipfs/{LEAF}?format=raw", f"/ipfs/{folder}", f"/ipfs/{folder}/a"):
            answer = await ask(url, target, headers={"Authorization": f"bearer {ticket}", "Range": "bytes=0-9"})
            assert answer.status == 206
            assert answer.headers["cache-control"] == "private, no-store"
        assert await status(f"Bearer {tickets.issue(STRANGER)}") == 404
        assert await status(f"Basic {ticket}") == 404
        assert await status(ticket) == 404
        assert await status(f"Bearer {ticket[:-1]}") == 404
        assert await status(f"Bearer {Tickets(b't' * 32, SystemClock()).issue(FRIEND)}") == 404
        assert await status("", f"/ipfs/{root}?ticket={ticket}&access_token={ticket}") == 404
        assert (await ask(url, f"/ipfs/{root}", headers={"Cookie": f"ticket={ticket}"})).status == 404


async def test_a_ticket_that_opens_nothing_spoils_nothing(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    tickets = Tickets(b"s" * 32, SystemClock())
    async with listening(store, tickets=tickets) as url:
        answer = await ask(url, f"/ipfs/{root}", headers={"Authorization": f"Bearer {tickets.issue(FRIEND)}"})
    assert answer.status == 200
    assert answer.headers["cache-control"].startswith("public")


async def test_routing_names_us_for_a_root_and_for_a_leaf_and_is_soon_forgotten(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    address = "/ip4/192.0.2.4/tcp/8081/http"
    lines = {"Accept": "application/x-ndjson, application/json;q=0.8"}
    async with listening(store, advertised=lambda: [address], peer="12D3KooWpeer") as url:
        for cid in (root, LEAF):
            answer = await ask(url, f"/routing/v1/providers/{cid}")
            (record,) = json.loads(answer.body)["Providers"]
            assert (record["Schema"], record["ID"], record["Addrs"]) == ("peer", "12D3KooWpeer", [address])
            assert record["Protocols"] == ["transport-ipfs-gateway-http"]
            streamed = await ask(url, f"/routing/v1/providers/{cid}", headers=lines)
            assert json.loads(streamed.body) == record
            assert streamed.headers["content-type"] == "application/x-ndjson"
            assert answer.headers["cache-control"] == streamed.headers["cache-control"] == "public, max-age=60"
            assert answer.headers["vary"] == "Accept"
        for headers in ({}, lines):
            answer = await ask(url, f"/routing/v1/providers/{ABSENT}", headers=headers)
            assert (answer.status, answer.headers["cache-control"]) == (404, "public, max-age=15")
        assert (await ask(url, "/routing/v1/providers/no-cid")).status == 400


async def test_a_signed_catalog_is_served_for_a_minute_under_its_creator_and_name(store: Store) -> None:
    wallet, signed = bytes(range(20)), libipld.encode_dag_cbor({"models": []})

    async def catalog(creator: bytes, name: str) -> bytes:
        if (creator, name) != (wallet, "my models"):
            raise ContentUnavailable("no such catalog")
        return signed

    async with listening(store, catalog=catalog) as url:
        answer = await ask(url, f"/catalogs/0x{wallet.hex()}/my%20models")
        assert (answer.status, answer.body) == (200, signed)
        assert answer.headers["cache-control"] == "public, max-age=60"
        tag = {"If-None-Match": answer.headers["etag"]}
        assert (await ask(url, f"/catalogs/0x{wallet.hex()}/my%20models", headers=tag)).status == 304
        for creator, name, status in (
            (wallet.hex(), "my%20models", 400), ("0x12", "my%20models", 400), (f"0x{wallet.hex()}", "n" * 129, 400),
            (f"0x{wallet.hex()}", "other", 404), (f"0x{'00' * 20}", "my%20models", 404),
        ):  # fmt: skip
            assert (await ask(url, f"/catalogs/{creator}/{name}")).status == status


async def test_an_address_that_asks_too_much_is_told_how_long_to_wait(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"small", public=True)
    now = [0.0]
    limits = ContentLimits(requests_per_s=0.25, burst=3)
    async with listening(store, limits=limits, clock=lambda: now[0]) as url:
        answers = [await ask(url, f"/ipfs/{root}") for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].headers["retry-after"] == "4"
        now[0] += 4
        assert [(await ask(url, f"/ipfs/{root}")).status for _ in range(2)] == [200, 429]


async def test_streams_of_one_address_are_counted_and_given_back(store: Store, tmp_path: Path) -> None:
    data = seeded(24 * MIB)
    root = await put(store, tmp_path, data, public=True)
    limits = ContentLimits(requests_per_s=1e9, burst=10**9, streams=2)
    async with listening(store, limits=limits) as url, asyncio.timeout(60):
        async with connected(url) as (_, first), connected(url) as (_, second):
            for quiet in (first, second):  # readers that ask and then do not read
                quiet.write(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while (answer := await ask(url, f"/ipfs/{root}", method="HEAD")).status == 200:
                await asyncio.sleep(0.02)
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
        while (answer := await ask(url, f"/ipfs/{root}")).status == 429:
            await asyncio.sleep(0.02)
        assert (answer.status, answer.body) == (200, data)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"])
async def test_it_only_reads(store: Store, tmp_path: Path, method: str) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        for path in (f"/ipfs/{root}", f"/routing/v1/providers/{root}", "/catalogs/x/y"):
            answer = await ask(url, path, method=method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
