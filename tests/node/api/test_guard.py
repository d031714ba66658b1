"""Who may come in: names, origins, keys, sizes."""

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from market.errors import NodeMisconfigured
from node.api.guard import Failures
from node.api.limits import ApiLimits
from node.api.server import open_api


async def send_raw(api: str, request: bytes) -> tuple[int, str]:
    """Status and body of an answer to exactly these bytes."""
    host, _, port = api.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
            text = head.decode()
            length = next(int(x.split(":")[1]) for x in text.split("\r\n") if x.lower().startswith("content-length"))
            return int(text.split()[1]), (await reader.readexactly(length)).decode()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1", "127.1",
     "2130706433", "192.168.0.1", "local host", "127.0.0.1:x"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/healthz", "/v1/models"])
async def test_another_name_in_host_is_refused(http: Any, host: str, path: str) -> None:
    async with http.get(path, headers={"Host": host}) as response:
        assert response.status == 403
        assert (await response.json())["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8080", "LOCALHOST", "[::1]:1", "[0:0:0:0:0:0:0:1]"])
async def test_our_own_names_are_taken_with_any_port(http: Any, host: str) -> None:
    async with http.get("/v1/models", headers={"Host": host}) as response:
        assert response.status == 200


async def test_a_configured_name_is_taken(node: Any, known: Any) -> None:
    async with (
        open_api(node, ports=(0,), allowed_hosts=["Node.Example"]) as url,
        aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {known.key}"}) as session,
    ):
        for host, status in (("node.example:80", 200), ("NODE.example", 200), ("other.example", 403)):
            async with session.get("/v1/models", headers={"Host": host}) as response:
                assert response.status == status


async def test_two_host_headers_or_none_are_refused(api: str) -> None:
    status, _ = await send_raw(api, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert status in (400, 403)
    status, _ = await send_raw(api, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert status in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "file://", "http://[", "https://localhost:1"])
async def test_another_origin_is_refused(http: Any, origin: str) -> None:
    async with http.get("/v1/models", headers={"Origin": origin}) as response:
        assert response.status == 403
        assert (await response.json())["error"]["code"] == "origin_not_allowed"


async def test_our_own_origin_is_taken(http: Any, api: str) -> None:
    async with http.get("/v1/models", headers={"Origin": api}) as response:
        assert response.status == 200


async def test_no_answer_invites_other_origins(http: Any) -> None:
    async with http.options("/v1/models", headers={"Origin": "http://evil.example"}) as response:
        assert response.status == 403
    async with http.get("/v1/models") as response:
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic {key}", "Bearer x{key}", "{key}", "Bearer \udcff\udcfe"]
)
async def test_every_route_but_healthz_wants_a_key(api: str, known: Any, authorization: str | None) -> None:
    sent = f"Authorization: {authorization.format(key=known.key)}\r\n" if authorization is not None else ""
    for path, status in (("/healthz", 200), ("/v1/models", 401), ("/api/v1/status", 401), ("/metrics", 401),
                         ("/no/such/route", 401)):  # fmt: skip
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{sent}\r\n".encode(errors="surrogateescape")
        got, body = await send_raw(api, request)
        assert got == status
        if status == 401:
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code", "octo"}


async def test_the_token_of_the_command_line_is_taken(api: str, known: Any) -> None:
    headers = {"Authorization": f"bearer {known.token}"}
    async with aiohttp.ClientSession(api, headers=headers) as session, session.get("/api/v1/status") as response:
        assert response.status == 200


async def test_no_body_is_read_from_who_has_no_key(api: str) -> None:
    """The answer comes though the body never does."""
    status, _ = await send_raw(
        api, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    )
    assert status == 401


async def test_keys_and_prompts_never_reach_the_log(http: Any, api: str, known: Any) -> None:
    question = {**known.question, "messages": [{"role": "user", "content": "my darkest secret"}]}
    wrong = {"Authorization": "Bearer octo-wrongwrongwrong"}
    with capture_logs() as lines:
        async with http.post("/v1/chat/completions", json=question):
            pass
        async with http.post("/v1/chat/completions", json={**question, "temperature": "my darkest secret"}):
            pass
        async with http.get("/v1/models/darkest-secret?x=secret"):
            pass
        async with http.get("/v1/models", headers=wrong):
            pass
    said = json.dumps(lines, default=str)
    assert [line["event"] for line in lines].count("http_request") == 4
    assert "answered" in said
    for hidden in ("secret", known.key, "wrongwrong"):
        assert hidden not in said


async def test_who_knocks_too_often_with_a_wrong_key_is_told_to_wait_but_a_valid_key_passes(
    node: Any, known: Any
) -> None:
    async with (
        open_api(node, ports=(0,), limits=ApiLimits(bad_keys=3, bad_keys_per_s=0)) as url,
        aiohttp.ClientSession(url) as session,
    ):
        seen = []
        for _ in range(5):
            async with session.get("/v1/models", headers={"Authorization": "Bearer no"}) as response:
                seen.append(response.status)
        assert seen == [401, 401, 401, 429, 429]
        assert response.headers["Retry-After"] == "1"
        async with session.get("/v1/models", headers={"Authorization": f"Bearer {known.key}"}) as response:
            assert response.status == 200


def test_failures_are_forgiven_with_time_and_the_oldest_address_is_forgotten_first() -> None:
    now = [0.0]
    failures = Failures(ApiLimits(bad_keys=1, bad_keys_per_s=0.5, addresses=2), lambda: now[0])
    assert failures.note("a")
    assert not failures.note("a")
    now[0] = 2.0
    assert failures.note("a")
    assert not failures.note("a")
    assert failures.note("b")
    assert failures.note("c")
    assert failures.note("a")


# ---- sizes and times ----


async def test_an_oversized_body_is_refused(http: Any, known: Any) -> None:
    question = {**known.question, "messages": [{"role": "user", "content": "x" * (4 << 20)}]}
    async with http.post("/v1/chat/completions", json=question) as response:
        assert response.status == 413
        error = (await response.json())["error"]
    assert error["code"] == "request_too_large"
    assert "4194304" in error["message"]


async def test_an_oversized_body_of_unknown_length_is_refused(http: Any) -> None:
    async def pieces() -> Any:
        for _ in range(6):
            yield b"x" * (1 << 20)

    async with http.post("/v1/chat/completions", data=pieces()) as response:
        assert response.status == 413


async def test_a_compressed_bomb_is_refused(http: Any) -> None:
    bomb = gzip.compress(b'{"model": "' + b"x" * (64 << 20) + b'"}')
    assert len(bomb) < 100_000
    async with http.post("/v1/chat/completions", data=bomb, headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 413


async def test_a_body_that_does_not_come_is_not_waited_for(node: Any, known: Any) -> None:
    async with open_api(node, ports=(0,), limits=ApiLimits(body_timeout_s=0.1)) as url:
        status, body = await send_raw(
            url,
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {known.key}\r\n"
            "Content-Length: 100\r\n\r\n{".encode(),
        )
    assert status == 408
    assert json.loads(body)["error"]["code"] == "request_timed_out"


async def test_more_answers_at_once_than_the_limit_are_told_to_come_again(node: Any, known: Any) -> None:
    node.buyer.steps = ("one", 3600.0)
    async with (
        open_api(node, ports=(0,), limits=ApiLimits(requests=1)) as url,
        aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {known.key}"}) as session,
    ):
        question = {**known.question, "stream": True}
        async with session.post("/v1/chat/completions", json=question) as first:
            assert first.status == 200
            async with session.post("/v1/chat/completions", json=question) as second:
                assert second.status == 429
                assert (await second.json())["error"]["code"] == "rate_limit_exceeded"
        async with asyncio.timeout(60):
            await node.buyer.hung_up.wait()
        node.buyer.steps = ("one",)
        async with asyncio.timeout(60):
            while (await session.post("/v1/chat/completions", json=question)).status != 200:
                await asyncio.sleep(0.01)


async def test_a_reader_that_stops_reading_is_let_go(node: Any, known: Any) -> None:
    node.buyer.steps = ("x" * 1_000_000,) * 64 + (3600.0,)
    async with open_api(node, ports=(0,), limits=ApiLimits(write_timeout_s=0.2)) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({**known.question, "stream": True})
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {known.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        async with asyncio.timeout(60):
            await node.buyer.hung_up.wait()
        writer.close()


# ---- the listener ----


async def test_a_port_in_use_is_named_with_what_to_do(node: Any, api: str) -> None:
    port = int(api.rpartition(":")[2])
    with pytest.raises(NodeMisconfigured) as caught:
        async with open_api(node, ports=(port,)):
            pass
    assert f"port {port} on 127.0.0.1 is in use" in str(caught.value)
    assert "OCTO_API__PORT" in caught.value.next_step


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70000)])
async def test_an_address_that_is_not_ours_is_named(node: Any, host: str, port: int) -> None:
    with pytest.raises(NodeMisconfigured) as caught:
        async with open_api(node, host=host, ports=(port,)):
            pass
    assert host in str(caught.value) or str(port) in str(caught.value)
    assert caught.value.next_step


async def test_a_listener_on_every_address_says_one_that_can_be_reached(node: Any) -> None:
    async with open_api(node, host="0.0.0.0", ports=(0,)) as url:
        assert url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession(url) as session, session.get("/healthz") as response:
            assert response.status == 200
        async with aiohttp.ClientSession(url) as session, session.get("/healthz", headers={"Host": "0.0.0.0"}) as other:
            assert other.status == 403


async def test_closing_the_api_ends_what_is_under_way(node: Any, known: Any) -> None:
    node.buyer.steps = ("one", 3600.0)
    async with asyncio.timeout(60):
        async with open_api(node, ports=(0,)) as url:
            session = aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {known.key}"})
            await session.post("/v1/chat/completions", json={**known.question, "stream": True})
    assert node.buyer.hung_up.is_set()
    await session.close()
