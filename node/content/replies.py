"""What goes back: status, headers, and which bytes of what.

Lives here: pure building of answers and of the headers that let a cache or CDN stand in front. Knows no socket.
Sources: https://specs.ipfs.tech/http-gateways/path-gateway/ (headers), RFC 9110 section 13.2.2 (order of conditions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from inference.models.store import OpenFile
from market.errors import EncodingInvalid
from node.content.ranges import names_tag, range_counts, span_of

FOREVER = "public, max-age=29030400, immutable"
"""The path gateway's specification: what a CID names never changes."""
UNSHARED = "private, no-store"
NEVER = "no-store"
"""For errors: a root may become public, or be pulled, in the next second."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes from `start` to `stop` of `file`, or of `body` if there is none. 304 and HEAD send the headers only."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    file: OpenFile | None = None
    start: int = 0
    stop: int = 0


def refuse(status: int, text: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = text.encode()
    fixed = {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": NEVER,
        "X-Content-Type-Options": "nosniff",
    }
    return Reply(status=status, headers=fixed | dict(headers or {}), body=body, stop=len(body))


def whole(headers: Mapping[str, str], body: bytes) -> Reply:
    return Reply(status=200, headers=headers, body=body, stop=len(body))


def with_headers(reply: Reply, **headers: str) -> Reply:
    return replace(reply, headers={**reply.headers, **headers})


def on_conditions(asked: Mapping[str, str], reply: Reply, size_bytes: int) -> Reply:
    """`reply`, whose representation has `size_bytes` and an ETag, cut down to what the request's headers allow."""
    tag = reply.headers["ETag"]
    if "If-Match" in asked and not names_tag(asked["If-Match"], tag, weak=False):
        return refuse(412, "That is not what lies here.\n")
    if names_tag(asked.get("If-None-Match"), tag, weak=True):
        return Reply(status=304, headers={k: v for k, v in reply.headers.items() if k != "Content-Type"})
    span = None
    if range_counts(asked.get("If-Range"), tag):
        try:
            span = span_of(asked.get("Range"), size_bytes)
        except EncodingInvalid as error:
            return refuse(416, f"{error}\n", {"Content-Range": f"bytes */{size_bytes}"})
    if span is None:
        return replace(reply, start=0, stop=size_bytes)
    start, stop = span
    headers = {**reply.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size_bytes}"}
    return replace(reply, status=206, headers=headers, start=start, stop=stop)
