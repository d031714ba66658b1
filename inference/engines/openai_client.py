"""Talking to one OpenAI-compatible server: its list of models, and answers as streams of events.

Lives here: connections, statuses, limits, and what the server may make us say about it. Knows no job and no token.
What the server says is a stranger's: its messages may hold the prompt or the key, so errors and names carry only words
of a closed alphabet. No redirect (it would take the text elsewhere), no cookie, no proxy, no compression.
Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from yarl import URL

from inference.engines.sse import EventBuffer
from inference.models.references import is_loopback
from market.errors import EncodingInvalid, EngineFailed, NodeMisconfigured, OctoError, PromptTooLong, RequestInvalid
from market.values import value

Key = Callable[[], str | None]
"""The bearer key of the moment, or None; asked for each request and kept nowhere."""

_BODY_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Of a list of models: 10,000 of them."""
_ERROR_LIMIT_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 8 * 1024
"""How much is read ahead of a slow reader, twice: some fifty deltas, beside what the kernel holds."""
_CONNECT_S: Final = 10.0
_DRAIN_S: Final = 0.1
_DRAIN_READS: Final = 4
_DEPTH_LIMIT: Final = 32
_PASSING: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
REFUSALS: Final = frozenset((400, 413, 422))
"""The request is at fault."""
_TOO_LONG: Final = ("context_length", "context_window", "exceed_context_size", "too_long")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_WORD: Final = re.compile(r"[a-z][a-z_]{1,47}")
_NAME: Final = re.compile(r"[^a-z0-9._-]+")


class UpstreamFailed(EngineFailed):
    """`passing`: asking again may help, after `wait_s` if the server said so."""

    def __init__(self, message: str, *, next_step: str = "", passing: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message, next_step=next_step)
        self.passing = passing
        self.wait_s = wait_s


@value
class UpstreamModel:
    """`context` in tokens, 0 if the server does not say; `owner` its own word for what it is, cleaned."""

    name: str
    context: int
    owner: str


class Events:
    """The events of one answer."""

    def __init__(self, response: aiohttp.ClientResponse, limit_bytes: int) -> None:
        self._response = response
        self._buffer = EventBuffer()
        self._left = limit_bytes
        self._done = False

    async def take(self) -> list[Any] | None:
        """The next events that came together, parsed; None at [DONE]. Raises UpstreamFailed, also where the stream
        ends before that."""
        if self._done:
            return None
        try:
            data = await self._response.content.readany()
            if not data:
                raise UpstreamFailed("the server behind this engine ended its answer in the middle.", passing=True)
            self._left -= len(data)
            if self._left < 0:
                raise UpstreamFailed("the server behind this engine sent far more than was asked for.")
            texts = list(self._buffer.feed(data))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _broken(error) from None
        except EncodingInvalid as error:
            raise UpstreamFailed(f"the server behind this engine sent what makes no sense: {error.message}") from None
        if b"[DONE]" in texts:
            self._done = True
            texts = texts[: texts.index(b"[DONE]")]
            return [parse_json(text) for text in texts] or None
        return [parse_json(text) for text in texts]

    async def drain(self) -> None:
        """Read on to the end that must be near, so that the connection can serve the next request."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                for _ in range(_DRAIN_READS):
                    if not await self._response.content.readany():
                        return


class Upstream:
    """Made by `open_upstream`."""

    def __init__(self, session: aiohttp.ClientSession, base: URL, key: Key) -> None:
        self._session = session
        self._base = base
        self._key = key

    async def models(self, timeout_s: float) -> Sequence[UpstreamModel]:
        """Raises UpstreamFailed."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.get(self._base / "models", headers=self._headers(), allow_redirects=False) as response,
            ):
                await self._check(response, "application/json")
                return _models(parse_json(await _limited(response, _BODY_LIMIT_BYTES)))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _broken(error) from None

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any], *, limit_bytes: int) -> AsyncIterator[Events]:
        """Post, and read the answer's events. Leaving the block ends the request. Raises UpstreamFailed or, if the
        server says that the request cannot be, RequestInvalid."""
        try:
            response = await self._session.post(
                self._base / path, json=body, headers=self._headers(), allow_redirects=False
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _broken(error) from None
        try:
            await self._check(response, "text/event-stream")
            yield Events(response, limit_bytes)
        finally:
            response.close()  # one that was read to its end has given its connection back already

    def _headers(self) -> dict[str, str]:
        key = self._key()
        headers = {"Accept-Encoding": "identity"}
        if key is None:
            return headers
        if not _KEY.fullmatch(key):
            raise NodeMisconfigured("the engine's key has characters that no key has.", next_step="Set it again.")
        return {**headers, "Authorization": f"Bearer {key}"}

    async def _check(self, response: aiohttp.ClientResponse, wanted: str) -> None:
        if response.status != 200:
            raise await self._refused(response)
        if response.content_type != wanted or response.headers.get("Content-Encoding", "identity") != "identity":
            raise UpstreamFailed(
                f"the server behind this engine answered with something else than {wanted}.",
                next_step="Check that the address is the base of an OpenAI-compatible API; it mostly ends in /v1.",
            )

    async def _refused(self, response: aiohttp.ClientResponse) -> OctoError:
        status, said = response.status, ""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, UpstreamFailed):
            async with asyncio.timeout(_CONNECT_S):
                said = error_word(parse_json(await _limited(response, _ERROR_LIMIT_BYTES)))
        words = f"{status}{f' ({said})' if said else ''}"
        if status in REFUSALS:
            return refusal(status, said)
        steps = {
            401: "Check the key of this engine in the settings.",
            402: "The account behind this engine has run out.",
            403: "Check the key of this engine, and what it may do.",
            404: "Check the engine's address and the model's name; the address mostly ends in /v1.",
            429: "Try again later: the server behind this engine is asked too often.",
        }
        if 300 <= status < 400:
            return UpstreamFailed(
                f"the server behind this engine redirects ({status}), and redirects are not followed.",
                next_step="Set the address to which it redirects.",
            )
        return UpstreamFailed(
            f"the server behind this engine answered {words}.",
            next_step=steps.get(status, "Look at that server's own log."),
            passing=status in _PASSING,
            wait_s=_retry_after(response.headers.get("Retry-After", "")),
        )


@asynccontextmanager
async def open_upstream(base: URL, key: Key, *, connections: int, socket: str = "") -> AsyncIterator[Upstream]:
    """`socket` is the path of a Unix socket to go through, whatever `base` names as host."""
    connector = aiohttp.UnixConnector(socket, limit=connections) if socket else aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_S, sock_read=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
        headers={"User-Agent": "octo-node"},
    ) as session:
        yield Upstream(session, base, key)


def parse_base(url: str, *, with_key: bool) -> tuple[URL, bool]:
    """(base URL, whether its host is this machine). Raises NodeMisconfigured.

    A bare `http://host:port` means `/v1` below it. A key goes over https only, or to this machine.
    """
    form = "The form is http(s)://HOST:PORT/v1."
    try:
        base = URL(url.rstrip("/"))
        host, _ = base.raw_host or "", base.port
    except ValueError:
        raise NodeMisconfigured("the engine's address is malformed.", next_step=form) from None
    if base.scheme not in ("http", "https") or not host or len(url) > 2048:
        raise NodeMisconfigured("the engine's address is not one of http or https.", next_step=form)
    if base.raw_user or base.raw_password or base.raw_query_string or base.raw_fragment or "@" in url:
        raise NodeMisconfigured(
            "the engine's address carries credentials or a query.",
            next_step=f"Put the key into its own setting. {form}",
        )
    here = is_loopback(host)
    if with_key and base.scheme == "http" and not here:
        raise NodeMisconfigured(
            "the engine's key would cross the network in the clear.",
            next_step="Use https, or a tunnel that ends on this machine.",
        )
    return (base / "v1" if base.path in ("", "/") else base), here


def parse_json(text: bytes) -> Any:
    """Raises UpstreamFailed for what is no JSON, or nests too deep."""
    try:
        parsed = json.loads(text)
        if _depth(parsed) <= _DEPTH_LIMIT:
            return parsed
    except (ValueError, RecursionError):
        pass
    raise UpstreamFailed("the server behind this engine sent what is not JSON, or nests too deep.")


def refusal(status: int, said: str) -> RequestInvalid:
    if status == 413 or any(part in said for part in _TOO_LONG):
        return PromptTooLong("the prompt is too long for the server behind this engine.", param="messages")
    return RequestInvalid(
        f"the server behind this engine refused the request: {status}{f' ({said})' if said else ''}.",
        next_step="Ask without what is special in it; the server may not know a setting, like top_k.",
    )


def error_word(body: Any) -> str:
    """The code or type in an error of the API, if it is a plain word; "" otherwise."""
    found = body.get("error", body) if isinstance(body, dict) else None
    for name in ("code", "type"):
        word = found.get(name) if isinstance(found, dict) else None
        if isinstance(word, str) and _WORD.fullmatch(word.lower()):
            return word.lower()
    return ""


def _models(body: Any) -> Sequence[UpstreamModel]:
    listed = body.get("data") if isinstance(body, dict) else None
    if not isinstance(listed, list):
        raise UpstreamFailed("the server behind this engine sent no list of models.")
    return [
        UpstreamModel(name=item["id"], context=_context(item), owner=_cleaned(item.get("owned_by")))
        for item in listed
        if isinstance(item, dict) and isinstance(item.get("id"), str)
    ]


def _context(item: Mapping[str, Any]) -> int:
    """vLLM and SGLang say `max_model_len`, llama-server `meta.n_ctx` (its slot) or `n_ctx_train`, some gateways
    `context_length`."""
    meta = item.get("meta")
    told = [item.get("max_model_len"), item.get("context_length")]
    if isinstance(meta, dict):
        told += [meta.get("n_ctx"), meta.get("n_ctx_train")]
    return next((n for n in told if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 30), 0)


def _cleaned(words: object) -> str:
    return _NAME.sub("-", words.lower()).strip("-.")[:32] if isinstance(words, str) else ""


def _depth(parsed: Any) -> int:
    depth, level = 0, [parsed]
    while level and depth <= _DEPTH_LIMIT:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
    return depth


async def _limited(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    data = bytearray()
    while piece := await response.content.readany():
        data += piece
        if len(data) > limit_bytes:
            raise UpstreamFailed(f"the server behind this engine sent more than {limit_bytes} bytes.")
    return bytes(data)


def _retry_after(text: str) -> float:
    """Seconds; a date is not read."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _broken(error: BaseException) -> UpstreamFailed:
    """The error's own words may hold the address or what the server sent: its kind must do."""
    if isinstance(error, TimeoutError):
        return UpstreamFailed("the server behind this engine did not answer in time.", passing=True)
    return UpstreamFailed(
        f"the server behind this engine cannot be reached, or broke off ({type(error).__name__}).",
        next_step="Check that it runs and that the engine's address is its own.",
        passing=True,
    )
