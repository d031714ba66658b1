"""Asking a delegated router who has a CID: `GET /routing/v1/providers/{cid}`. Off unless the settings name one.

Lives here: the question, and which parts of the answer may be dialled. Knows no gateway and no store. An answer is a
stranger's word: only IP addresses come out of it, by the rules of `endpoints`.
Source: https://specs.ipfs.tech/routing/http-routing-v1/
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import aiohttp
from pydantic_core import from_json
from yarl import URL

from inference.models.endpoints import may_dial, url_of_multiaddr
from inference.models.gateway import named_url
from inference.models.references import is_loopback
from inference.models.web_client import Target, Web, broken
from market.errors import ContentUnavailable, EncodingInvalid

_ANSWER_LIMIT_BYTES = 512 * 1024
_TIMEOUT_S = 15.0
_RECORDS_LIMIT = 100
"""What the specification says a router should send at most in JSON; an ndjson stream may have no end."""
_ADDRESSES_LIMIT = 16
_ENDPOINTS_LIMIT = 32
_GATEWAY = "transport-ipfs-gateway-http"


async def find_gateways(router_url: str, cid: str, web: Web) -> Sequence[str]:
    """Base URLs (`http://IP:PORT`, for HttpSource) of trustless gateways that are said to have `cid`; none if none.

    A router on this machine may name endpoints on this machine, any other one only public addresses. Endpoints with
    names (`/dns4/…`, most with TLS) are left out: the names are strangers'. Raises ContentUnavailable if the router
    does not answer, NodeMisconfigured if its URL is not one.
    """
    base = named_url(router_url, "router")
    url = URL(f"{str(base).rstrip('/')}/routing/v1/providers/{cid}", encoded=True)
    body = await _ask(base, Target(url=url, plain=base.scheme == "http"), web)
    origin = base.raw_host if is_loopback(base.raw_host or "") else None
    found: dict[str, None] = {}
    for number, record in enumerate(_records(body)):
        if number >= _RECORDS_LIMIT or len(found) >= _ENDPOINTS_LIMIT:
            break
        found.update(dict.fromkeys(_endpoints(record, origin)))
    return list(found)[:_ENDPOINTS_LIMIT]


async def _ask(base: URL, target: Target, web: Web) -> bytes:
    """The body, cut at the limit: the records that came whole are read, the rest is not waited for."""
    body, headers = bytearray(), {"Accept": "application/x-ndjson, application/json;q=0.8"}
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            web.open_get(target, headers, authorization=None, on_hop=lambda _: None) as (answer, _),
        ):
            if answer.status == 404:
                return b""
            if answer.status != 200:
                raise ContentUnavailable(f"the router {base.host} answered {answer.status}.")
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > _ANSWER_LIMIT_BYTES:
                    break
    except TimeoutError as error:
        if not body:
            raise broken(base, error) from None
    except (aiohttp.ClientError, OSError) as error:
        raise broken(base, error) from None
    return bytes(body)


def _records(body: bytes) -> Iterator[object]:
    """Records of either form: one object with `Providers`, or one record a line. What is torn is left out."""
    whole = _parsed(body)
    if isinstance(whole, dict) and isinstance(whole.get("Providers"), list):
        yield from whole["Providers"]
    else:
        yield from map(_parsed, body.splitlines())


def _parsed(text: bytes) -> object:
    try:
        return from_json(text)  # ends at 200 levels, where json would go as deep as the stack
    except ValueError:
        return None


def _endpoints(record: object, origin: str | None) -> Iterator[str]:
    if not isinstance(record, dict) or record.get("Schema") != "peer":
        return
    protocols, addresses = record.get("Protocols"), record.get("Addrs")
    if not isinstance(protocols, list) or _GATEWAY not in protocols or not isinstance(addresses, list):
        return
    for address in addresses[:_ADDRESSES_LIMIT]:
        if isinstance(address, str) and may_dial(address, origin):
            try:
                yield url_of_multiaddr(address)
            except EncodingInvalid:
                continue
