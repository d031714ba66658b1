"""What goes wrong in a whole node with a real engine, as its clients see it: nobody waits for ever or is told wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Limits, Mesh, Settings
from node.wiring import open_node

pytestmark = [pytest.mark.model, pytest.mark.net]

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
GREEDY = 24
ENGINE = EngineSettings(workers=1, slots=8, context=512)


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        **{"engine": ENGINE, **changes},
    )


@dataclass(frozen=True)
class Told:
    """`pieces` as they were streamed, or one; `error` is the API's, if it ended with one."""

    status: int
    pieces: tuple[str, ...] = ()
    error: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@asynccontextmanager
async def session_of(node: RunningNode) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {node.first_api_key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(node.url, headers=headers, connector=connector) as session:
        yield session


async def chat(
    session: aiohttp.ClientSession, words: str, heard: Callable[[], None] = lambda: None, **more: Any
) -> Told:
    """`heard` is called with each event of a stream."""
    body = {"model": "default", "messages": [{"role": "user", "content": words}], **more}
    pieces: list[str] = []
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.content_type != "text/event-stream":
            told = await response.json()
            if "error" in told:
                return Told(response.status, error=told["error"])
            return Told(response.status, tuple(choice["message"]["content"] for choice in told["choices"]))
        async for line in response.content:
            if line.startswith(b"data: {"):
                heard()
                event = json.loads(line[6:])
                if "error" in event:
                    return Told(response.status, tuple(pieces), event["error"])
                pieces += [choice["delta"].get("content") or "" for choice in event["choices"]]
    return Told(response.status, tuple(pieces))


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningNode]:
    async with open_node(settings_in(tmp_path_factory.mktemp("node")), prepared=[Q4_0]) as running:
        yield running


async def all_up(node: RunningNode) -> int:
    async with asyncio.timeout(60):
        while not (pids := node.providing.worker_pids()):
            await asyncio.sleep(0.02)
    return pids[0]


async def test_eight_streams_survive_kill_9_of_their_worker_and_are_told_of_a_second(node: RunningNode) -> None:
    prompts = [f"Tell me a story about {n} cats." for n in range(8)]
    async with session_of(node) as session:

        async def all_of_them(heard: Callable[[], None] = lambda: None) -> list[Told]:
            asked = [chat(session, words, heard, temperature=0, max_tokens=64, stream=True) for words in prompts]
            async with asyncio.timeout(120):
                return await asyncio.gather(*asked)

        async def killed(times: int) -> list[Told]:
            spoken = asyncio.Event()
            asking = asyncio.create_task(all_of_them(spoken.set))
            async with asyncio.timeout(120):
                await spoken.wait()
                for _ in range(times):
                    pid = await all_up(node)
                    while not node.providing.load().running:
                        await asyncio.sleep(0.005)
                    os.kill(pid, signal.SIGKILL)
                    while node.providing.worker_pids():
                        await asyncio.sleep(0.005)
            return await asking

        quiet = await all_of_them()
        assert all(told.error is None and told.text for told in quiet)
        once = await killed(1)
        assert [told.text for told in once] == [told.text for told in quiet]
        twice = await killed(2)
        for told, whole in zip(twice, quiet, strict=True):
            assert whole.text.startswith(told.text)
            assert told.error is None or "SIGKILL" in told.error["message"]
        assert any(told.error for told in twice)
        await all_up(node)
        assert [told.text for told in await all_of_them()] == [told.text for told in quiet]
    assert (node.providing.load().running, node.providing.load().waiting) == (0, 0)


async def test_half_characters_of_a_model_become_signs_that_something_is_missing(node: RunningNode) -> None:
    """A model may say any bytes: here it is made to begin characters, of which it ends few."""
    (serving,) = node.providing.served().values()
    single = {byte: token for token in range(2_000) if len(byte := serving.tokenizer.token_bytes(token)) == 1}
    bias = {str(single[start]): 100 for start in (b"\xf0", b"\xe2", b"\xc3")} | {str(single[b"\x98"]): 88}
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Say it."}],
        "max_tokens": 48,
        "temperature": 2.0,
        "seed": 3,
        "logit_bias": bias,
        "logprobs": True,
    }
    async with session_of(node) as session:
        streamed = await chat(session, "Say it.", **(body | {"stream": True, "logprobs": False}))
        async with session.post("/v1/chat/completions", json=body) as response:
            (choice,) = (await response.json())["choices"]
    said = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert len(said) == 48
    assert streamed.text == choice["message"]["content"] == said.decode("utf-8", "replace")
    assert "\ufffd" in streamed.text


async def test_a_schema_that_nothing_satisfies_or_nobody_can_keep_ends_with_the_reason(node: RunningNode) -> None:
    def held_to(schema: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}

    odd = (
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"enum": []},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        {"type": "string", "pattern": "(a+)+$(?<=b)"},
        {"not": {}},
        {"type": "array", "minItems": 10**9},
    )
    async with session_of(node) as session:
        for schema in odd:
            async with asyncio.timeout(60):
                told = await chat(session, "Go.", max_tokens=16, response_format=held_to(schema))
            assert told.error is not None, schema
            assert told.status == 400 and told.error["code"] == "invalid_request", (schema, told.error)
        assert (await chat(session, "Go.", max_tokens=4)).error is None


async def test_a_client_that_asks_for_everything_does_not_keep_another_waiting(tmp_path: Path) -> None:
    """Two gateways at one provider: many tasks of the one, then a single task of the other."""
    small = EngineSettings(workers=1, slots=4, context=512)
    async with open_node(settings_in(tmp_path / "p", engine=small), prepared=[Q4_0]) as provider:
        join = (provider.addresses()[0],)
        greedy = open_node(settings_in(tmp_path / "g", provide=False, join=join))
        modest = open_node(settings_in(tmp_path / "m", provide=False, join=join))
        async with greedy as one, modest as other, session_of(one) as mine, session_of(other) as yours:
            for gateway in (one, other):
                async with asyncio.timeout(60):
                    while not gateway.catalog.on_offer():
                        await asyncio.sleep(0.05)
            for session in (mine, yours):  # both have paid before
                assert (await chat(session, "Hi", max_tokens=1)).error is None
            ended = 0

            async def ask(number: int) -> None:
                nonlocal ended
                told = await chat(mine, f"Count from {number}.", max_tokens=16, temperature=0)
                assert told.error is None
                ended += 1

            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for number in range(GREEDY):
                    group.create_task(ask(number))
                while ended < small.slots:
                    await asyncio.sleep(0.02)
                before = ended
                assert (await chat(yours, "Hello?", max_tokens=16, temperature=0)).error is None
                overtaken = ended - before
            assert overtaken <= 2 * small.slots, f"{overtaken} tasks of who came first went before"


@pytest.mark.heavy
async def test_a_thousand_tiny_requests_are_each_answered_or_told_to_come_again(node: RunningNode) -> None:
    limit = Limits().requests
    ends: dict[int, int] = {}
    async with session_of(node) as session:

        async def ask(number: int) -> None:
            told = await chat(session, str(number), max_tokens=1)
            assert (told.error is None) == (told.status == 200)
            ends[told.status] = ends.get(told.status, 0) + 1

        async with asyncio.timeout(200):
            for start in range(0, 1_000, 2 * limit):
                await asyncio.gather(*(ask(number) for number in range(start, min(1_000, start + 2 * limit))))
    assert sum(ends.values()) == 1_000 and set(ends) <= {200, 429}
    assert ends[200] >= 1_000 // 3
    assert (node.providing.load().running, node.providing.load().waiting) == (0, 0)
