"""Listening to tasks of /api/v1/inference, by WebSocket and by events: readers that leave, come again, misbehave."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from market.errors import PeerGone
from market.taking import Delta
from node.api.limits import ApiLimits
from node.api.server import open_api
from node.batches.tasks import SEQ_PER_ATTEMPT

HELLO = {"model": "small", "input": "Hi", "mode": "realtime", "max_tokens": 10}


async def handed_in(http: Any, **change: Any) -> str:
    async with http.post("/api/v1/inference", json={**HELLO, **change}) as response:
        return (await response.json())["id"]


async def heard(
    http: Any, id: str, *, after: int = 0, count: int = 0, then: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """What the socket says until its end, or so many messages with a number. `then` is called once it says something:
    from there on nothing is missed."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(60), http.ws_connect(f"/api/v1/inference/{id}/stream?after={after}") as socket:
        async for message in socket:
            events.append(json.loads(message.data))
            if then is not None and len(events) == 1:
                then()
            if count and sum("seq" in event for event in events) >= count:
                break
    return events


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "delta")


async def test_a_socket_tells_text_progress_and_the_end_with_its_receipt(http: Any, node: Any, known: Any) -> None:
    listening = asyncio.Event()
    node.buyer.steps = (listening, "Hel", 0.2, "lo", 0.2, "!")
    events = await heard(http, await handed_in(http), then=listening.set)
    assert text(events) == "Hello!"
    assert events[0]["type"] == "state"
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == sorted(set(numbers))
    progress = [event["progress"] for event in events if event["type"] == "delta"]
    assert progress == sorted(progress) and 0 < progress[-1] < 100
    assert (events[-1]["type"], events[-1]["progress"]) == ("done", 100)
    assert events[-1]["task"]["receipts"] == [known.receipt]
    assert events[-1]["task"]["result"]["choices"][0]["message"]["content"] == "Hello!"


async def test_who_comes_again_hears_what_it_missed_and_nothing_twice(http: Any, node: Any) -> None:
    whole, more, end = "".join(f"{n} " for n in range(8)), asyncio.Semaphore(0), asyncio.Event()
    node.buyer.steps = [*(step for n in range(8) for step in (more, f"{n} ")), end]
    id = await handed_in(http)
    events: list[dict[str, Any]] = []

    def go_on() -> None:
        for _ in range(3):
            more.release()
        if text(events) == whole:
            end.set()

    while not events or events[-1]["type"] != "done":
        after = max((event["seq"] for event in events if "seq" in event), default=0)
        events += await heard(http, id, after=after, count=1 if text(events) != whole else 0, then=go_on)
    assert text(events) == whole
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == list(range(SEQ_PER_ATTEMPT + 1, SEQ_PER_ATTEMPT + 1 + len(numbers)))


async def test_who_comes_late_hears_how_it_ended(http: Any) -> None:
    id = await handed_in(http, wait_s=60)
    for after in (0, 3, 10**14):
        (last,) = await heard(http, id, after=after)
        assert (last["type"], last["task"]["progress"]) == ("done", 100)


async def test_a_second_attempt_begins_anew_with_higher_numbers(http: Any, node: Any, desk: Any) -> None:
    desk.tasks.limits = replace(desk.tasks.limits, pauses_s=(0.5,))
    listening = asyncio.Event()
    steps = iter([(listening, "Hel", 0.1, PeerGone("gone.", peer="12D3")), ("Hello", 0.1, "!")])
    node.buyer.steps_of = lambda _order: next(steps)
    events = await heard(http, await handed_in(http, mode="async"), then=listening.set)
    kinds = [event["type"] for event in events if event["type"] != "state"]
    assert kinds == ["begun", "delta", "waiting", "begun", "delta", "delta", "done"]
    waiting = next(event for event in events if event["type"] == "waiting")
    assert waiting["error"]["code"] == "peer_gone"
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == sorted(numbers) and numbers[3] == 2 * SEQ_PER_ATTEMPT + 1
    again = events[max(n for n, event in enumerate(events) if event["type"] == "begun") :]
    assert text(again) == "Hello!"


async def test_all_who_listen_hear_the_same_and_leaving_ends_nothing(http: Any, node: Any) -> None:
    listening, fourth_gone = asyncio.Semaphore(0), asyncio.Event()
    node.buyer.steps = ("Hel", *[listening] * 4, "lo", fourth_gone, "!")
    id = await handed_in(http)
    three = asyncio.gather(*(heard(http, id, then=listening.release) for _ in range(3)))
    await heard(http, id, count=1, then=listening.release)
    fourth_gone.set()
    assert [text(events) for events in await three] == ["Hello!"] * 3


async def test_server_sent_events_tell_the_same(http: Any, node: Any) -> None:
    node.buyer.steps = ("Hel", 0.2, "lo")
    async with http.post("/api/v1/inference", json={**HELLO, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        said = (await response.text()).split("\n\n")
    assert said[-2:] == ["data: [DONE]", ""]
    events = [json.loads(part.split("data: ")[1]) for part in said[:-2] if "data: " in part]
    assert text(events) == "Hello"
    last = next(part for part in said if '"delta"' in part)
    id, data = last.split("\n")
    headers = {"Last-Event-ID": id.removeprefix("id: ")}
    assert json.loads(data.removeprefix("data: "))["seq"] == int(headers["Last-Event-ID"])
    async with http.get(f"/api/v1/inference/{events[-1]['task']['id']}/stream", headers=headers) as response:
        assert '"type":"done"' in await response.text()


async def test_a_socket_ends_when_its_task_is_cancelled_or_removed(http: Any, node: Any) -> None:
    node.buyer.steps = ("Hel", 3600.0)
    for method, path, last in (("POST", "/cancel", "cancelled"), ("DELETE", "", "cancelled")):
        id = await handed_in(http)
        listening = asyncio.create_task(heard(http, id))
        await heard(http, id, count=2)
        await (await http.request(method, f"/api/v1/inference/{id}{path}")).read()
        events = await listening
        assert [event["type"] for event in events if "seq" in event][:2] == ["begun", "delta"]
        assert method == "DELETE" or events[-1]["type"] == last


@pytest.mark.parametrize("said", ["hello", "x" * 100_000, b"\0\1"])
async def test_a_socket_that_says_anything_is_closed_and_the_task_goes_on(http: Any, node: Any, said: Any) -> None:
    closed = asyncio.Event()
    node.buyer.steps = ("Hel", closed, "lo")
    id = await handed_in(http)
    async with asyncio.timeout(60), http.ws_connect(f"/api/v1/inference/{id}/stream") as socket:
        await (socket.send_bytes if isinstance(said, bytes) else socket.send_str)(said)
        async for _ in socket:
            pass
        assert socket.close_code in (1003, 1009)
    assert text(await heard(http, id, then=closed.set)) == "Hello"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Authorization": "Bearer octo-wrong"}, 401),
        ({"Authorization": ""}, 401),
    ],
    ids=str,
)
async def test_sockets_are_guarded_like_everything(http: Any, headers: dict[str, str], status: int) -> None:
    id = await handed_in(http, wait_s=60)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await http.ws_connect(f"/api/v1/inference/{id}/stream", headers=headers)
    assert caught.value.status == status


async def test_only_so_many_listen_at_once(node: Any, desk: Any, known: Any) -> None:
    node.buyer.steps = ("Hel", 3600.0)
    headers = {"Authorization": f"Bearer {known.key}"}
    async with (
        open_api(node, ports=(0,), limits=ApiLimits(listeners=2)) as url,
        aiohttp.ClientSession(url, headers=headers) as http,
    ):
        id = await handed_in(http)
        path = f"/api/v1/inference/{id}/stream"
        async with http.ws_connect(path), http.ws_connect(path):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(path)
            assert caught.value.status == 429
            async with http.post("/api/v1/inference", json={**HELLO, "wait_s": 60}) as response:
                assert response.status == 202  # queued, and not waited for
        async with asyncio.timeout(60), http.ws_connect(path) as socket:
            assert (await socket.receive_json())["type"] == "state"


async def test_a_reader_that_stops_reading_is_left_and_may_come_again(node: Any, desk: Any, known: Any) -> None:
    node.buyer.steps = [step for _ in range(40) for step in (Delta(text="x" * 400_000, tokens=1), 0.06)]
    headers = {"Authorization": f"Bearer {known.key}"}
    async with (
        open_api(node, ports=(0,), limits=ApiLimits(write_timeout_s=0.5, listeners=1)) as url,
        aiohttp.ClientSession(url, headers=headers) as http,
    ):
        id = await handed_in(http, max_tokens=100)
        path = f"/api/v1/inference/{id}/stream"
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {known.key}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert b"101" in await reader.readline()
        refused = 0
        async with asyncio.timeout(30):
            while True:
                async with http.get(path) as response:
                    if response.status == 200:
                        break
                    refused += response.status == 429
                await asyncio.sleep(0.1)
        assert refused
        writer.close()


@pytest.mark.parametrize("after", ["-1", "x", "1" * 16, "1.5"])
async def test_a_number_that_is_none_is_refused(http: Any, after: str) -> None:
    id = await handed_in(http, wait_s=60)
    async with http.get(f"/api/v1/inference/{id}/stream", params={"after": after}) as response:
        assert response.status == 400
    async with http.get("/api/v1/inference/task_none/stream") as response:
        assert response.status == 404
