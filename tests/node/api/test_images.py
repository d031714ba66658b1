"""Pictures, asked by OpenAI's own client."""

import base64
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from market.task import Privacy
from market.work import ImageRequest

PNG = b"\x89PNG\r\n\x1a\n and more"


async def test_pictures_come_as_base64_with_the_seed_that_drew_them(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = (PNG, PNG + b"2")
    raw = await client.images.with_raw_response.generate(
        model="small",
        prompt="an octopus",
        n=2,
        size="256x256",
        quality="high",
        extra_body={
            "octo": {"privacy": "public", "steps": 5, "negative": "ink", "guidance": 3.5, "seed": 11},
        },
    )
    (order,) = node.buyer.orders
    assert order.request == ImageRequest(
        prompt="an octopus", negative="ink", width=256, height=256, steps=5, guidance_micro=3_500_000, count=2, seed=11
    )
    assert order.privacy is Privacy.PUBLIC
    answer = raw.parse()
    assert [base64.b64decode(item.b64_json or "") for item in answer.data or ()] == [PNG, PNG + b"2"]
    assert (answer.size, answer.output_format) == ("256x256", "png")
    octo = answer.model_extra["octo"]  # type: ignore[index]
    assert (octo["receipt"], octo["seed"]) == (known.receipt, 11)
    assert raw.headers["x-octo-receipt"] == known.receipt


async def test_without_a_seed_each_request_draws_another(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (PNG,)
    for size in ("auto", None):
        await client.images.generate(model="small", prompt="an octopus", size=size)  # type: ignore[arg-type]
    first, second = (order.request for order in node.buyer.orders)
    assert first.seed != second.seed
    assert (first.width, first.height, first.count) == (512, 512, 1)


@pytest.mark.parametrize("steps", [(), (PNG, PNG), (b"GIF89a",)], ids=["none", "too many", "no PNG"])
async def test_pictures_that_are_none_are_the_providers_failure(client: AsyncOpenAI, node: Any, steps: Any) -> None:
    node.buyer.steps = steps
    with pytest.raises(openai.InternalServerError) as caught:
        await client.images.generate(model="small", prompt="an octopus")
    assert caught.value.code == "peer_failed"


async def test_a_large_picture_comes_whole(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (PNG + bytes(3_000_000),)
    answer = await client.images.generate(model="small", prompt="an octopus")
    assert len(base64.b64decode((answer.data or [])[0].b64_json or "")) == len(PNG) + 3_000_000


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"n": 11}, "n", "10"),
        ({"size": "512"}, "size", "like 512x512"),
        ({"size": "500x500"}, "size", "like 512x512"),
        ({"size": "4096x4096"}, "size", "like 512x512"),
        ({"size": "٣٢٠x512"}, "size", "like 512x512"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"output_format": "webp"}, "output_format", "png"),
        ({"stream": True}, "stream", "not supported"),
        ({"octo": {"steps": 0}}, "octo.steps", "1"),
        ({"octo": {"sampler": "x"}}, "octo.sampler", "no such parameter"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_drawn_is_refused_by_name(
    http: Any, node: Any, change: dict[str, Any], param: str, reason: str
) -> None:
    async with http.post("/v1/images/generations", json={"model": "small", "prompt": "x", **change}) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert error["param"] == param
    assert reason in error["message"]
    assert node.buyer.orders == []
