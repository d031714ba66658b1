"""`octo-node start --share`: a server that runs already, offered on the mesh and billed for what came."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai
import pytest
from aiohttp import web

from market.errors import NodeMisconfigured
from node.settings import Api, Content, EngineSettings, Mesh, Settings, Share
from node.wiring import open_node

pytestmark = pytest.mark.net

ANSWER = ["Octopuses ", "have ", "three hearts", " \U0001f419."]


def settings_in(folder: Path, **changes) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(slots=2),
        **changes,
    )


class Upstream:
    """An OpenAI-compatible server, as small as one can be, that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.keys: set[str] = set()

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "octo-small", "object": "model", "owned_by": "me"}]}
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization", ""))
        self.asked.append(await request.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in ANSWER:
            await response.write(
                _event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            )
        await response.write(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(told: dict) -> bytes:
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "octo-small", **told}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@asynccontextmanager
async def serving(server: Upstream, port: int = 0):
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        server.port = runner.addresses[0][1]
        server.url = f"http://127.0.0.1:{server.port}/v1"
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def upstream():
    async with serving(Upstream()) as server:
        yield server


async def test_a_server_that_runs_already_is_bought_from_over_the_mesh(tmp_path: Path, upstream) -> None:
    share = Share(url=upstream.url, model="octo-small", key="sk-upstream")
    async with open_node(settings_in(tmp_path / "p", share=share)) as provider:
        joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
        async with open_node(joined) as client:
            async with asyncio.timeout(60):
                while not client.catalog.on_offer():
                    await asyncio.sleep(0.05)
            (offered,) = client.catalog.on_offer()
            assert offered.name == "octo-small"
            async with openai.AsyncOpenAI(
                base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
            ) as sdk:
                answer = await sdk.chat.completions.create(
                    model="octo-small", messages=[{"role": "user", "content": "How many hearts?"}], max_tokens=64
                )
            assert answer.choices[0].message.content == "".join(ANSWER)
            record = await client.receipts.receipt_by_cid(answer.model_extra["octo"]["receipt"])
            assert record is not None
            receipt = record.receipt.read()
            # The receipt says that somebody's server answered, and cites no weights: nobody can know them.
            assert receipt.engine == "openai_http/attached/me"
            assert receipt.tokens_out == -(-len("".join(ANSWER).encode()) // 3)
            shown = await provider.desk.view.show("octo-small")
            assert [file["role"] for file in shown["files"]] == ["config"]
            assert shown["format"] == "remote"
    assert upstream.keys == {"Bearer sk-upstream"}
    assert upstream.asked[-1]["messages"] == [{"role": "user", "content": "How many hearts?"}]


async def test_prompts_that_leave_the_host_are_public_ones_only(tmp_path: Path, upstream) -> None:
    share = Share(url=upstream.url, model="octo-small", forwards=True)
    async with open_node(settings_in(tmp_path / "p", share=share)) as provider:
        (offer,) = [checked.offer for checked in provider.offers()]
        assert [str(level) for level in offer.privacy] == ["public"]


async def test_a_model_that_the_server_does_not_have_is_told_with_those_that_it_has(tmp_path: Path, upstream) -> None:
    share = Share(url=upstream.url, model="octo-large")
    with pytest.raises(NodeMisconfigured) as refused:
        async with open_node(settings_in(tmp_path / "p", share=share)):
            pass
    assert "octo-small" in refused.value.next_step


async def test_a_server_that_goes_away_is_off_the_offers_until_it_is_back(tmp_path: Path) -> None:
    server = Upstream()

    async def until(offered: int) -> None:
        async with asyncio.timeout(60):
            while len(provider.providing.offers()) != offered:
                await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        async with serving(server):
            share = Share(url=server.url, model="octo-small")
            provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", share=share)))
            await until(1)
        await until(0)
        async with asyncio.timeout(5):
            while any(checked.offer.models for checked in provider.offers()):  # the next one goes out at once
                await asyncio.sleep(0.05)
        async with serving(server, server.port):
            await until(1)
            assert provider.status()["model_cache"]["models_offered"] == 1
