"""Two whole nodes, a provider that keeps answers and a gateway with two API keys: neither price nor receipt tells one
user what another asked, whichever way they ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from keeper import ANSWER, EMBED, PUBLIC, bought, keeper, settled

from inference.models.draft import Wishes
from market.caching import Caching
from market.testing_work import ByteMeter, HashEmbedder
from node.api_keys import make_api_key
from node.folder import open_folder
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, RoutingSettings, Settings
from node.wiring import open_node
from tests.inference import onnx_kit as kit

MODEL = "model"


# ---- the buyer alone -----------------------------------------------------------------------------------


async def test_an_answer_is_told_again_to_the_user_who_asked_for_it_and_to_no_other(shop):
    bob, alice = keeper(shop), shop.buyer()
    told = []
    for whose in ("ann", "ben", "ann", "ben", ""):
        text, purchase = await alice.ask(**PUBLIC, whose=whose)
        await settled(bob)
        assert text == ANSWER
        told.append(bool(purchase.outcome.cached))
    assert told == [False, False, True, True, False]


async def test_work_is_told_again_to_the_user_who_asked_for_it_and_to_no_other(shop):
    bob, alice = keeper(shop, engine=HashEmbedder(), meter=ByteMeter()), shop.buyer()
    told = []
    for whose in ("ann", "ben", "ann"):
        _, outcome = await bought(alice, replace(EMBED, whose=whose))
        await settled(bob)
        told.append(bool(outcome.cached))
    assert told == [False, False, True]


async def test_who_shares_shares_with_the_other_users_too(shop):
    bob, alice = keeper(shop), shop.buyer(caching=Caching.SHARED)
    await alice.ask(**PUBLIC, whose="ann")
    await settled(bob, kept=1)
    _, purchase = await alice.ask(**PUBLIC, whose="ben")
    assert purchase.outcome.cached


# ---- two nodes and two keys ----------------------------------------------------------------------------


class Gateway:
    """A client's node, by its HTTP face, and the one that it buys of; its users are `ann` and `ben`."""

    def __init__(self, provider: RunningNode, http: aiohttp.ClientSession, ann: str, ben: str) -> None:
        self.ann, self.ben = ann, ben
        self._provider = provider
        self._http = http

    async def kept(self, answers: int) -> None:
        """Until the provider was paid for so many different answers, and keeps them."""
        cache = self._provider.answers.cache
        assert cache is not None
        async with asyncio.timeout(60):
            while len(cache) < answers:
                await asyncio.sleep(0.02)

    async def send(self, key: str, path: str, body: Any = None, form: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        method = "GET" if body is form is None else "POST"
        async with self._http.request(method, path, json=body, data=form, headers=headers) as response:
            text = await response.text()
            assert response.status in (200, 202), text
            return json.loads(text) if response.content_type == "application/json" else text

    async def until(self, key: str, path: str, is_over: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(60):
            while not is_over(said := await self.send(key, path)):
                await asyncio.sleep(0.05)
        return said


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",), dht=False),
        content=Content(host="127.0.0.1"),
        **changes,
    )


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    files = kit.write_model(tmp_path / MODEL, model_onnx=kit.pooling_embedder(), tokenizer_json=kit.tokenizer_json())
    async with AsyncExitStack() as stack:
        async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
            added = await node.desk.add(str(files), wishes=Wishes(modality="embedding"))
        keeps = EngineSettings(response_cache="1 MiB")
        serving = settings_in(tmp_path / "p", model=added["model"], engine=keeps)
        provider = await stack.enter_async_context(open_node(serving))
        with open_folder(tmp_path / "c") as held:
            keys = make_api_key(held), make_api_key(held)
        joins = settings_in(
            tmp_path / "c", provide=False, join=(provider.addresses()[0],), routing=RoutingSettings(cache="own")
        )
        client = await stack.enter_async_context(open_node(joins))
        http = await stack.enter_async_context(aiohttp.ClientSession(client.url))
        async with asyncio.timeout(60):
            while not client.catalog.on_offer():
                await asyncio.sleep(0.05)
        yield Gateway(provider, http, *keys)


async def at_once(gateway: Gateway, key: str, word: str, cache: str) -> str:
    body = {"model": MODEL, "input": word, "octo": {"privacy": "public", "cache": cache}}
    return (await gateway.send(key, "/v1/embeddings", body))["octo"]["cached"]


async def in_a_batch(gateway: Gateway, key: str, word: str, cache: str) -> str:
    body = {"model": MODEL, "input": word, "octo": {"privacy": "public", "cache": cache}}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", json.dumps(line).encode(), filename="in.jsonl")
    file = await gateway.send(key, "/v1/files", form=form)
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = await gateway.send(key, "/v1/batches", wanted)
    done = await gateway.until(key, f"/v1/batches/{batch['id']}", lambda batch: batch["status"] == "completed")
    answered = json.loads(await gateway.send(key, f"/v1/files/{done['output_file_id']}/content"))
    return answered["response"]["body"]["octo"]["cached"]


async def in_the_queue(gateway: Gateway, key: str, word: str, cache: str) -> str:
    body = {"model": MODEL, "input": word, "work": "embed", "privacy": "public", "cache": cache}
    task = await gateway.send(key, "/api/v1/inference", body)
    await gateway.until(key, f"/api/v1/inference/{task['id']}", lambda task: task["status"] == "done")
    return (await gateway.send(key, f"/api/v1/inference/{task['id']}/content"))["octo"]["cached"]


Way = Callable[[Gateway, str, str, str], Awaitable[str]]


@pytest.mark.net
@pytest.mark.parametrize("way", [at_once, in_a_batch, in_the_queue])
async def test_a_user_of_a_gateway_finds_its_own_answers_alone_unless_it_shares(gateway: Gateway, way: Way) -> None:
    ann, ben = gateway.ann, gateway.ben
    told = []
    for key, kept in ((ann, 1), (ben, 2), (ann, 2), (ben, 2)):
        told.append(bool(await way(gateway, key, "red", "own")))
        await gateway.kept(kept)
    assert told == [False, False, True, True]
    assert not await way(gateway, ann, "green", "shared")
    await gateway.kept(3)
    assert await way(gateway, ben, "green", "shared")


@pytest.mark.net
async def test_whichever_way_a_user_asked_its_answer_is_found_in_another(gateway: Gateway) -> None:
    assert not await in_the_queue(gateway, gateway.ann, "red", "own")
    await gateway.kept(1)
    assert await at_once(gateway, gateway.ann, "red", "own")
    assert await in_a_batch(gateway, gateway.ann, "red", "own")
