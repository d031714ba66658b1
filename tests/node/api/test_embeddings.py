"""Embeddings, asked by OpenAI's own client; reranking, in the shape that its clients send."""

import base64
import struct
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from market.task import Mode, Privacy
from market.work import EmbedRequest, RerankRequest
from node.vectors.cache import open_embedding_cache

VECTORS = (struct.pack("<3f", 1.0, -0.5, 0.25), struct.pack("<3f", 0.0, 0.125, 2.0))


async def test_each_input_gets_its_vector_and_one_receipt_stands_for_all(
    client: AsyncOpenAI, node: Any, known: Any
) -> None:
    node.buyer.steps = VECTORS
    raw = await client.embeddings.with_raw_response.create(
        model="small", input=["one", "two"], dimensions=3, user="ann", extra_body={"octo": {"privacy": "public"}}
    )
    answer = raw.parse()
    (order,) = node.buyer.orders
    assert order.request == EmbedRequest(inputs=("one", "two"), dimensions=3)
    assert (order.model, order.privacy, order.mode) == (known.model, Privacy.PUBLIC, Mode.REALTIME)
    assert [(item.index, item.embedding) for item in answer.data] == [(0, [1.0, -0.5, 0.25]), (1, [0.0, 0.125, 2.0])]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
    assert answer.model_extra["octo"]["receipt"] == known.receipt == raw.headers["x-octo-receipt"]  # type: ignore[index]


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_vectors_come_as_numbers_or_as_base64(http: Any, node: Any, form: str) -> None:
    node.buyer.steps = VECTORS[:1]
    body = {"model": "small", "input": "one", "encoding_format": form}
    async with http.post("/v1/embeddings", json=body) as response:
        (item,) = (await response.json())["data"]
    assert item["embedding"] == ([1.0, -0.5, 0.25] if form == "float" else base64.b64encode(VECTORS[0]).decode())


@pytest.mark.parametrize(
    "steps",
    [
        VECTORS[:1],
        (*VECTORS, VECTORS[0]),
        (b"\0" * 5, VECTORS[0]),
        (b"", VECTORS[0]),
        (b"\xff" * 12, VECTORS[0]),
        (VECTORS[0], VECTORS[1][:8]),
    ],
    ids=["too few", "too many", "half a number", "nothing", "NaN", "two lengths"],
)
async def test_vectors_that_are_none_are_the_providers_failure(client: AsyncOpenAI, node: Any, steps: Any) -> None:
    node.buyer.steps = steps
    with pytest.raises(openai.InternalServerError) as caught:
        await client.embeddings.create(model="small", input=["one", "two"])
    assert (caught.value.status_code, caught.value.code) == (502, "peer_failed")


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"input": [1, -2]}, "input[0]", "at least 0"),
        ({"input": [[1, 2**31]]}, "input[0]", "below 2^31"),
        ({"input": [1, "two"]}, "input[0]", "integers"),
        ({"input": [[1], [True]]}, "input[1]", "integers"),
        ({"input": [[1.5]]}, "input[0]", "integers"),
        ({"input": ["one", {"text": "two"}]}, "input[1]", "a text, or"),
        ({"input": [[1], []]}, "input[1]", "at least 1"),
        ({"input": [[1] * 131_073]}, "input[0]", "131072"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ""}, "input[0]", "at least 1"),
        ({"input": ["x"] * 2049}, "input", "2048"),
        ({"input": [letter * 190_000 for letter in "xyz"]}, "input", "several requests"),
        ({"input": "x" * 200_001}, "input[0]", "200000"),
        ({"encoding_format": "int8"}, "encoding_format", "'base64'"),
        ({"dimensions": 0}, "dimensions", "1"),
        ({"model": "gpt-17"}, "model", "on offer"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_embedded_is_refused_by_name(
    http: Any, node: Any, change: dict[str, Any], param: str, reason: str
) -> None:
    async with http.post("/v1/embeddings", json={"model": "small", "input": "x", **change}) as response:
        error = (await response.json())["error"]
        assert response.status in (400, 404)
    assert error["param"] == param
    assert reason in error["message"]
    assert node.buyer.orders == []


@pytest.mark.parametrize(
    ("given", "inputs"),
    [([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,))), (["one", [3]], ("one", (3,)))],
    ids=["ids", "lists of ids", "both"],
)
async def test_token_ids_are_taken_as_they_come(http: Any, node: Any, given: Any, inputs: Any) -> None:
    node.buyer.steps = VECTORS[: len(inputs)]
    async with http.post("/v1/embeddings", json={"model": "small", "input": given}) as response:
        assert response.status == 200, await response.text()
    (order,) = node.buyer.orders
    assert order.request.inputs == inputs


async def test_what_stands_twice_is_bought_once_and_told_twice(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = VECTORS
    answer = await client.embeddings.create(model="small", input=["one", "two", "one"])
    (order,) = node.buyer.orders
    assert order.request.inputs == ("one", "two")
    first, second, third = ([float(n) for n in item.embedding] for item in answer.data)
    assert first == third == [1.0, -0.5, 0.25]
    assert second == [0.0, 0.125, 2.0]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.model_extra["octo"]["kept"] == {"vectors": 0, "receipts": {}}  # type: ignore[index]


async def test_a_length_that_changed_is_told_and_everything_bought_anew(
    client: AsyncOpenAI, node: Any, known: Any, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.db"
    async with open_embedding_cache(path, limit_bytes=1 << 20, shared=False, secret=lambda: bytes(32)) as cache:
        node.answers.vectors = cache
        node.buyer.outcome_of = lambda order: known.outcome(order, engine="test")
        node.buyer.steps = VECTORS[:1]
        await client.embeddings.create(model="small", input="one")
        node.buyer.steps = [VECTORS[1] * 2]
        with pytest.raises(openai.InternalServerError, match="different lengths"):
            await client.embeddings.create(model="small", input=["one", "two"])
        node.buyer.steps = [VECTORS[0] * 2, VECTORS[1] * 2]
        answer = await client.embeddings.create(model="small", input=["one", "two"])
        assert [order.request.inputs for order in node.buyer.orders] == [("one",), ("two",), ("one", "two")]
        assert [len(item.embedding) for item in answer.data] == [6, 6]


async def test_private_texts_are_never_kept(client: AsyncOpenAI, node: Any, known: Any, tmp_path: Path) -> None:
    path = tmp_path / "vectors.db"
    async with open_embedding_cache(path, limit_bytes=1 << 20, shared=False, secret=lambda: bytes(32)) as cache:
        node.answers.vectors = cache
        node.buyer.outcome_of = lambda order: known.outcome(order, engine="test")
        node.buyer.steps = VECTORS[:1]
        for privacy in ("private", "confidential", "shared", "shared"):
            await client.embeddings.create(model="small", input="one", extra_body={"octo": {"privacy": privacy}})
        assert cache is not None
        assert (cache.vectors, cache.counts.hits, len(node.buyer.orders)) == (1, 1, 3)


async def test_units_of_other_work_are_no_tokens(client: AsyncOpenAI, http: Any, node: Any) -> None:
    node.buyer.steps = VECTORS
    await client.embeddings.create(model="small", input=["one", "two"])
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'octo_units_total{direction="in",work="embed"} 7.0' in text
    assert 'octo_tokens_total{direction="in"}' not in text


# ---- rerank ----

DOCUMENTS = ["a", {"text": "b"}, "c"]
RANKS = (struct.pack("<If", 0, 0.25), struct.pack("<If", 1, 0.75), struct.pack("<If", 2, 0.25))


async def rerank(client: AsyncOpenAI, **change: Any) -> Any:
    body = {"model": "small", "query": "q", "documents": DOCUMENTS, **change}
    return await client.post("/rerank", body=body, cast_to=dict[str, Any])


async def test_documents_come_back_in_order_of_relevance(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = RANKS
    answer = await rerank(client)
    assert node.buyer.orders[0].request == RerankRequest(query="q", documents=("a", "b", "c"))
    assert [(found["index"], found["relevance_score"]) for found in answer["results"]] == [
        (1, 0.75), (0, 0.25), (2, 0.25),
    ]  # fmt: skip
    assert "document" not in answer["results"][0]
    assert answer["octo"]["receipt"] == known.receipt
    assert answer["usage"]["total_tokens"] == 7


async def test_the_best_come_with_their_texts_if_asked(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = RANKS
    answer = await rerank(client, top_n=1, return_documents=True)
    assert answer["results"] == [{"index": 1, "relevance_score": 0.75, "document": {"text": "b"}}]


@pytest.mark.parametrize(
    "steps",
    [RANKS[:2], (RANKS[0], RANKS[0], RANKS[1]), (*RANKS[:2], struct.pack("<If", 3, 1.0)), (*RANKS[:2], b"1234567")],
    ids=["too few", "one twice", "one that is not there", "half a rank"],
)
async def test_ranks_that_are_none_are_the_providers_failure(client: AsyncOpenAI, node: Any, steps: Any) -> None:
    node.buyer.steps = steps
    with pytest.raises(openai.InternalServerError) as caught:
        await rerank(client)
    assert caught.value.code == "peer_failed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents[0]"),
        ({"documents": [5]}, "documents[0]"),
        ({"query": ""}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_ranked_is_refused_by_name(
    client: AsyncOpenAI, node: Any, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await rerank(client, **change)
    assert caught.value.param == param
    assert node.buyer.orders == []
