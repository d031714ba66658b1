"""Files and batches, used through OpenAI's own client."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from market.errors import NoProvider
from market.task import Mode


def line(n: int, **change: Any) -> dict[str, Any]:
    body = {"model": "small", "messages": [{"role": "user", "content": f"say {n}"}]}
    return {"custom_id": f"q{n}", "method": "POST", "url": "/v1/chat/completions", "body": body, **change}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in lines)


async def handed_in(client: AsyncOpenAI, content: bytes, endpoint: Any = "/v1/chat/completions") -> Any:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "tests"}
    )


async def ended(client: AsyncOpenAI, id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            batch = await client.batches.retrieve(id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.02)


async def lines_of(client: AsyncOpenAI, id: str | None) -> dict[str, Any]:
    assert id is not None
    content = await client.files.content(id)
    return {said["custom_id"]: said for said in map(json.loads, content.text.splitlines())}


async def test_a_file_is_kept_listed_read_and_removed(client: AsyncOpenAI) -> None:
    first = await client.files.create(file=("../in.jsonl", b"one"), purpose="batch")
    second = await client.files.create(
        file=("b.jsonl", b"two"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (first.filename, first.bytes, first.purpose, first.expires_at) == ("in.jsonl", 3, "batch", None)
    assert second.expires_at == second.created_at + 3600
    assert [file.id async for file in client.files.list()] == [second.id, first.id]
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == [first.id, second.id]
    assert (await client.files.content(first.id)).content == b"one"
    assert (await client.files.delete(first.id)).deleted
    for gone in (client.files.retrieve(first.id), client.files.content(first.id), client.files.delete(first.id)):
        with pytest.raises(openai.NotFoundError) as caught:
            await gone
        assert caught.value.code == "file_not_found"


async def test_each_line_is_answered_in_the_mode_async(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps_of = lambda order: (order.messages[0].content.upper(),)
    batch = await handed_in(client, jsonl(*(line(n) for n in range(7))) + b"\n")
    assert (batch.status, batch.request_counts.total) == ("validating", 0)
    batch = await ended(client, batch.id)
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (7, 7, 0)
    assert batch.metadata == {"for": "tests"}
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (49, 21)
    assert batch.model_extra["octo"]["amount"] == 7 * 16 * 10**11
    answers = await lines_of(client, batch.output_file_id)
    assert list(answers) == [f"q{n}" for n in range(7)]
    assert answers["q3"]["response"]["status_code"] == 200
    assert answers["q3"]["response"]["body"]["choices"][0]["message"]["content"] == "SAY 3"
    assert answers["q3"]["response"]["body"]["octo"]["receipt"] == known.receipt
    assert {order.mode for order in node.buyer.orders} == {Mode.ASYNC}


async def test_what_fails_stands_in_the_error_file(client: AsyncOpenAI, node: Any) -> None:
    missing = NoProvider("no provider can serve this task.", reasons={"12D3KooWa": "does not serve the mode async"})
    node.buyer.steps_of = lambda order: (missing,) if "say 1" in order.messages[0].content else ("yes",)
    stream = line(2)
    stream["body"]["stream"] = True
    batch = await handed_in(client, jsonl(line(0), line(1), stream, line(3, body={"model": "gpt-17"})))
    batch = await ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 3)
    errors = await lines_of(client, batch.error_file_id)
    assert [(id, error["response"]["status_code"]) for id, error in errors.items()] == [
        ("q1", 503), ("q2", 400), ("q3", 400),
    ]  # fmt: skip
    told = errors["q1"]["response"]["body"]["error"]
    assert (told["code"], told["octo"]["reasons"]) == ("no_provider", {"12D3KooWa": "does not serve the mode async"})
    assert errors["q2"]["response"]["body"]["error"]["param"] == "stream"


async def test_malformed_lines_are_named_and_nothing_is_bought(client: AsyncOpenAI, node: Any) -> None:
    content = jsonl(line(0), line(0), line(1, url="/v1/embeddings"), line(2, method="GET")) + b"{cut off\n[]\n"
    batch = await ended(client, (await handed_in(client, content)).id)
    assert batch.status == "failed"
    assert [(error.line, error.code, error.param) for error in batch.errors.data] == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "mismatched_endpoint", "url"),
        (4, "invalid_line", "method"),
        (5, "invalid_line", None),
        (6, "invalid_line", None),
    ]
    assert node.buyer.orders == []
    batch = await ended(client, (await handed_in(client, b"\n\n")).id)
    assert [error.code for error in batch.errors.data] == ["empty_file"]


async def test_embeddings_and_completions_come_in_batches_too(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps_of = lambda order: (b"\0\0\0\0",) if hasattr(order, "request") else ("on",)
    for endpoint, body in (("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})):
        content = jsonl(line(0, url=endpoint, body={"model": "small", **body}))
        batch = await ended(client, (await handed_in(client, content, endpoint)).id)
        answer = (await lines_of(client, batch.output_file_id))["q0"]["response"]["body"]
        assert answer["object"] in ("list", "text_completion")


async def test_a_cancelled_batch_stops_and_keeps_what_was_answered(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps_of = lambda order: ("yes",) if "say 0" in order.messages[0].content else (3600.0,)
    batch = await handed_in(client, jsonl(*(line(n) for n in range(20))))
    async with asyncio.timeout(60):
        while (await client.batches.retrieve(batch.id)).request_counts.completed < 1 or node.buyer.running < 4:
            await asyncio.sleep(0.02)
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    batch = await ended(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert node.buyer.running == 0
    assert list(await lines_of(client, batch.output_file_id)) == ["q0"]
    left = await lines_of(client, batch.error_file_id)
    assert len(left) == 19
    assert left["q7"]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(batch.id)


async def test_at_most_four_lines_are_under_way_at_once(client: AsyncOpenAI, node: Any) -> None:
    most = 0

    def steps(order: Any) -> Any:
        nonlocal most
        most = max(most, node.buyer.running)
        return (0.02, "yes")

    node.buyer.steps_of = steps
    batches = [await handed_in(client, jsonl(*(line(n) for n in range(10)))) for _ in range(2)]
    for batch in batches:
        assert (await ended(client, batch.id)).request_counts.completed == 10
    assert most == 4


async def test_batches_are_listed_the_newest_first(client: AsyncOpenAI) -> None:
    ids = [(await handed_in(client, jsonl(line(0)))).id for _ in range(3)]
    assert [batch.id async for batch in client.batches.list(limit=1)] == ids[::-1]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 5}}, "metadata.a"),
    ],
    ids=str,
)
async def test_a_batch_that_cannot_be_is_refused_by_name(http: Any, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h", **change}
    async with http.post("/v1/batches", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_a_file_that_cannot_be_kept_leaves_nothing_behind(client: AsyncOpenAI, tmp_path: Any) -> None:
    for change in ({"purpose": "fine-tune"}, {"file": b""}, {"expires_after": {"anchor": "created_at", "seconds": 1}}):
        with pytest.raises(openai.BadRequestError):
            await client.files.create(**{"file": b"x", "purpose": "batch", **change})  # type: ignore[arg-type]
    assert list((tmp_path / "batches" / "files").iterdir()) == []
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_none")


async def test_outputs_are_no_input(client: AsyncOpenAI) -> None:
    batch = await ended(client, (await handed_in(client, jsonl(line(0)))).id)
    with pytest.raises(openai.BadRequestError):
        await client.batches.create(
            input_file_id=batch.output_file_id, endpoint="/v1/completions", completion_window="24h"
        )
