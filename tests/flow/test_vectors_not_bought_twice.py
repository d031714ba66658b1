"""Two whole nodes and OpenAI's own client: a text that was embedded is not bought again, until its user says forget."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from inference.models.draft import Wishes
from node.api_keys import make_api_key
from node.folder import open_folder
from node.running import RunningNode
from node.settings import Api, Content, Mesh, RoutingSettings, Settings
from node.wiring import open_node
from tests.inference import onnx_kit as kit

pytestmark = pytest.mark.net

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MODEL = "model"


def settings_in(folder: Path, **changes: Any) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=(LOOPBACK,), dht=False),
        content=Content(host="127.0.0.1"),
        **changes,
    )


class Town:
    """A provider that embeds, and a client's folder with two API keys: `ann` and `bob`."""

    def __init__(self, provider: RunningNode, folder: Path) -> None:
        self.provider = provider
        self.folder = folder
        with open_folder(folder) as held:
            self.ann, self.bob = make_api_key(held), make_api_key(held)

    def settings(self, **routing: Any) -> Settings:
        return settings_in(
            self.folder,
            provide=False,
            join=(self.provider.addresses()[0],),
            routing=RoutingSettings(**{"embedding_cache": "1 MiB", **routing}),
        )

    @asynccontextmanager
    async def client(self, **routing: Any) -> AsyncIterator[Client]:
        async with open_node(self.settings(**routing)) as node, aiohttp.ClientSession(node.url) as http:
            async with asyncio.timeout(60):
                while not node.catalog.on_offer():
                    await asyncio.sleep(0.05)
            yield Client(node, http)


class Client:
    def __init__(self, node: RunningNode, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.http = http

    async def embed(self, key: str, *inputs: Any, **more: Any) -> Any:
        """What OpenAI's client makes of it, with `octo` as an attribute."""
        async with openai.AsyncOpenAI(base_url=f"{self.node.url}/v1", api_key=key, max_retries=0) as sdk:
            return await sdk.embeddings.create(model=MODEL, input=list(inputs), **more)

    async def send(self, key: str, method: str, path: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.request(method, path, json=body or None, headers=headers) as response:
            text = await response.text()
            assert response.status == 200, text
            return json.loads(text) if response.content_type == "application/json" else text

    def owner(self) -> str:
        return self.node.keys.token_file.read_text(encoding="utf-8").strip()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    files = kit.write_model(tmp_path / MODEL, model_onnx=kit.pooling_embedder(), tokenizer_json=kit.tokenizer_json())
    async with AsyncExitStack() as stack:
        async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
            added = await node.desk.add(str(files), wishes=Wishes(modality="embedding"))
        provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model=added["model"])))
        yield Town(provider, tmp_path / "c")


def vectors(answer: Any) -> list[list[float]]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def paid(answer: Any) -> tuple[int, int]:
    """(tokens paid, vectors kept)"""
    octo = answer.octo
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == octo["tokens_in"]
    assert bool(octo["amount"]) == bool(octo["receipt"]) == bool(answer.usage.prompt_tokens)
    return answer.usage.prompt_tokens, octo["kept"]["vectors"]


async def test_only_what_is_new_is_bought_and_the_rest_cites_what_it_was_bought_with(town: Town) -> None:
    """Every word here is three tokens: [CLS], itself, [SEP]."""
    async with town.client() as client:
        first = await client.embed(town.ann, "red", "green", "blue")
        assert paid(first) == (9, 0)
        balance = (await client.node.balances()).spent
        second = await client.embed(town.ann, "blue", "octo", "red", "octo")
        assert paid(second) == (3, 2)
        assert (await client.node.balances()).spent - balance == second.octo["amount"]
        red, _, blue = vectors(first)
        told = vectors(second)
        assert (told[0], told[2], told[1]) == (blue, red, told[3])
        assert second.octo["kept"]["receipts"] == {first.octo["receipt"]: [[0, 2], [2, 0]]}
        record = await client.node.receipts.receipt_by_cid(first.octo["receipt"])
        assert record is not None
        for index, place in second.octo["kept"]["receipts"][first.octo["receipt"]]:
            said = struct.pack(f"<{kit.WIDTH}f", *told[index])
            assert record.text_digests[place] == hashlib.sha256(said).digest()


async def test_what_is_all_known_costs_nothing_in_either_encoding_and_after_a_restart(town: Town) -> None:
    async with town.client() as client:
        first = await client.embed(town.ann, "red", "green")
        receipts = len(await client.node.receipts.latest_receipts(100))
        again = await client.embed(town.ann, "green", "red")
        assert paid(again) == (0, 2)
        assert vectors(again) == vectors(first)[::-1]
        assert len(await client.node.receipts.latest_receipts(100)) == receipts
    async with town.client() as client:
        headers = {"Authorization": f"Bearer {town.ann}"}
        body = {"model": MODEL, "input": "red", "encoding_format": "base64", "user": "someone"}
        async with client.http.post("/v1/embeddings", json=body, headers=headers) as response:
            (item,) = (await response.json())["data"]
            assert response.headers["x-octo-amount"] == "0"
            assert "x-octo-receipt" not in response.headers
        numbers = struct.unpack(f"<{kit.WIDTH}f", base64.b64decode(item["embedding"]))
        assert list(numbers) == vectors(first)[0]
        metrics = await client.send(town.ann, "GET", "/metrics")
        assert "octo_embedding_cache_hits_total 1.0" in metrics
        assert "octo_embedding_cache_misses_total 0.0" in metrics
        assert float(metrics.split("\nocto_embedding_cache_bytes ")[1].split("\n")[0]) > 0


async def test_token_ids_of_the_models_own_are_the_text_that_they_are_of(town: Town) -> None:
    ids = [kit.WORDS.index(word) for word in ("[CLS]", "red", "[SEP]")]
    async with town.client() as client:
        text = await client.embed(town.ann, "red")
        read = await client.embed(town.ann, ids, ids, ids[:2])
        assert paid(read) == (5, 0)
        assert vectors(read)[0] == vectors(read)[1] == vectors(text)[0] != vectors(read)[2]
        assert paid(await client.embed(town.ann, ids)) == (0, 1)
        with pytest.raises(openai.BadRequestError, match=f"vocabulary ends at {len(kit.WORDS)}"):
            await client.embed(town.ann, [len(kit.WORDS)])


async def test_dimensions_and_privacy_are_bought_for_themselves(town: Town) -> None:
    async with town.client() as client:
        assert paid(await client.embed(town.ann, "red")) == (3, 0)
        short = await client.embed(town.ann, "red", dimensions=4)
        assert (paid(short), len(vectors(short)[0])) == ((3, 0), 4)
        assert paid(await client.embed(town.ann, "red", dimensions=4)) == (0, 1)
        public = {"octo": {"privacy": "public"}}
        assert paid(await client.embed(town.ann, "red", extra_body=public)) == (3, 0)
        off = {"octo": {"cache": "off"}}
        assert paid(await client.embed(town.ann, "red", extra_body=off)) == (3, 0)
        assert paid(await client.embed(town.ann, "gone", extra_body=off)) == paid(await client.embed(town.ann, "gone"))


async def test_one_user_pays_for_what_another_had_embedded_unless_all_share(town: Town) -> None:
    async with town.client() as client:
        assert paid(await client.embed(town.ann, "red")) == (3, 0)
        assert paid(await client.embed(town.bob, "red")) == (3, 0)
        assert paid(await client.embed(town.bob, "red")) == (0, 1)
    async with town.client(embedding_cache_shared=True) as client:
        assert paid(await client.embed(town.ann, "green")) == (3, 0)
        assert paid(await client.embed(town.bob, "green")) == (0, 1)


async def test_a_user_forgets_its_own_and_the_owner_everything(town: Town) -> None:
    async with town.client() as client:
        for key in (town.ann, town.bob):
            await client.embed(key, "red", "green")
        assert await client.send(town.ann, "DELETE", "/v1/embeddings") == {"deleted": 2}
        assert paid(await client.embed(town.ann, "red")) == (3, 0)
        assert paid(await client.embed(town.bob, "red")) == (0, 1)
        only = await client.send(client.owner(), "POST", "/api/v1/answers/forget?only=vectors")
        assert only == {"forgotten": {"vectors": 3}, "not_reached": {}}
        assert paid(await client.embed(town.bob, "red")) == (3, 0)
        assert (await client.send(client.owner(), "POST", "/api/v1/answers/forget"))["forgotten"]["vectors"] == 1
        assert paid(await client.embed(town.bob, "red")) == (3, 0)
        facts = (await client.send(town.ann, "GET", "/api/v1/answers"))["vectors"]
        assert (facts["vectors"], facts["forgotten"], facts["shared"]) == (1, 6, False)


async def test_by_default_nothing_is_kept_and_what_stands_twice_is_bought_once(town: Town) -> None:
    async with town.client(embedding_cache=0) as client:
        for _ in range(2):
            answer = await client.embed(town.ann, "red", "green", "red")
            assert paid(answer) == (6, 0)
            assert vectors(answer)[0] == vectors(answer)[2] != vectors(answer)[1]
        assert (await client.send(town.ann, "GET", "/api/v1/answers"))["vectors"] is None
        assert await client.send(town.ann, "DELETE", "/v1/embeddings") == {"deleted": 0}
        assert not (town.folder / "cache" / "vectors.db").exists()


async def test_the_lines_of_a_batch_find_what_their_user_had_embedded(town: Town) -> None:
    lines = [
        {"custom_id": word, "method": "POST", "url": "/v1/embeddings", "body": {"model": MODEL, "input": word}}
        for word in ("red", "green")
    ]
    async with town.client() as client:
        await client.embed(town.ann, "red")
        for key, found in ((town.bob, {"red": 0, "green": 0}), (town.ann, {"red": 1, "green": 0})):
            async with openai.AsyncOpenAI(base_url=f"{client.node.url}/v1", api_key=key, max_retries=0) as sdk:
                content = "\n".join(map(json.dumps, lines)).encode()
                file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
                batch = await sdk.batches.create(
                    input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
                )
                async with asyncio.timeout(60):
                    while batch.status != "completed":
                        await asyncio.sleep(0.05)
                        batch = await sdk.batches.retrieve(batch.id)
                said = (await sdk.files.content(str(batch.output_file_id))).text.splitlines()
            answered = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, said)}
            assert {word: body["octo"]["kept"]["vectors"] for word, body in answered.items()} == found


DIES = """
import asyncio, sys
from node.settings import Settings
from node.wiring import open_node

async def main():
    async with open_node(Settings.model_validate_json(sys.argv[1])) as node:
        while not node.catalog.on_offer():
            await asyncio.sleep(0.05)
        print(node.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.processes
async def test_after_kill_9_whatever_was_answered_is_known_and_whole(town: Town) -> None:
    chosen = town.settings().model_dump_json(exclude_none=True, exclude_unset=True)
    command = [sys.executable, "-c", DIES, chosen]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = await asyncio.to_thread(lambda: next(line for line in lines if line.startswith("http")))
        answered = asyncio.Queue[tuple[list[str], list[list[float]]]]()

        async def ask(sdk: openai.AsyncOpenAI, number: int) -> None:
            for start in range(0, 300, 10):
                words = [f"w{at} w{number}" for at in range(start, start + 10)]
                answer = await sdk.embeddings.create(model=MODEL, input=words)
                answered.put_nowait((words, vectors(answer)))

        async with openai.AsyncOpenAI(base_url=f"{url.strip()}/v1", api_key=town.ann, max_retries=0) as sdk:
            asking = [asyncio.create_task(ask(sdk, number)) for number in range(4)]
            try:
                async with asyncio.timeout(60):
                    while answered.qsize() < 12:
                        await asyncio.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            finally:
                process.kill()
                ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(end, openai.APIError) for end in ended)
    async with town.client() as client:
        while not answered.empty():
            words, told = answered.get_nowait()
            again = await client.embed(town.ann, *words)
            assert paid(again) == (0, 10)
            assert vectors(again) == told
        assert client.node.answers.vectors is not None
        assert client.node.answers.vectors.counts.damaged == 0


async def test_a_damaged_file_costs_the_money_once_more(town: Town) -> None:
    async with town.client() as client:
        await client.embed(town.ann, "red")
    (town.folder / "cache" / "vectors.db").write_bytes(b"\0" * 100_000)
    async with town.client() as client:
        assert paid(await client.embed(town.ann, "red")) == (3, 0)
        assert paid(await client.embed(town.ann, "red")) == (0, 1)
    assert (town.folder / "cache" / "vectors.db.damaged").exists()
