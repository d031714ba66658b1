"""Text from a real model in a whole node, through OpenAI's own client: schemas, calls, log probabilities, batches."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node

Q4_0 = Path(__file__).resolve().parents[3] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
HELLO: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/name"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"name": {"type": "string", "maxLength": 20}},
        },
    },
}

pytestmark = pytest.mark.model


class Weather(BaseModel):
    sky: Literal["clear", "clouds", "rain"]
    degrees: int = Field(ge=-60, le=60)


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncOpenAI]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("node"),
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, slots=4, context=1024),
    )
    async with open_node(settings, prepared=[Q4_0]) as node:
        key = node.first_api_key
        async with AsyncOpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0, timeout=120) as client:
            yield client


async def test_an_answer_fits_the_clients_own_class(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="default", messages=HELLO, response_format=Weather, max_tokens=60, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_that_must_be_made_is_made_and_fits(client: AsyncOpenAI, stream: bool) -> None:
    asked: Any = {"model": "default", "messages": HELLO, "tools": [WEATHER], "max_tokens": 80, "temperature": 0}
    if stream:
        name, arguments, finish = "", "", None
        async for chunk in await client.chat.completions.create(**asked, tool_choice="required", stream=True):
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or ():
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
    else:
        answer = await client.chat.completions.create(**asked, tool_choice="required")
        (call,) = answer.choices[0].message.tool_calls
        name, arguments, finish = call.function.name, call.function.arguments, answer.choices[0].finish_reason
    assert (name, finish) == ("weather", "tool_calls")
    given = json.loads(arguments)
    assert given["unit"] in ("C", "F")
    assert len(given["city"]) <= 20


async def test_a_result_is_read_back(client: AsyncOpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain, 3 degrees"},
    ]
    answer = await client.chat.completions.create(
        model="default", messages=messages, tools=[WEATHER], max_tokens=40, temperature=0
    )
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


async def test_log_probabilities_are_of_the_tokens_that_were_said(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # temperature 0 says the likeliest
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-5)
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.000001


async def test_a_text_goes_on_and_its_columns_fit(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="default", prompt="The capital of France is", max_tokens=6, temperature=0, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    stream = await client.completions.create(
        model="default", prompt="The capital of France is", max_tokens=6, temperature=0, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == choice.text


async def test_one_seed_says_the_same_and_its_choices_differ(client: AsyncOpenAI) -> None:
    said = [
        await client.chat.completions.create(model="default", messages=HELLO, n=2, seed=5, max_tokens=16)
        for _ in range(2)
    ]
    first, second = ([choice.message.content for choice in answer.choices] for answer in said)
    assert first == second
    assert first[0] != first[1]


async def test_a_batch_is_worked_off_by_the_same_node(client: AsyncOpenAI) -> None:
    lines = [
        {
            "custom_id": f"q{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "default", "prompt": f"{n} plus one is", "max_tokens": 4, "temperature": 0},
        }
        for n in range(6)
    ]
    file = await client.files.create(
        file=b"".join(json.dumps(line).encode() + b"\n" for line in lines), purpose="batch"
    )
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    async with asyncio.timeout(60):
        while batch.status not in ("completed", "failed"):
            await asyncio.sleep(0.05)
            batch = await client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 6, (await client.files.content(batch.error_file_id or "")).text
    answers = [json.loads(said) for said in (await client.files.content(batch.output_file_id or "")).text.splitlines()]
    assert len({answer["response"]["body"]["octo"]["receipt"] for answer in answers}) == 6


async def test_work_that_the_model_does_not_do_is_refused_with_the_reason(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.embeddings.create(model="default", input="x")
    assert caught.value.status_code in (400, 404, 503)
    assert "embed" in caught.value.message
