"""Plain completions, asked by OpenAI's own client."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from market.message import Likely, Logprobs
from market.taking import Delta
from market.task import user_seed

SAID = (
    Delta(text="é", tokens=2, ids=(0xC3, 0xA9), logprobs=(Logprobs(own_micro=-500_000),) * 2),
    Delta(text="!", tokens=1, ids=(0x21,), logprobs=(Logprobs(own_micro=0, top=(Likely(token=0x21, micro=0),)),)),
)


async def test_a_text_goes_on(client: AsyncOpenAI, node: Any, known: Any) -> None:
    raw = await client.completions.with_raw_response.create(model="small", prompt="Once", seed=7, stop=["."])
    answer = raw.parse()
    (order,) = node.buyer.orders
    assert (order.text, order.messages, order.max_tokens, order.stop) == ("Once", (), 16, (".",))
    assert order.sampling.seed == user_seed(7)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion", "Hello!", "stop",
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.model_extra["octo"]["receipt"] == raw.headers["x-octo-receipt"] == known.receipt  # type: ignore[index]
    assert raw.headers["x-octo-amount"] == str(16 * 10**11)


async def test_each_prompt_gets_its_choices_in_order(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps_of = lambda order: (f"{order.text}{order.sampling.choice}",)
    answer = await client.completions.create(model="small", prompt=["a", "b"], n=2, echo=True)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "aa0"), (1, "aa1"), (2, "bb0"), (3, "bb1"),
    ]  # fmt: skip
    assert len(answer.model_extra["octo"]["receipts"]) == 4  # type: ignore[index]


async def test_a_stream_says_the_same(client: AsyncOpenAI, known: Any) -> None:
    stream = await client.completions.create(
        model="small", prompt="Once", echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "OnceHello!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].model_extra["octo"]["receipt"] == known.receipt  # type: ignore[index]


async def test_log_probabilities_come_in_columns(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = SAID
    answer = await client.completions.create(model="small", prompt="Once", logprobs=1)
    columns = answer.choices[0].logprobs
    assert columns is not None
    assert columns.tokens == ["\\xc3", "\\xa9", "!"]
    assert columns.token_logprobs == [-0.5, -0.5, 0.0]
    assert columns.text_offset == [0, 0, 1]
    assert columns.top_logprobs == [{}, {}, {"!": 0.0}]


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"prompt": [1, 2, 3]}, "prompt", "token ids"),
        ({"prompt": [[1, 2, 3]]}, "prompt", "token ids"),
        ({"prompt": ""}, "prompt[0]", "at least 1"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": ["x"] * 33}, "prompt", "32"),
        ({"prompt": ["x"] * 5, "n": 8}, "prompt", "32"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"suffix": "end"}, "suffix", "not supported"),
        ({"echo": True, "logprobs": 1}, "echo", "logprobs"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"messages": []}, "messages", "no such parameter"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: Any, node: Any, change: dict[str, Any], param: str, reason: str
) -> None:
    async with http.post("/v1/completions", json={"model": "small", "prompt": "x", **change}) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert error["param"] == param
    assert reason in error["message"]
    assert node.buyer.orders == []


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="gpt-17", prompt="x")
