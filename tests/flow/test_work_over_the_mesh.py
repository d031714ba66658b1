"""Embeddings and rankings from another node, through the official client: found by work, paid by unit, receipted."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest

from inference.models.draft import Wishes
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, ModelSettings, Settings
from node.wiring import open_node
from tests.inference import bert_kit
from tests.inference import onnx_kit as kit
from tests.inference.media_kit import PACKAGES, PIPELINE, WHISPER, require_media

pytestmark = pytest.mark.net

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def settings_in(folder: Path, **changes) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=(LOOPBACK,)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, slots=2, context=512),
        **changes,
    )


def onnx_files(tmp_path: Path, graph: bytes, name: str) -> Path:
    return kit.write_model(tmp_path / name, model_onnx=graph, tokenizer_json=kit.tokenizer_json())


async def a_market(
    stack: AsyncExitStack, tmp_path: Path, files: Path, modality: str = ""
) -> tuple[RunningNode, RunningNode]:
    """(provider of a model, client). Without a modality it is what its files say."""
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        added = await node.desk.add(str(files), wishes=Wishes(modality=modality))
    provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model=added["model"])))
    joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],), models=ModelSettings())
    client = await stack.enter_async_context(open_node(joined))
    async with asyncio.timeout(60):
        while not client.catalog.on_offer():
            await asyncio.sleep(0.05)
    return provider, client


async def test_embeddings_are_bought_from_another_node_with_a_receipt(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        provider, client = await a_market(
            stack, tmp_path, onnx_files(tmp_path, kit.pooling_embedder(), "colours"), "embedding"
        )
        (offered,) = client.catalog.on_offer()
        async with openai.AsyncOpenAI(
            base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
        ) as sdk:
            answer = await sdk.embeddings.create(model=offered.name, input=["red", "green", "red"])
        vectors = [item.embedding for item in answer.data]
        assert vectors[0] == vectors[2] != vectors[1]
        assert answer.usage.prompt_tokens > 0
        octo = answer.model_extra["octo"]
        assert octo["provider"] == provider.peer
        record = await client.receipts.receipt_by_cid(octo["receipt"])
        assert record is not None and record.pieces
        assert len(record.tokens) == 2  # what stands twice is bought once


async def test_more_texts_than_one_context_holds_are_embedded_and_ranked(tmp_path: Path) -> None:
    texts = [f"red green blue {number}" for number in range(400)]
    for graph, modality in ((kit.pooling_embedder(), "embedding"), (kit.reranker(), "rerank")):
        async with AsyncExitStack() as stack:
            folder = tmp_path / modality
            folder.mkdir()
            _, client = await a_market(stack, folder, onnx_files(folder, graph, "many"), modality)
            (offered,) = client.catalog.on_offer()
            headers = {"Authorization": f"Bearer {client.first_api_key}"}
            session = await stack.enter_async_context(aiohttp.ClientSession(client.url, headers=headers))
            path, body = (
                ("/v1/embeddings", {"model": offered.name, "input": texts})
                if modality == "embedding"
                else ("/v1/rerank", {"model": offered.name, "query": "red", "documents": texts})
            )
            async with session.post(path, json=body) as response:
                told = json.loads(await response.text())
            assert response.status == 200, told
            assert len(told.get("data") or told["results"]) == len(texts)
            assert told["usage"]["prompt_tokens"] > offered.context


async def test_documents_are_ranked_by_another_node(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        _, client = await a_market(stack, tmp_path, onnx_files(tmp_path, kit.reranker(), "ranker"), "rerank")
        (offered,) = client.catalog.on_offer()
        body = {"model": offered.name, "query": "red", "documents": ["green", "red red", "blue"]}
        headers = {"Authorization": f"Bearer {client.first_api_key}"}
        session = await stack.enter_async_context(aiohttp.ClientSession(client.url, headers=headers))
        async with session.post("/v1/rerank", json=body) as response:
            told = json.loads(await response.text())
        assert response.status == 200, told
        scores = [result["relevance_score"] for result in told["results"]]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)


async def test_a_gguf_embeds_for_another_node_that_counts_without_its_weights(tmp_path: Path) -> None:
    weights = bert_kit.bert_weights()
    async with AsyncExitStack() as stack:
        files = bert_kit.write_bert(tmp_path / "tiny-bert.gguf", weights)
        provider, client = await a_market(stack, tmp_path, files)
        (offered,) = client.catalog.on_offer()
        texts = ["red", "octo node", "blue"]
        async with openai.AsyncOpenAI(
            base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
        ) as sdk:
            answer = await sdk.embeddings.create(model=offered.name, input=texts)
            with pytest.raises(openai.NotFoundError, match="writes no text"):
                await sdk.chat.completions.create(model=offered.name, messages=[{"role": "user", "content": "red"}])
        vectors = [item.embedding for item in answer.data]
        hidden = bert_kit.hidden_states(weights, (2, kit.WORDS.index("red"), 3)).mean(axis=0)
        assert np.allclose(vectors[0], hidden / np.linalg.norm(hidden), atol=1e-3)
        assert answer.usage.prompt_tokens == 3 + 4 + 3
        octo = answer.model_extra["octo"]
        assert octo["provider"] == provider.peer
        record = await client.receipts.receipt_by_cid(octo["receipt"])
        assert record is not None and len(record.tokens) == 3
        assert offered.name == "tiny-bert"


async def test_a_gguf_embeds_for_its_own_node(tmp_path: Path) -> None:
    files = bert_kit.write_bert(tmp_path / "tiny-bert.gguf", bert_kit.bert_weights())
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        added = await node.desk.add(str(files))
    async with open_node(settings_in(tmp_path / "p", model=added["model"])) as node:
        key = str(node.first_api_key)
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as sdk:
            answer = await sdk.embeddings.create(model="tiny-bert", input=["red", "a text longer than red"])
            with pytest.raises(openai.BadRequestError, match="limit"):
                await sdk.embeddings.create(model="tiny-bert", input="red " * 1000)
        assert [len(item.embedding) for item in answer.data] == [bert_kit.WIDTH] * 2
        assert answer.usage.prompt_tokens == 3 + 7


async def test_a_gguf_reranks_for_another_node(tmp_path: Path) -> None:
    weights = bert_kit.bert_weights(classes=1)
    async with AsyncExitStack() as stack:
        files = bert_kit.write_bert(tmp_path / "tiny-ranker.gguf", weights, pooling=4)
        _, client = await a_market(stack, tmp_path, files)
        (offered,) = client.catalog.on_offer()
        body = {"model": offered.name, "query": "red", "documents": ["green", "red red", "blue"]}
        headers = {"Authorization": f"Bearer {client.first_api_key}"}
        session = await stack.enter_async_context(aiohttp.ClientSession(client.url, headers=headers))
        async with session.post("/v1/rerank", json=body) as response:
            told = json.loads(await response.text())
        assert response.status == 200, told
        ids = {word: kit.WORDS.index(word) for word in ("red", "green", "blue")}
        logits = {
            0: bert_kit.scores_of(weights, (2, ids["red"], 3, ids["green"], 3)),
            1: bert_kit.scores_of(weights, (2, ids["red"], 3, ids["red"], ids["red"], 3)),
            2: bert_kit.scores_of(weights, (2, ids["red"], 3, ids["blue"], 3)),
        }
        best_first = sorted(logits, key=lambda at: -logits[at][0])
        assert [result["index"] for result in told["results"]] == best_first


async def test_a_chat_with_an_embedding_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        _, client = await a_market(
            stack, tmp_path, onnx_files(tmp_path, kit.pooling_embedder(), "colours"), "embedding"
        )
        (offered,) = client.catalog.on_offer()
        async with openai.AsyncOpenAI(
            base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
        ) as sdk:
            with pytest.raises(openai.NotFoundError, match="writes no text"):
                await sdk.chat.completions.create(model=offered.name, messages=[{"role": "user", "content": "red"}])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
async def test_a_voice_of_another_node_speaks(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model="espeak-ng")))
        joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
        client = await stack.enter_async_context(open_node(joined))
        async with asyncio.timeout(60):
            while not client.catalog.on_offer():
                await asyncio.sleep(0.05)
        async with openai.AsyncOpenAI(
            base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
        ) as sdk:
            spoken = await sdk.audio.speech.create(
                model="espeak-ng", voice="en", input="An octopus has three hearts.", response_format="wav"
            )
        sound = spoken.read()
    assert sound[:4] == b"RIFF"
    assert len(sound) > 50_000  # over a second


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
async def test_another_node_speaks_hears_and_draws_with_real_weights_and_receipts(tmp_path: Path) -> None:
    require_media()
    models = ("espeak-ng", str(WHISPER), str(PIPELINE))
    settings = settings_in(tmp_path / "p", model=models[0], serve=models[1:])
    engine = settings.engine.model_copy(update={"packages": PACKAGES})
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_node(settings.model_copy(update={"engine": engine})))
        joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
        client = await stack.enter_async_context(open_node(joined))
        async with asyncio.timeout(120):
            while len(client.catalog.on_offer()) < len(models):
                await asyncio.sleep(0.05)
        heard_by, drawn_by = (
            next(m.name for m in client.catalog.on_offer() if m.name in names)
            for names in ((WHISPER.name, WHISPER.parent.name), (PIPELINE.name,))
        )
        async with openai.AsyncOpenAI(
            base_url=f"{client.url}/v1", api_key=str(client.first_api_key), max_retries=0
        ) as sdk:
            spoken = await sdk.audio.speech.create(
                model="espeak-ng",
                voice="en-us",
                input="The quick brown fox jumps over the lazy dog.",
                response_format="wav",
            )
            heard = await sdk.audio.transcriptions.create(model=heard_by, file=("fox.wav", spoken.content))
            drawn = await sdk.images.generate(
                model=drawn_by, prompt="a fox", size="64x64", extra_body={"octo": {"steps": 2, "seed": 7}}
            )
        assert len({"quick", "brown", "fox", "over", "lazy"} & set(heard.text.lower().split())) >= 3, heard.text
        assert base64.b64decode((drawn.data or [])[0].b64_json or "").startswith(b"\x89PNG")
        receipts = [
            spoken.response.headers["x-octo-receipt"],
            *(answer.model_extra["octo"]["receipt"] for answer in (heard, drawn)),
        ]
        for receipt in receipts:
            record = await client.receipts.receipt_by_cid(receipt)
            assert record is not None and record.pieces
            assert record.receipt.read().amount > 0
