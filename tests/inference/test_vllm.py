"""vLLM itself, with the default model's weights, on processors (`make vllm-tools`)."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from inference.engines.openai_http import OpenAiEngine
from inference.engines.vllm import open_vllm_engine
from inference.engines.vllm_command import VllmSetup
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.models.tokenizer import ModelTokenizer
from market.errors import EngineFailed, ModelFileInvalid, RequestInvalid
from market.ports import EngineLoad, Generated, Job
from market.task import ChatMessage, LogitBias, Sampling
from market.testing_engine import check_engine
from tests.inference.upstream_kit import job
from tests.inference.vllm_kit import write_folder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)
PYTHON = ROOT / ".cache" / "vllm" / "bin" / "python"


@pytest.fixture(scope="module")
def tokenizer(wheel_model: Path) -> ModelTokenizer:
    found = read_gguf_tokenizer(wheel_model)
    return ModelTokenizer(found.tokenizer_json, found.chat_template, found.tokens)


@pytest.fixture(scope="module")
def folder(wheel_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm") / "model"
    write_folder(wheel_model, path)
    return path


@pytest.fixture(scope="module")
async def engine(folder: Path) -> AsyncIterator[OpenAiEngine]:
    if not PYTHON.exists():
        pytest.fail("vLLM is missing: run make vllm-tools", pytrace=False)
    async with open_vllm_engine(
        folder, log=folder.parent / "log", python=PYTHON, setup=VllmSetup(context=1024)
    ) as engine:
        yield engine
    assert servers() == []


def servers() -> list[psutil.Process]:
    """All processes of vLLM below this one."""
    below = psutil.Process().children(recursive=True)
    return [
        child
        for child in below
        if child.status() != psutil.STATUS_ZOMBIE and "vllm" in "".join(child.cmdline()).lower()
    ]


def question(tokenizer: ModelTokenizer, text: str, **more: object) -> Job:
    prompt = tokenizer.render((ChatMessage(role="user", content=text),))
    return job(**{"max_tokens": 48, "prompt": prompt, "end_tokens": tokenizer.end_tokens, **more})  # type: ignore[arg-type]


async def items(engine: OpenAiEngine, work: Job) -> list[Generated]:
    return [item async for item in engine.generate(work)]


async def text(engine: OpenAiEngine, tokenizer: ModelTokenizer, work: Job) -> str:
    return b"".join(tokenizer.token_bytes(t) for item in await items(engine, work) for t in item.tokens).decode()


@pytest.mark.heavy
@pytest.mark.model
async def test_it_says_what_it_is_and_holds_to_the_kit(engine, tokenizer):
    assert engine.info.name.startswith("openai_http/vllm/0.") and engine.info.name.endswith("/cpu/bfloat16")
    assert not engine.leaves_host
    await check_engine(engine, question(tokenizer, "Hello").prompt)


@pytest.mark.heavy
@pytest.mark.model
async def test_answers_are_of_the_ids_that_the_buyers_tokenizer_knows(engine, tokenizer):
    work = question(tokenizer, "What is the capital of France?")
    assert await text(engine, tokenizer, work) == "The capital of France is Paris."
    biased = Sampling(seed=bytes(32), temperature_micro=0, logit_bias=(LogitBias(token=504, bias_micro=-100_000_000),))
    other = await text(engine, tokenizer, question(tokenizer, "What is the capital of France?", sampling=biased))
    assert not other.startswith("The")


@pytest.mark.heavy
@pytest.mark.model
async def test_a_seed_is_kept(engine, tokenizer):
    seeds = [Sampling(seed=bytes((n,)) * 32) for n in (1, 1, 2)]
    first, again, other = [await text(engine, tokenizer, question(tokenizer, "A story.", sampling=s)) for s in seeds]
    assert first == again != other


@pytest.mark.heavy
@pytest.mark.model
async def test_a_schema_is_kept_and_one_that_is_none_is_the_clients(engine, tokenizer):
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    schema |= {"additionalProperties": False}
    said = await text(engine, tokenizer, question(tokenizer, "A city?", grammar=json.dumps(schema)))
    assert json.loads(said)["city"] in ("Rome", "Oslo")
    with pytest.raises(RequestInvalid):
        await items(engine, question(tokenizer, "A city?", grammar='{"type": "no such type"}'))


@pytest.mark.heavy
@pytest.mark.model
async def test_many_at_once_are_all_answered_and_those_who_leave_are_forgotten(engine, tokenizer):
    async def leave(number: int) -> None:
        async with aclosing(engine.generate(question(tokenizer, f"Story {number}.", max_tokens=900))) as stream:
            await anext(stream)

    leaving = [leave(number) for number in range(16)]
    staying = [items(engine, question(tokenizer, f"Tell me of {n}.", max_tokens=24)) for n in range(24)]
    async with asyncio.timeout(120):
        results = await asyncio.gather(*leaving, *staying)
    assert all(found[-1].finish for found in results[16:])
    assert engine.load() == EngineLoad(running=0, waiting=0)


@pytest.mark.heavy
@pytest.mark.model
async def test_its_processes_have_no_key_in_their_lines_no_environment_of_ours_and_no_network(engine):
    first = min(servers(), key=lambda process: process.create_time())
    names = set(first.environ())
    assert {"VLLM_API_KEY", "HF_HUB_OFFLINE"} <= names and not names & {"USER", "PWD", "SHELL", "PYTHONPATH"}
    assert first.environ()["VLLM_API_KEY"] not in " ".join(first.cmdline())
    if "netns" in engine.isolation:
        interfaces = Path(f"/proc/{first.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


@pytest.mark.heavy
@pytest.mark.model
async def test_a_killed_engine_core_fails_its_streams_at_once_and_serves_again(engine, tokenizer):
    """Last: it takes half a minute until the server is up again."""
    streams = [engine.generate(question(tokenizer, f"Story {n}.", max_tokens=900)) for n in range(4)]
    for stream in streams:
        await anext(stream)
    core = max(servers(), key=lambda process: process.memory_info().rss)
    core.send_signal(signal.SIGKILL)
    async with asyncio.timeout(60):
        for stream in streams:
            with pytest.raises(EngineFailed):
                async for _ in stream:
                    pass
    assert engine.load() == EngineLoad(running=0, waiting=0)

    async def serves() -> bool:
        try:
            return bool(await items(engine, question(tokenizer, "Hello", max_tokens=2)))
        except EngineFailed:
            return False

    async with asyncio.timeout(180):
        while not await serves():
            await asyncio.sleep(1)


# ---- without vLLM --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "config.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": "[]"}, "config.json"),
        ({"config.json": '{"vocab_size": "many"}'}, "vocab_size"),
        ({"config.json": '{"vocab_size": 100}', "pytorch_model.bin": ""}, "safetensors"),
        ({"config.json": '{"vocab_size": 100, "auto_map": {}}', "model.safetensors": ""}, "code of its own"),
    ],
)
async def test_a_folder_that_is_no_model_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelFileInvalid, match=words):
        async with open_vllm_engine(tmp_path, log=tmp_path / "log"):
            pass
