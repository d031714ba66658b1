"""/api/v1/inference: any kind of work, handed in, asked after, listened to, over real sockets with a scripted buyer."""

import asyncio
import base64
import json
import struct
from typing import Any

import aiohttp
import pytest

from market.errors import NoProvider, PeerGone, RequestInvalid
from market.task import Mode, Privacy
from market.values import encode
from market.work import (
    EmbedRequest,
    Finding,
    ImageRequest,
    LookRequest,
    RerankRequest,
    Segment,
    SpeakRequest,
    TranscribeRequest,
)

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", 100, 50) + b"\x08\x02\0\0\0...."
VECTORS = struct.pack("<2f", 1.0, 0.5), struct.pack("<2f", 0.5, 1.0)
HELLO = {"model": "small", "input": "Hi"}


async def handed_in(http: Any, body: dict[str, Any], *, headers: Any = None) -> dict[str, Any]:
    async with http.post("/api/v1/inference", json=body, headers=headers) as response:
        told = await response.json()
        assert response.status in (200, 202), told
        assert response.headers["Location"] == f"/api/v1/inference/{told['id']}"
    return told


async def asked_after(http: Any, id: str) -> dict[str, Any]:
    async with http.get(f"/api/v1/inference/{id}") as response:
        assert response.status == 200
        return await response.json()


async def ended(http: Any, id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (task := await asked_after(http, id))["status"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return task


async def test_a_text_is_queued_bought_and_told_with_its_receipt(http: Any, node: Any, known: Any) -> None:
    task = await handed_in(http, {**HELLO, "max_tokens": 5, "temperature": 0.5, "seed": 7, "metadata": {"a": "b"}})
    assert (task["status"], task["mode"], task["work"]) == ("queued", "async", "chat")
    assert task["result"] is None
    task = await ended(http, task["id"])
    assert (task["status"], task["progress"], task["attempts"]) == ("done", 100, 1)
    assert task["result"]["choices"][0]["message"]["content"] == "Hello!"
    assert task["receipts"] == [known.receipt] == [task["result"]["octo"]["receipt"]]
    assert task["usage"] == {"units_in": 7, "units_out": 3}
    assert task["metadata"] == {"a": "b"}
    (order,) = node.buyer.orders
    assert (order.mode, order.max_tokens, order.sampling.temperature_micro) == (Mode.ASYNC, 5, 500_000)
    assert [message.content for message in order.messages] == ["Hi"]


@pytest.mark.parametrize(
    ("body", "steps", "request_"),
    [
        ({"input": {"texts": ["a", "b"]}}, VECTORS, EmbedRequest(inputs=("a", "b"))),
        ({"input": ["a"], "work": "embed"}, VECTORS[:1], EmbedRequest(inputs=("a",))),
        (
            {"input": {"query": "q", "documents": ["a", "b"], "top_n": 1}},
            (b"\0\0\0\0\0\0\x80?", b"\1\0\0\0\0\0\0@"),
            RerankRequest(query="q", documents=("a", "b")),
        ),
        (
            {"input": {"audio": base64.b64encode(b"RIFF").decode(), "language": "en", "words": True}},
            (encode(Segment, Segment(start_ms=0, end_ms=9, text="Ever")),),
            TranscribeRequest(language="en", words=True),
        ),
        (
            {"input": {"text": "Hi", "voice": "nova", "speed": 2.0}},
            (b"\1\0" * 9,),
            SpeakRequest(text="Hi", voice="en-us", speed_micro=2_000_000),
        ),
        (
            {"input": {"prompt": "a cat", "width": 64, "count": 2}, "seed": 5},
            (PNG, PNG),
            ImageRequest(prompt="a cat", width=64, count=2, seed=5),
        ),
        (
            {"input": {"image": "data:image/png;base64," + base64.b64encode(PNG).decode(), "what": "detect"}},
            (encode(Finding, Finding(label="cat", score_micro=900_000, box=(1, 2, 30, 40))),),
            LookRequest(what="detect"),
        ),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
async def test_every_kind_of_work_goes_through_the_same_door(
    http: Any, node: Any, body: Any, steps: Any, request_: Any
) -> None:
    node.buyer.steps = steps
    task = await handed_in(http, {"model": "small", "wait_s": 60, "mode": "batch", "privacy_level": "public", **body})
    assert task["status"] == "done", task
    assert task["work"] == request_.kind
    (order,) = node.buyer.orders
    assert order.request == request_
    assert (order.mode, order.privacy) == (Mode.BATCH, Privacy.PUBLIC)
    async with http.get(task["content"]["path"]) as response:
        content = await response.read()
        assert response.content_type == task["content"]["type"]
    assert len(content) == task["content"]["bytes"]
    if task["content"]["type"] == "application/json":
        assert json.loads(content) == task["result"]
    else:
        assert content[:4] == b"RIFF"


async def test_what_was_seen_is_told_in_pixels(http: Any, node: Any) -> None:
    findings = [
        Finding(label="Hello", score_micro=990_000, box=(1, 2, 30, 40)),
        Finding(label="world", score_micro=500_000, box=(0, 0, 0, 0)),
    ]
    node.buyer.steps = [encode(Finding, finding) for finding in findings]
    image = base64.b64encode(PNG).decode()
    task = await handed_in(http, {"model": "small", "wait_s": 60, "input": {"image": image, "what": "read"}})
    seen = task["result"]
    assert (seen["what"], seen["width"], seen["height"], seen["text"]) == ("read", 100, 50, "Hello\nworld")
    assert seen["findings"] == [
        {"label": "Hello", "score": 0.99, "box": {"left": 1, "top": 2, "right": 30, "bottom": 40}},
        {"label": "world", "score": 0.5, "box": None},
    ]
    assert seen["usage"] == {"tiles": 7, "findings": 3}


async def test_a_file_comes_in_a_form(http: Any, node: Any) -> None:
    node.buyer.steps = [encode(Finding, Finding(label="cat", score_micro=1))]
    form = aiohttp.FormData()
    form.add_field("request", json.dumps({"model": "small", "input": {"what": "classify"}, "wait_s": 60}))
    form.add_field("file", PNG, filename="cat.png")
    async with http.post("/api/v1/inference", data=form) as response:
        assert (await response.json())["result"]["findings"][0]["label"] == "cat"
    assert node.buyer.orders[0].blob == PNG


async def test_the_same_key_and_request_are_one_task(http: Any, node: Any) -> None:
    key = {"Idempotency-Key": "order-66"}
    first = await handed_in(http, HELLO, headers=key)
    again = await asyncio.gather(*(handed_in(http, HELLO, headers=key) for _ in range(5)))
    assert {task["id"] for task in again} == {first["id"]}
    await ended(http, first["id"])
    assert (await handed_in(http, HELLO, headers=key))["result"]["choices"]
    assert len(node.buyer.orders) == 1
    async with http.post("/api/v1/inference", json={**HELLO, "input": "Ho"}, headers=key) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (422, "idempotency_key_reused")
    assert (await handed_in(http, HELLO))["id"] != first["id"]
    for bad in ("", "with space", "x" * 256):
        async with http.post("/api/v1/inference", json=HELLO, headers={"Idempotency-Key": bad}) as response:
            assert response.status == 400


async def test_a_cancelled_task_stops_and_cannot_be_cancelled_twice(http: Any, node: Any) -> None:
    node.buyer.steps = ("Hel", 3600.0)
    task = await handed_in(http, HELLO)
    async with asyncio.timeout(60):
        while not node.buyer.running:
            await asyncio.sleep(0.01)
    async with http.post(f"/api/v1/inference/{task['id']}/cancel") as response:
        assert (await response.json())["status"] == "cancelled"
    async with asyncio.timeout(60):
        await node.buyer.hung_up.wait()
    async with http.post(f"/api/v1/inference/{task['id']}/cancel") as response:
        assert response.status == 409
    async with http.get(f"/api/v1/inference/{task['id']}/content") as response:
        assert response.status == 409


async def test_what_is_removed_leaves_nothing(http: Any, node: Any, tmp_path: Any) -> None:
    image = base64.b64encode(PNG).decode()
    node.buyer.steps = [encode(Finding, Finding(label="cat", score_micro=1))]
    body = {"model": "small", "input": {"image": image, "what": "classify"}}
    done = await handed_in(http, {**body, "wait_s": 60})
    node.buyer.steps = (3600.0,)
    running = await handed_in(http, body)
    for task in (done, running):
        async with http.delete(f"/api/v1/inference/{task['id']}") as response:
            assert await response.json() == {"id": task["id"], "object": "inference", "deleted": True}
        async with http.get(f"/api/v1/inference/{task['id']}") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "task_not_found")
    assert list((tmp_path / "batches" / "tasks").iterdir()) == []
    async with http.delete("/api/v1/inference/task_none") as response:
        assert response.status == 404


async def test_tasks_are_listed_the_newest_first_page_by_page(http: Any) -> None:
    ids = [(await handed_in(http, {**HELLO, "wait_s": 60}))["id"] for _ in range(5)]
    seen: list[str] = []
    more, after = True, ""
    while more:
        async with http.get("/api/v1/inference", params={"limit": 2, "after": after, "status": "done"}) as response:
            page = await response.json()
        seen += [task["id"] for task in page["data"]]
        more, after = page["has_more"], seen[-1]
        assert all(task["result"] is None for task in page["data"])
    assert seen == ids[::-1]
    for query in ({"limit": "0"}, {"limit": "x"}, {"status": "lost"}):
        async with http.get("/api/v1/inference", params=query) as response:
            assert response.status == 400


async def test_realtime_goes_before_all_that_waits(http: Any, node: Any) -> None:
    node.buyer.steps_of = lambda order: ("yes",) if order.mode is Mode.REALTIME else (3600.0,)
    slow = [await handed_in(http, {**HELLO, "mode": mode}) for mode in ("async", "batch") * 3]
    async with asyncio.timeout(60):
        while node.buyer.running < 4:
            await asyncio.sleep(0.01)
    task = await handed_in(http, {**HELLO, "mode": "realtime", "wait_s": 60})
    assert task["status"] == "done"
    positions = [(await asked_after(http, task["id"]))["position"] for task in slow]
    assert sorted(p for p in positions if p is not None) == [0, 1]
    assert positions[-1] == 0  # batch before async


async def test_what_may_go_better_later_is_tried_again_and_said_meanwhile(http: Any, node: Any) -> None:
    tries = 0

    def steps(_order: Any) -> Any:
        nonlocal tries
        tries += 1
        return ("yes",) if tries == 3 else (NoProvider("nobody.", reasons={"12D3": "is asleep"}),)

    node.buyer.steps_of = steps
    task = await handed_in(http, {**HELLO, "wait_s": 60})
    assert (task["status"], task["attempts"], task["error"]) == ("done", 3, None)


async def test_what_cannot_go_better_fails_at_once_with_the_reason(http: Any, node: Any) -> None:
    node.buyer.steps = (RequestInvalid("the picture is none.", param="image"),)
    task = await handed_in(http, {**HELLO, "wait_s": 60})
    assert (task["status"], task["error"]["message"], task["attempts"]) == ("failed", "the picture is none.", 1)
    node.buyer.steps = (PeerGone("gone.", peer="12D3"),)
    task = await handed_in(http, {**HELLO, "mode": "realtime", "wait_s": 60})
    assert (task["status"], task["error"]["code"], task["attempts"]) == ("failed", "peer_gone", 1)


async def test_a_task_that_is_not_done_in_time_expires(http: Any, node: Any) -> None:
    node.buyer.steps = (3600.0,)
    task = await handed_in(http, {**HELLO, "expires_in_s": 1, "wait_s": 60})
    assert (task["status"], node.buyer.running) == ("expired", 0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {}}, "input"),
        ({"input": {"messages": []}}, "input.messages"),
        ({"input": {"messages": [{"role": "user", "content": 5}]}}, "input.messages[0].content"),
        ({"input": {"messages": "Hi", "more": 1}}, "input.more"),
        ({"input": {"texts": []}}, "input.texts"),
        ({"input": {"texts": ["a"], "model": "other"}}, "input"),
        ({"input": {"query": "q", "documents": []}}, "input.documents"),
        ({"input": {"query": "q", "documents": ["a"], "octo": {"privacy": "public"}}}, "input"),
        ({"input": {"audio": 5}}, "input.audio"),
        ({"input": {"audio": "no base64!"}}, "input.audio"),
        ({"input": {"audio": ""}}, "input.audio"),
        ({"input": {"what": "read"}}, "input"),
        ({"input": {"image": "http://169.254.169.254/latest", "what": "read"}}, "input.image"),
        ({"input": {"image": "file:///etc/passwd", "what": "read"}}, "input.image"),
        ({"input": {"image": "data:image/png;base64,", "what": "read"}}, "input.image"),
        ({"input": {"image": "R0lGODlh", "what": "read"}}, "image"),
        ({"input": {"image": base64.b64encode(PNG).decode(), "what": "smell"}}, "input.what"),
        ({"input": {"image": base64.b64encode(PNG).decode(), "what": "read", "threshold": 2}}, "input.threshold"),
        ({"input": {"text": "Hi", "voice": "nobody"}}, "voice"),
        ({"input": {"prompt": "x", "width": 65}}, "input.width"),
        ({"input": {"prompt": "x"}, "seed": "x"}, "seed"),
        ({"input": {"prompt": "x"}, "max_tokens": 5}, "max_tokens"),
        ({"input": {"texts": ["a"]}, "temperature": 0.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"mode": "soon"}, "mode"),
        ({"work": "dance"}, "work"),
        ({"privacy": "secret"}, "privacy"),
        ({"privacy": "public", "privacy_level": "private"}, "privacy_level"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"wait_s": 1e9}, "wait_s"),
        ({"webhook": "http://example.org"}, "webhook"),
        ({"metadata": {"a": 5}}, "metadata.a"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_request_is_refused_by_name_and_nothing_is_kept(
    http: Any, node: Any, tmp_path: Any, change: dict[str, Any], param: str
) -> None:
    async with http.post("/api/v1/inference", json={**HELLO, **change}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, param), error
    assert list((tmp_path / "batches" / "tasks").iterdir()) == []
    async with http.get("/api/v1/inference") as response:
        assert (await response.json())["data"] == []


async def test_a_bomb_is_refused_before_anything_unpacks_it(http: Any) -> None:
    bomb = PNG[:16] + (16_000).to_bytes(4, "big") * 2 + PNG[24:]
    body = {"model": "small", "input": {"image": base64.b64encode(bomb).decode(), "what": "read"}}
    async with http.post("/api/v1/inference", json=body) as response:
        assert response.status == 400
        assert "16000 x 16000" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 10_000, b'{"model": "small", "input": ' + b"[" * 5000, b"\xff\xfe"])
async def test_bodies_that_are_no_json_are_refused(http: Any, body: bytes) -> None:
    async with http.post("/api/v1/inference", data=body) as response:
        assert response.status == 400


async def test_a_model_that_nobody_has_is_not_queued(http: Any) -> None:
    async with http.post("/api/v1/inference", json={**HELLO, "model": "huge"}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["octo"]["on_offer"] == ["small"]
