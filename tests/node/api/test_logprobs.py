"""Log probabilities and answers that must match a schema, asked by OpenAI's own client."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from market.message import Likely, Logprobs
from market.taking import Delta

HELLO: Any = [{"role": "user", "content": "Hi"}]


def token(byte: int, text: str = "", *, likely: tuple[int, ...] = ()) -> Delta:
    """A token of the byte tokenizer, with what else could have come."""
    top = tuple(Likely(token=other, micro=-1_000_000 * (n + 1)) for n, other in enumerate(likely))
    return Delta(text=text, tokens=1, ids=(byte,), logprobs=(Logprobs(own_micro=-250_000, top=top),))


SAID = (token(0x48, "H", likely=(0x48, 0x68)), token(0xC3), token(0xA9, "é", likely=(256,)))


async def test_each_token_has_its_text_bytes_and_alternatives(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = SAID
    answer = await client.chat.completions.create(model="small", messages=HELLO, logprobs=True, top_logprobs=2)
    assert node.buyer.orders[0].logprobs == 2
    assert answer.choices[0].message.content == "Hé"
    assert answer.choices[0].logprobs is not None
    first, second, third = answer.choices[0].logprobs.content or ()
    assert (first.token, first.bytes, first.logprob) == ("H", [0x48], -0.25)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("H", -1.0), ("h", -2.0)]
    assert (second.token, second.bytes) == ("\\xc3", [0xC3])
    assert (third.token, third.bytes) == ("\\xa9", [0xA9])
    assert [(top.token, top.bytes) for top in third.top_logprobs] == [("token_id:256", None)]


async def test_a_stream_brings_every_tokens_log_probability_once(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (*SAID, token(0x21))  # the last one's text is cut off by a stop sequence
    stream = await client.chat.completions.create(model="small", messages=HELLO, logprobs=True, stream=True)
    heard = [
        entry.token
        async for chunk in stream
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert node.buyer.orders[0].logprobs == 0
    assert heard == ["H", "\\xc3", "\\xa9", "!"]


async def test_nobody_pays_for_log_probabilities_that_were_not_asked_for(client: AsyncOpenAI, node: Any) -> None:
    answer = await client.chat.completions.create(model="small", messages=HELLO)
    assert node.buyer.orders[0].logprobs is None
    assert answer.choices[0].logprobs is None


class City(BaseModel):
    name: str
    people: int


async def test_an_answer_is_held_to_the_schema_of_the_clients_own_class(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ('{"name": "Oslo", "people": 700000}',)
    answer = await client.chat.completions.parse(model="small", messages=HELLO, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo", people=700_000)
    schema = json.loads(node.buyer.orders[0].grammar)
    assert list(schema["properties"]) == ["name", "people"]


async def test_a_json_object_is_any_object(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("{}",)
    await client.chat.completions.create(model="small", messages=HELLO, response_format={"type": "json_object"})
    assert node.buyer.orders[0].grammar == '{"type":"object"}'


async def test_a_schema_that_is_too_large_is_refused(http: Any, node: Any, known: Any) -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with http.post("/v1/chat/completions", json={**known.question, "response_format": form}) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert error["param"] == "response_format"
    assert node.buyer.orders == []


@pytest.mark.parametrize("depth", [150, 60_000])
async def test_a_schema_nested_without_end_is_refused(http: Any, node: Any, known: Any, depth: int) -> None:
    nested = '{"items":' * depth + "{}" + "}" * depth
    body = json.dumps(known.question)[:-1]
    body += f', "response_format": {{"type": "json_schema", "json_schema": {{"name": "x", "schema": {nested}}}}}}}'
    async with http.post("/v1/chat/completions", data=body) as response:
        assert response.status == 400, await response.text()
    assert node.buyer.orders == []
