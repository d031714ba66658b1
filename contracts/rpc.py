"""JSON-RPC over HTTP, with limits on size and time. Knows no chain: what methods mean is `contracts.chain`'s.

A request may arrive twice, when a connection breaks; no method that we use minds: the same signed transaction
again is "already known".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from contracts.faults import ChainAway, ChainError, ChainRefused
from market.errors import NodeMisconfigured

ANSWER_LIMIT_BYTES = 32 * 1024 * 1024
_RETRY = "It is asked again by itself; see `octo-node status`."


class Rpc:
    """Use `open_rpc`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._numbers = itertools.count(1)
        self.host = urlsplit(url).netloc.rpartition("@")[2]

    async def call(self, method: str, *params: Any) -> Any:
        """The result. Raises ChainAway or ChainRefused."""
        answer = await self._post(self._request(method, params))
        if not isinstance(answer, dict):
            raise self._nonsense()
        return self._result(answer)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Results in the order of `calls`; the first refusal is raised."""
        if not calls:
            return []
        requests = [self._request(method, params) for method, params in calls]
        answers = await self._post(requests)
        if isinstance(answers, dict):  # a node may refuse a batch as a whole
            self._result(answers)
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            raise self._nonsense()
        found = {answer.get("id"): answer for answer in answers}
        if any(request["id"] not in found for request in requests):
            raise self._nonsense()
        return [self._result(found[request["id"]]) for request in requests]

    def _request(self, method: str, params: Sequence[Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": list(params)}

    async def _post(self, body: Any) -> Any:
        try:
            try:
                status, raw = await self._ask(body)
            except aiohttp.ServerDisconnectedError:  # a kept connection that the other side had closed meanwhile
                status, raw = await self._ask(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = "gives no answer in time" if isinstance(error, TimeoutError) else "cannot be reached"
            raise ChainAway(f"the chain at {self.host} {why}.", next_step=_RETRY) from None
        if raw is None:
            raise ChainError(f"the chain at {self.host} answered more than {ANSWER_LIMIT_BYTES >> 20} MiB.")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            if status != 200:
                raise ChainAway(f"the chain at {self.host} answers HTTP {status}.", next_step=_RETRY) from None
            raise self._nonsense() from None

    async def _ask(self, body: Any) -> tuple[int, bytes | None]:
        async with self._session.post(self._url, json=body, allow_redirects=False) as response:
            return response.status, await _read(response)

    def _result(self, answer: dict[str, Any]) -> Any:
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        if not isinstance(error, dict):
            error = {"message": str(error)}
        code = error.get("code")
        raise ChainRefused(
            str(error.get("message", "no reason given")),
            rpc_code=code if isinstance(code, int) else 0,
            data=_error_data(error.get("data")),
        )

    def _nonsense(self) -> ChainError:
        return ChainError(
            f"{self.host} does not speak JSON-RPC.", next_step="Check chain.url: it must be an Ethereum endpoint."
        )


@asynccontextmanager
async def open_rpc(url: str, *, timeout_s: float = 15.0) -> AsyncIterator[Rpc]:
    """A client for one endpoint. Raises NodeMisconfigured for what is no http(s) URL; connects when first asked."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NodeMisconfigured(
            "the chain's URL is not an http:// or https:// address.", next_step="Set chain.url to a JSON-RPC endpoint."
        )
    timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(5.0, timeout_s))
    connector = aiohttp.TCPConnector(limit=8)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
        yield Rpc(session, url)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_LIMIT_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _error_data(data: Any) -> bytes:
    """The bytes that a contract reverted with: plain hex, "Reverted 0x…" (Nethermind), or {"data": "0x…"}."""
    if isinstance(data, dict):
        data = data.get("data", data.get("result"))
    if not isinstance(data, str):
        return b""
    _, found, digits = data.partition("0x")
    try:
        return bytes.fromhex(digits) if found else b""
    except ValueError:
        return b""
