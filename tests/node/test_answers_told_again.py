"""Whole nodes: what the settings say of kept answers is what the gateway, the API and the files do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from market.testing import ScriptedEngine
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node

pytestmark = pytest.mark.model

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"


def opened(folder: Path, *, keeps: str = "1 MiB"):
    settings = Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",), dht=False),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(response_cache=keeps),
    )
    return open_node(settings, engine=ScriptedEngine(), prepared=[Q4_0])


async def asked(node, token: str, method: str, path: str, **body) -> dict:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http,
        http.request(method, node.url + path, json=body or None) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def cached(node, token: str, **more) -> str:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **more}
    said = await asked(node, token, "POST", "/v1/chat/completions", **{"octo": {"privacy": "public"}, **body})
    assert said["choices"][0]["message"]["content"].startswith("X")
    return said["octo"]["cached"]


def told(text: str) -> str:
    return Path(text).read_text(encoding="utf-8").strip()


async def test_a_node_tells_answers_again_through_a_restart_until_it_is_asked_to_forget(tmp_path):
    folder = tmp_path / "a"
    async with opened(folder) as node:
        key = node.first_api_key
        node.keys.keep()
        offer = node.providing.offers()[0]
        assert (len(offer.modes), offer.mode_percent, offer.cached_percent) == (3, (100, 60, 40), 10)
        assert await cached(node, key) == ""
        while not (await asked(node, key, "GET", "/api/v1/answers"))["keeps"]["answers"]:  # once it is paid
            await asyncio.sleep(0.02)
        assert (await cached(node, key)).startswith("bafy")
        assert await cached(node, key, octo={"privacy": "shared"}) == ""
        assert await cached(node, key, temperature=0.7) == ""
        facts = await asked(node, key, "GET", "/api/v1/answers")
        assert (facts["keeps"]["answers"], facts["keeps"]["hits"]) == (1, 1)
        assert facts["bought"] == {"asked": 2, "told_again": 1}
    async with opened(folder) as node:
        assert await cached(node, key) != ""
        owner = told(node.keys.token_file)
        assert (await asked(node, owner, "POST", "/api/v1/answers/forget"))["forgotten"][node.peer] == 1
        assert list((folder / "cache" / "answers").iterdir()) == []
        assert await cached(node, key) == ""


async def test_by_default_nothing_is_kept(tmp_path):
    async with opened(tmp_path / "a", keeps="0") as node:
        assert node.providing.offers()[0].cached_percent == 100
        assert [await cached(node, node.first_api_key) for _ in range(2)] == ["", ""]
        assert (await asked(node, node.first_api_key, "GET", "/api/v1/answers"))["keeps"] is None
