"""What a node says about itself, and that docs/api.md says the same routes."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from node.api.server import create_api
from verifier.receipt_file import parse

DOCS = Path(__file__).resolve().parents[3] / "docs" / "api.md"


async def get(http: Any, path: str, status: int = 200) -> Any:
    async with http.get(path) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def test_health_needs_no_key_and_says_no_more_than_it_must(http: Any, node: Any) -> None:
    assert await get(http, "/healthz") == {"status": "ok", "ready": True}
    node.ready = False
    assert await get(http, "/healthz") == {"status": "ok", "ready": False}
    assert node.checked == []


async def test_status_is_what_the_node_says(http: Any, known: Any) -> None:
    status = await get(http, "/api/v1/status")
    assert status["peer"] == known.peer
    assert status["odd"] == {"78": "01"}
    assert status["tags"] == ["a", "b"]


async def test_offers_come_with_those_that_were_refused(http: Any, known: Any) -> None:
    said = await get(http, "/api/v1/offers")
    (offer,) = said["offers"]
    assert offer["peer"] == known.peer
    assert offer["wallet"].startswith("0x")
    assert offer["privacy"] == ["public", "shared"]
    assert offer["models"][0]["price_out"] == 3 * 10**17
    assert said["refused"][0]["reason"] == "the offer carries another peer's binding."
    assert offer["unvetted"] is None


async def test_an_offer_says_why_it_gets_public_prompts_alone(http: Any, node: Any) -> None:
    node.chain = SimpleNamespace(stakes=SimpleNamespace(vet=lambda checked: f"{checked.offer.tier} without a stake"))
    (offer,) = (await get(http, "/api/v1/offers"))["offers"]
    assert offer["unvetted"] == f"{offer['tier']} without a stake"


async def test_models_and_peers_are_listed(http: Any, known: Any) -> None:
    (model,) = (await get(http, "/api/v1/models"))["models"]
    assert (model["name"], model["model"], model["context"]) == ("small", known.model, 2048)
    (peer,) = (await get(http, "/api/v1/peers"))["peers"]
    assert peer["peer"] == known.peer


async def test_the_wallet_shows_addresses_balances_and_channels(http: Any) -> None:
    wallet = await get(http, "/api/v1/wallet")
    assert wallet["rail"] == "ledger"
    assert re.fullmatch(r"0x[0-9a-fA-F]{40}", wallet["wallet"])
    assert wallet["wallet"] != wallet["receipt_key"]
    assert wallet["balances"] == {
        "granted": 100 * 10**18, "available": 95 * 10**18, "locked": 5 * 10**18, "spent": 0, "earned": 0,
    }  # fmt: skip
    assert wallet["channels"][0]["deposit"] == 5 * 10**18


async def test_receipts_are_listed_up_to_a_limit(http: Any, node: Any) -> None:
    (receipt,) = (await get(http, "/api/v1/receipts"))["receipts"]
    assert receipt["receipt"] == node.record.receipt.cid()
    assert (receipt["role"], receipt["final"], receipt["finish"]) == ("client", True, "stop")
    assert (receipt["amount"], receipt["price_in"]) == (7 * 10**11, 10**17)
    assert receipt["unit"] == "tokens"
    node.record = replace(node.record, pieces=True)
    assert (await get(http, "/api/v1/receipts"))["receipts"][0]["unit"] == "units"
    assert (await get(http, "/api/v1/receipts?limit=1"))["receipts"]
    for limit in ("0", "501", "-1", "x", "", "1e2", "9" * 5000 + "", "%C2%B2"):
        error = (await get(http, f"/api/v1/receipts?limit={limit}", 400))["error"]
        assert error["param"] == "limit"


async def test_a_receipt_is_the_file_that_can_be_checked_offline(http: Any, node: Any) -> None:
    cid = node.record.receipt.cid()
    async with http.get(f"/api/v1/receipts/{cid}") as response:
        assert response.status == 200
        assert response.content_type == "application/vnd.ipld.dag-cbor"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{cid}.receipt"'
        file = parse(await response.read())
    assert file.receipt == node.record.receipt
    assert file.checksum() == file.check


async def test_a_receipt_that_we_do_not_hold_is_not_found(http: Any, known: Any) -> None:
    error = (await get(http, f"/api/v1/receipts/{known.receipt}", 404))["error"]
    assert error["code"] == "receipt_not_found"
    for cid in ("x", "bafy", '"%0d%0aSet-Cookie:x', "b" + "a" * 58, "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"):
        assert (await get(http, f"/api/v1/receipts/{cid}", 400))["error"]["code"] == "invalid_encoding"


async def test_requests_tokens_and_first_tokens_are_counted(http: Any, known: Any) -> None:
    async with http.post("/v1/chat/completions", json=known.question) as response:
        assert response.status == 200
    async with http.get("/v1/models/no-such-model") as response:
        assert response.status == 404
    async with http.get("/no/such/route") as response:
        assert response.status == 404
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'octo_http_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'octo_http_requests_total{route="/v1/models/{id}",status="404"} 1.0' in text
    assert 'octo_http_requests_total{route="",status="404"} 1.0' in text
    assert 'octo_tokens_total{direction="out"} 3.0' in text
    assert "octo_first_token_seconds_count 1.0" in text
    assert "no-such" not in text


async def test_what_is_not_there_has_openais_error_shape(http: Any) -> None:
    assert (await get(http, "/no/such/route", 404))["error"]["code"] == "route_not_found"
    async with http.post("/v1/models") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        assert (await response.json())["error"]["message"] == "this route takes GET, HEAD."
        assert (await response.json())["error"]["code"] == "method_not_allowed"


def test_the_docs_name_every_route_and_no_other(node: Any) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in create_api(node).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    told = set(re.findall(r"^\| `([A-Z]+)` \| `(/[^`]*)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert told == routes


async def test_the_docs_name_every_metric_and_no_other(http: Any) -> None:
    async with http.get("/metrics") as response:
        families = re.findall(r"^# TYPE (\S+) (\w+)$", await response.text(), re.MULTILINE)
    measured = {name for name, _ in families if not name.endswith("_created")}
    section = DOCS.read_text(encoding="utf-8").split("\n## Metrics\n")[1]
    assert set(re.findall(r"`(octo_\w+)`", section)) == measured


async def test_what_the_nodes_caches_did_is_measured(http: Any) -> None:
    async with http.get("/metrics") as response:
        text = await response.text()
    assert "octo_prefix_hits_total 3.0" in text
    assert "octo_cache_hits_total 0.0" in text
