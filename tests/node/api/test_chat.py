"""Chat completions, asked by OpenAI's own client over a real socket."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from market.caching import Caching
from market.errors import InsufficientFunds, NoProvider, PeerGone, PromptTooLong
from market.task import MICRO, Mode, Privacy, user_seed

HELLO: Any = [{"role": "user", "content": "Hi"}]


async def test_an_answer_names_its_receipt_who_served_it_and_at_what_price(client: AsyncOpenAI, known: Any) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="small", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "small"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    octo = answer.model_extra["octo"]  # type: ignore[index]
    assert octo["receipt"] == known.receipt == raw.headers["x-octo-receipt"]
    assert octo["provider"] == known.peer == raw.headers["x-octo-provider"]
    assert octo["model"] == known.model
    assert (octo["price_in"], octo["price_out"], octo["amount"]) == (10**17, 3 * 10**17, 16 * 10**11)
    assert octo["because"] == "the cheapest of 2"
    assert octo["not_chosen"] == {"12D3KooWother": "was not the best by that measure"}
    assert octo["failed"] == {}


async def test_a_stream_says_the_same_in_its_last_chunk(client: AsyncOpenAI, known: Any) -> None:
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello!"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].model_extra["octo"]["receipt"] == known.receipt  # type: ignore[index]
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_in_a_chunk_of_its_own_when_it_is_asked_for(client: AsyncOpenAI, known: Any) -> None:
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 3)
    assert last.model_extra["octo"]["receipt"] == known.receipt  # type: ignore[index]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_plain_client_without_asyncio_works_too(api: str, known: Any) -> None:
    def ask() -> str:
        with OpenAI(base_url=f"{api}/v1", api_key=known.key, max_retries=0) as client:
            stream = client.chat.completions.create(model="small", messages=HELLO, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == "Hello!"


async def test_a_base_url_without_v1_works_too(api: str, known: Any) -> None:
    async with AsyncOpenAI(base_url=api, api_key=known.key, max_retries=0) as client:
        answer = await client.chat.completions.create(model="small", messages=HELLO)
        assert answer.choices[0].message.content == "Hello!"
        assert [model.id async for model in client.models.list()] != []


async def test_each_delta_leaves_at_once(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("one", 3600.0, "never")
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == "one":
            break
    else:
        pytest.fail("the first piece was held back")
    await stream.close()


async def test_a_token_whose_text_is_held_back_makes_no_empty_piece(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("", "Hi", "")
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["", "Hi", None]


async def test_a_reader_that_hangs_up_ends_the_purchase(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("one", 3600.0)
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    await anext(aiter(stream))
    assert not node.buyer.hung_up.is_set()
    await stream.close()
    async with asyncio.timeout(60):
        await node.buyer.hung_up.wait()
    assert node.buyer.running == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_before_the_first_token_ends_the_purchase(
    client: AsyncOpenAI, node: Any, stream: bool
) -> None:
    node.buyer.steps = (3600.0,)
    asking = asyncio.create_task(client.chat.completions.create(model="small", messages=HELLO, stream=stream))
    async with asyncio.timeout(60):
        while not node.buyer.running:
            await asyncio.sleep(0.01)
        asking.cancel()
        await node.buyer.hung_up.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking


# ---- what is asked for reaches the buyer ----


async def test_every_parameter_reaches_the_order_as_integers(client: AsyncOpenAI, node: Any, known: Any) -> None:
    await client.chat.completions.create(
        model="default",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        ],
        temperature=0.7,
        top_p=0.25,
        max_completion_tokens=12,
        stop="END",
        seed=42,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        logit_bias={"50": -100, "7": 1},
        user="someone",
        extra_body={"top_k": 40, "octo": {"privacy": "private", "mode": "batch", "cache": "own"}},
    )
    (order,) = node.buyer.orders
    assert order.model == known.model
    assert [(m.role, m.content, m.name) for m in order.messages] == [
        ("system", "Be brief.", None),
        ("user", "ab", "ann"),
    ]
    sampling = order.sampling
    assert (sampling.temperature_micro, sampling.top_p_micro, sampling.top_k) == (700_000, 250_000, 40)
    assert (sampling.presence_penalty_micro, sampling.frequency_penalty_micro) == (-500_000, 1_500_000)
    assert [(bias.token, bias.bias_micro) for bias in sampling.logit_bias] == [(7, MICRO), (50, -100 * MICRO)]
    assert sampling.seed == user_seed(42)
    assert (order.max_tokens, order.stop) == (12, ("END",))
    assert (order.privacy, order.mode) == (Privacy.PRIVATE, Mode.BATCH)
    assert (order.cache, order.seeded) == (Caching.OWN, True)


async def test_the_least_top_p_and_vllms_word_for_no_top_k_are_taken(client: AsyncOpenAI, node: Any) -> None:
    await client.chat.completions.create(model="small", messages=HELLO, top_p=0, extra_body={"top_k": -1})
    (order,) = node.buyer.orders
    assert (order.sampling.top_p_micro, order.sampling.top_k) == (1, 0)


async def test_without_a_seed_each_request_gets_a_fresh_one(client: AsyncOpenAI, node: Any) -> None:
    for _ in range(2):
        await client.chat.completions.create(model="small", messages=HELLO)
    first, second = node.buyer.orders
    assert first.sampling.seed != second.sampling.seed
    assert (first.privacy, first.mode, first.max_tokens) == (Privacy.SHARED, Mode.REALTIME, None)
    assert (first.sampling.temperature_micro, first.sampling.top_p_micro) == (MICRO, MICRO)


async def test_several_choices_are_bought_one_by_one_each_with_its_receipt(
    client: AsyncOpenAI, node: Any, known: Any
) -> None:
    answer = await client.chat.completions.create(model="small", messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == ["Hello!"] * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(order.sampling.choice for order in node.buyer.orders) == [0, 1, 2]
    assert len({order.sampling.seed for order in node.buyer.orders}) == 1
    octo = answer.model_extra["octo"]  # type: ignore[index]
    assert octo["receipts"] == known.receipts[:3]
    assert octo["amount"] == 3 * 16 * 10**11
    assert answer.choices[2].model_extra["octo"]["receipt"] == known.receipts[2]  # type: ignore[index]


async def test_several_choices_share_one_stream(client: AsyncOpenAI, known: Any) -> None:
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, receipts = ["", ""], {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                receipts[choice.index] = chunk.model_extra["octo"]["receipt"]  # type: ignore[index]
    assert texts == ["Hello!", "Hello!"]
    assert receipts == dict(enumerate(known.receipts[:2]))
    assert chunk.usage is not None
    assert chunk.usage.prompt_tokens == 14


async def test_one_choice_that_fails_ends_the_others(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("one", 0.05, PeerGone("the provider is gone.", peer="12D3KooWgone"))
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="small", messages=HELLO, n=4)
    assert node.buyer.running == 0


# ---- errors become exceptions ----


async def test_a_wrong_key_is_an_authentication_error(api: str, node: Any) -> None:
    async with AsyncOpenAI(base_url=f"{api}/v1", api_key="octo-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert "octo-wrong" not in caught.value.response.text


async def test_an_unknown_model_is_not_found_and_says_what_is_on_offer(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-17", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert caught.value.body["octo"]["on_offer"] == ["small"]  # type: ignore[index]


async def test_while_the_node_is_starting_a_client_is_told_to_come_again(client: AsyncOpenAI, node: Any) -> None:
    node.ready = False
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="gpt-17", messages=HELLO)
    assert (caught.value.status_code, caught.value.code) == (503, "no_provider")
    assert caught.value.response.headers["Retry-After"] == "1"
    assert caught.value.body["message"] == (  # type: ignore[index]
        "this node is starting: its models are being loaded. Try again in a moment; /healthz says when it is ready."
    )


async def test_no_provider_says_why_each_one_was_not_chosen(client: AsyncOpenAI, node: Any) -> None:
    reasons = {
        "12D3KooWaaaaaaaa": "does not serve that model",
        "12D3KooWbbbbbbbb": "took 3 prepayments and stayed silent",
    }
    node.buyer.steps = (NoProvider("no provider can serve this task.", reasons=reasons, next_step="Wait."),)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="small", messages=HELLO, stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.code == "no_provider"
        assert caught.value.type == "network_error"
        assert caught.value.body["octo"]["reasons"] == reasons  # type: ignore[index]
        assert caught.value.body["octo"]["next_step"] == "Wait."  # type: ignore[index]
        assert all(reason in str(caught.value) for reason in (*reasons.values(), "Wait."))


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (PromptTooLong("the prompt is too long.", param="messages"), 400, "context_length_exceeded", "messages"),
        (InsufficientFunds("12 OCTO are missing."), 402, "insufficient_funds", None),
        (PeerGone("gone.", peer="12D3KooWgone"), 502, "peer_gone", None),
    ],
)
async def test_an_error_before_the_first_token_has_its_status_in_a_stream_too(
    client: AsyncOpenAI, node: Any, error: Exception, status: int, code: str, param: str | None
) -> None:
    node.buyer.steps = (0.05, error)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)


async def test_an_error_after_the_first_token_is_raised_by_the_client(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = ("Hel", 0.05, PeerGone("the provider is gone.", peer="12D3KooWgone", next_step="Ask again."))
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    heard = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            heard += chunk.choices[0].delta.content or ""
    assert heard == "Hel"
    assert caught.value.message == "the provider is gone. Ask again."
    assert caught.value.code == "peer_gone"
    assert caught.value.body["octo"]["peer"] == "12D3KooWgone"  # type: ignore[index]


async def test_no_done_follows_an_error(http: Any, node: Any, known: Any) -> None:
    node.buyer.steps = ("Hel", 0.05, PeerGone("gone.", peer="12D3KooWgone"))
    async with http.post("/v1/chat/completions", json={**known.question, "stream": True}) as response:
        assert response.status == 200
        lines = [line for line in (await response.text()).split("\n\n") if line]
    assert "error" in json.loads(lines[-1].removeprefix("data: "))
    assert "[DONE]" not in "".join(lines)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_its_provider_broke_off_is_no_success(
    client: AsyncOpenAI, node: Any, known: Any, stream: bool
) -> None:
    node.buyer.outcome_of = lambda order: known.outcome(order, finish="error")
    with pytest.raises(openai.APIError) as caught:
        answer = await client.chat.completions.create(model="small", messages=HELLO, stream=stream)
        [chunk async for chunk in answer]
    assert caught.value.code == "peer_failed"
    assert known.receipt in caught.value.message


async def test_an_answer_that_ends_without_an_outcome_says_that_the_node_stops(
    http: Any, node: Any, known: Any
) -> None:
    node.buyer.steps = ("Hel",)
    node.buyer.outcome_of = lambda order: None
    async with http.post("/v1/chat/completions", json=known.question) as response:
        assert response.status == 500
        assert "stopping" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_bug_of_ours_tells_nothing_about_its_inside(http: Any, node: Any, known: Any, stream: bool) -> None:
    node.buyer.steps = (RuntimeError("the secret inside"),)
    async with http.post("/v1/chat/completions", json={**known.question, "stream": stream}) as response:
        text = await response.text()
        assert response.status == 500
        assert response.headers["X-Should-Retry"] == "false"
    assert "secret" not in text
    assert json.loads(text)["error"]["code"] == "internal_error"


async def test_a_bug_after_the_first_token_ends_the_stream_with_an_error(http: Any, node: Any, known: Any) -> None:
    node.buyer.steps = ("Hel", 0.05, RuntimeError("the secret inside"))
    async with http.post("/v1/chat/completions", json={**known.question, "stream": True}) as response:
        text = await response.text()
        assert response.status == 200
    assert "secret" not in text
    assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "internal_error"


# ---- models ----


async def test_models_are_listed_and_found_by_name_cid_and_default(client: AsyncOpenAI, known: Any) -> None:
    (listed,) = (await client.models.list()).data
    assert listed.id == "small"
    assert listed.model_extra["octo"]["context"] == 2048  # type: ignore[index]
    for name in ("small", "default", known.model):
        found = await client.models.retrieve(name)
        assert found.id == name
        assert found.model_extra["octo"]["model"] == known.model  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("owner/gpt-17")


async def test_two_models_of_one_name_are_told_apart_by_cid(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.on_offer_now = [known.offered, known.second]
    assert [model.id for model in (await client.models.list()).data] == ["small", known.second.model]


async def test_a_model_that_nobody_offers_any_more_is_not_found(client: AsyncOpenAI, node: Any) -> None:
    node.on_offer_now = []
    assert (await client.models.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("default")
