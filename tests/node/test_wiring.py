"""Whole nodes through the one door, in this process: what start must survive, and what it must say."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from market.errors import ContentUnavailable, NodeMisconfigured
from market.testing import ScriptedEngine
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"

pytestmark = pytest.mark.model


def settings_in(folder: Path, **changes) -> Settings:
    return Settings(
        data_dir=folder,
        **{
            "api": Api(port=0),
            "mesh": Mesh(listen=(LOOPBACK,)),
            "content": Content(host="127.0.0.1"),
            "engine": EngineSettings(workers=1, slots=2, context=512),
            **changes,
        },
    )


@asynccontextmanager
async def node_in(folder: Path, *, engine=None, **changes):
    async with open_node(settings_in(folder, **changes), engine=engine, prepared=[Q4_0]) as node:
        yield node


async def chat(node, key: str, text: str = "Hi", **more) -> dict:
    body = {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {key}"}
        async with session.post(f"{node.url}/v1/chat/completions", json=body, headers=headers) as response:
            return {"status": response.status, **await response.json()}


async def test_a_bare_node_serves_its_own_gateway_for_nothing(tmp_path):
    async with node_in(tmp_path / "a") as node:
        answer = await chat(node, node.first_api_key)
        assert answer["status"] == 200
        assert answer["octo"]["provider"] == node.peer
        assert answer["octo"]["amount"] == 0


async def test_a_node_that_is_closed_leaves_no_task_behind(tmp_path):
    before = asyncio.all_tasks()
    async with node_in(tmp_path / "a", engine=ScriptedEngine()) as node:
        assert (await chat(node, node.first_api_key))["status"] == 200
        await asyncio.sleep(0.2)  # whatever waits for news now waits
    assert asyncio.all_tasks() == before


async def test_a_prompt_that_begins_like_the_last_is_not_prefilled_again_and_metrics_say_so(tmp_path):
    async with node_in(tmp_path / "a") as node:
        long = "You are an octopus who answers briefly, with three hearts and nine brains. " * 12
        for question in ("One?", "Two?"):
            body = [{"role": "system", "content": long}, {"role": "user", "content": question}]
            assert (await chat(node, node.first_api_key, messages=body))["status"] == 200
        headers = {"Authorization": f"Bearer {node.first_api_key}"}
        async with aiohttp.request("GET", f"{node.url}/metrics", headers=headers) as response:
            lines = (await response.text()).splitlines()
        told = dict(line.split() for line in lines if not line.startswith("#"))
    assert float(told["octo_prefix_hits_total"]) == 1
    assert float(told["octo_prefix_cached_tokens_total"]) >= 128


async def test_a_model_file_that_changed_on_disk_is_found_out_and_made_again(tmp_path):
    async with node_in(tmp_path / "a"):
        pass
    weights = max((tmp_path / "a" / "models" / "files").iterdir(), key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.seek(40_000_000)
        byte = file.read(1)
        file.seek(40_000_000)
        file.write(bytes((byte[0] ^ 1,)))
    with capture_logs() as lines:
        async with node_in(tmp_path / "a") as node:
            assert node.ready
    assert "model_file_quarantined" in {line["event"] for line in lines}


async def test_a_second_process_in_the_same_folder_is_turned_away(tmp_path):
    async with node_in(tmp_path / "a", engine=ScriptedEngine()):
        with pytest.raises(NodeMisconfigured, match="process"):
            async with node_in(tmp_path / "a", engine=ScriptedEngine()):
                pass


async def test_two_nodes_buy_from_each_other_over_the_real_mesh(tmp_path):
    async with node_in(tmp_path / "seller") as seller:
        join = tuple(seller.addresses())
        async with node_in(tmp_path / "buyer", provide=False, join=join) as buyer:
            async with asyncio.timeout(60):
                while not buyer.catalog.on_offer():
                    await asyncio.sleep(0.05)
            answer = await chat(buyer, buyer.first_api_key)
            assert answer["octo"]["provider"] == seller.peer
            amount = answer["octo"]["amount"]
            assert amount > 0
            spent, earned = (await buyer.balances()).spent, 0
            async with asyncio.timeout(60):
                while (earned := (await seller.balances()).earned) != amount:
                    await asyncio.sleep(0.05)
            assert spent == earned == amount


async def test_without_anyone_to_ask_the_answer_says_so(tmp_path):
    async with node_in(tmp_path / "a", provide=False) as node:
        answer = await chat(node, node.first_api_key)
        assert answer["status"] == 404
        assert "nothing yet" in json.dumps(answer["error"])


async def test_a_model_that_nobody_offers_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr("node.providing.SOURCE_PATIENCE_S", 0.2)
    with pytest.raises(ContentUnavailable, match="nobody offered"):
        async with node_in(tmp_path / "a", model="bafyrei" + "a" * 52):
            pass


async def test_keys_money_and_receipts_outlive_a_restart(tmp_path):
    async with node_in(tmp_path / "a") as node:
        peer, key = node.peer, node.first_api_key
        node.keys.keep()
        receipt = (await chat(node, key))["octo"]["receipt"]
    async with node_in(tmp_path / "a") as node:
        assert node.peer == peer
        assert node.first_api_key is None
        assert node.check_api_key(key)
        record = await node.receipts.receipt_by_cid(receipt)
        assert record is not None
        assert record.receipt.cid() == receipt
