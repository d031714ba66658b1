"""Whole nodes that offer more models than fit into memory: loaded when bought, unloaded for others, withdrawn when they
cannot be loaded. Real models, real workers, real buyers."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai
import psutil
import pytest

from inference.models.draft import Wishes
from market.errors import NodeMisconfigured
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node
from tests.inference import onnx_kit as kit

pytestmark = [pytest.mark.net, pytest.mark.model]

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
ONE_OF_THEM = "280 MB"
"""The default model takes 246 MB with one worker and two slots of 512 tokens, the small ones 49 MB each."""


def settings_in(folder: Path, **changes) -> Settings:
    engine = {"workers": 1, "threads": 1, "slots": 2, "context": 512, **changes.pop("engine", {})}
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(**engine),
        **changes,
    )


async def with_small_models(folder: Path) -> tuple[str, str]:
    """(embedder, ranker) in the folder of a node that is to come."""
    graphs = {"embedding": kit.pooling_embedder(), "rerank": kit.reranker()}
    async with open_node(settings_in(folder, provide=False)) as node:
        found = []
        for modality, graph in graphs.items():
            files = kit.write_model(folder.parent / modality, model_onnx=graph, tokenizer_json=kit.tokenizer_json())
            added = await node.desk.add(str(files), wishes=Wishes(name=modality, modality=modality))
            found.append(added["model"])
    return found[0], found[1]


@asynccontextmanager
async def provider_in(folder: Path, *models: str, **changes):
    settings = settings_in(folder, model="default", serve=models, **changes)
    async with open_node(settings, prepared=[Q4_0]) as node:
        yield node


async def buyer_of(stack: AsyncExitStack, folder: Path, provider: RunningNode, offered: int) -> openai.AsyncOpenAI:
    joined = settings_in(folder, provide=False, join=(provider.addresses()[0],))
    client = await stack.enter_async_context(open_node(joined))
    await until(lambda: len(client.catalog.on_offer()) == offered)
    base, key = f"{client.url}/v1", str(client.first_api_key)
    return await stack.enter_async_context(openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0))


async def until(condition, limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.05)


async def chat(sdk: openai.AsyncOpenAI) -> str:
    answer = await sdk.chat.completions.create(
        model="SmolLM2-135M-Instruct", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0
    )
    return answer.choices[0].message.content or ""


async def embed(sdk: openai.AsyncOpenAI, text: str) -> list[float]:
    return (await sdk.embeddings.create(model="embedding", input=[text])).data[0].embedding


def warm(node: RunningNode) -> set[str]:
    return {offer.name for offer in node.providing.offers() if offer.warm}


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "models" / "files").iterdir(), key=lambda path: path.stat().st_size)


async def test_models_that_do_not_fit_together_are_loaded_as_they_are_bought(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        embedder, ranker = await with_small_models(tmp_path / "p")
        settings = {"engine": {"memory": ONE_OF_THEM}}
        node = await stack.enter_async_context(provider_in(tmp_path / "p", embedder, ranker, **settings))
        assert [offer.name for offer in node.providing.offers()] == ["SmolLM2-135M-Instruct", "embedding", "rerank"]
        await until(lambda: warm(node) == {"SmolLM2-135M-Instruct"})  # the first that is named, while it fits
        sdk = await buyer_of(stack, tmp_path / "c", node, 3)
        first = await chat(sdk)
        vectors = await asyncio.gather(*(embed(sdk, text) for text in ("red", "green", "blue", "octo")))
        assert len({tuple(vector) for vector in vectors}) == 4
        assert "SmolLM2-135M-Instruct" not in warm(node)
        assert await chat(sdk) == first, "unloaded and loaded again, it answers the same"
        told = {**node.providing.counts(), **node.providing.gauges()}
        assert told["model_hits"] >= 1 and 2 <= told["model_misses"] <= 5 and told["model_evictions"] >= 2
        assert told["models_offered"] == 3 and told["models_loaded"] == 1
        assert 150e6 < told["models_bytes"] < 280e6
        loads = node.providing.counts()["model_loads"]
    async with provider_in(tmp_path / "p", embedder, ranker, **settings) as again:
        assert loads > 3
        assert again.providing.counts()["model_loads"] == 1, (
            "what they are was remembered: nothing is loaded to learn it"
        )
        assert len(again.providing.offers()) == 3


async def damage(node: RunningNode, name: str) -> None:
    """Eight bytes of its weights are others now."""
    shown = await node.desk.view.show(name)
    (size,) = [file["size_bytes"] for file in shown["files"] if file["role"] == "weights"]
    (weights,) = [path for path in files_of(node.settings.data_dir) if path.stat().st_size == size]
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.seek(100)
        file.write(bytes(8))


async def test_a_worker_killed_while_it_loads_costs_its_offer_alone_until_it_loads(tmp_path: Path) -> None:
    """SIGKILL is what the kernel sends when memory runs out."""
    async with AsyncExitStack() as stack:
        embedder, _ = await with_small_models(tmp_path / "p")
        node = await stack.enter_async_context(provider_in(tmp_path / "p", embedder, engine={"memory": ONE_OF_THEM}))
        sdk = await buyer_of(stack, tmp_path / "c", node, 2)
        killer = asyncio.create_task(_kill("inference.work.child"))
        with pytest.raises(openai.APIStatusError) as failed:
            await embed(sdk, "red")
        assert "SIGKILL" in str(failed.value)
        assert [offer.name for offer in node.providing.offers()] == ["SmolLM2-135M-Instruct"]
        assert await chat(sdk)
        killer.cancel()
        await until(lambda: len(node.providing.offers()) == 2)
        async with asyncio.timeout(60):
            while True:
                try:
                    before = await embed(sdk, "red")
                    break
                except openai.APIStatusError:  # the new offer is on its way
                    await asyncio.sleep(0.2)
        # One that is killed when it is loaded is started again by its own supervisor: no failed load, no new offer.
        failures, pids = node.providing.counts()["model_load_failures"], node.providing.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: node.providing.worker_pids() and not set(node.providing.worker_pids()) & set(pids))
        assert await embed(sdk, "blue") != before
        assert node.providing.counts()["model_load_failures"] == failures


async def test_a_file_that_was_damaged_before_it_is_loaded_is_not_served_and_the_node_stays_up(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        embedder, _ = await with_small_models(tmp_path / "p")
        node = await stack.enter_async_context(provider_in(tmp_path / "p", embedder, engine={"memory": ONE_OF_THEM}))
        sdk = await buyer_of(stack, tmp_path / "c", node, 2)
        await damage(node, "embedding")
        with pytest.raises(openai.APIStatusError, match="could not be loaded"):
            await embed(sdk, "red")
        assert [offer.name for offer in node.providing.offers()] == ["SmolLM2-135M-Instruct"]
        assert await chat(sdk)


async def test_a_node_starts_without_a_model_that_cannot_be_loaded_and_says_so(tmp_path: Path) -> None:
    embedder, ranker = await with_small_models(tmp_path / "p")
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        await damage(node, "embedding")
    async with open_node(settings_in(tmp_path / "p", model=embedder, serve=(ranker,))) as node:
        assert [offer.name for offer in node.providing.offers()] == ["rerank"]
        (said,) = node.status()["warnings"]
        assert said.startswith("embedding is not served: ") and "tries again" in said


async def test_a_model_that_can_never_fit_is_refused_at_start_with_what_would(tmp_path: Path) -> None:
    embedder, _ = await with_small_models(tmp_path / "p")
    with pytest.raises(NodeMisconfigured, match="memory") as refused:
        async with provider_in(tmp_path / "p", embedder, engine={"memory": "170 MB"}):
            pass
    assert "SmolLM2-135M-Instruct" in refused.value.message and "170 MB" in refused.value.message
    assert "engine.memory" in refused.value.next_step and "search --fits" in refused.value.next_step


async def test_more_models_than_an_offer_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NodeMisconfigured, match="17 models"):
        async with provider_in(tmp_path / "p", *(f"m{at}" for at in range(16))):
            pass


async def _kill(module: str) -> None:
    """Every child that runs a module, as soon as it is there."""
    while True:
        for child in psutil.Process().children():
            try:
                if module in child.cmdline():
                    child.kill()
            except psutil.Error:
                continue
        await asyncio.sleep(0.01)
