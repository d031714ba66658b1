"""What a Kubo daemon says: JSON lines, CIDs in any base, and errors in the middle of a success.

Lives here: reading answers with limits. An error can come inside a 200, as a line (`Type: error`), as a field of one
(`PinErrorMsg`) or as a trailer (`X-Stream-Error`) that aiohttp does not show: so a step has only succeeded if the
answer says so. Knows no address and no secret.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import aiohttp
import libipld
from pydantic_core import from_json

from inference.models.cid import Cid, cid_from_binary, parse_cid
from market.errors import ContentUnavailable, EncodingInvalid

LINE_LIMIT_BYTES = 64 * 1024
_ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
"""Half a million pins, or a year of progress lines."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def cid_of_text(text: object) -> Cid | None:
    """Daemons print CIDs in any base (js-ipfs in base58): compare bytes. None for what we have no use for."""
    if not isinstance(text, str) or not 2 <= len(text) <= 128:
        return None
    try:
        if text.startswith("Qm"):
            return parse_cid(text)
        return cid_from_binary(libipld.decode_multibase(text)[1])
    except (EncodingInvalid, ValueError):
        return None


def same_cid(text: object, cid: Cid) -> bool:
    """js-ipfs names a dag-pb block by its CIDv0; the digest and codec are the same."""
    return cid_of_text(text) == cid


def confirm(name: str, verb: str, root: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Raises ContentUnavailable unless a line names `root` under `Pins`."""
    wanted = parse_cid(root)
    for line in lines:
        listed = line.get("Pins")
        if isinstance(listed, list) and any(same_cid(one, wanted) for one in listed):
            return
    raise ContentUnavailable(f"{name} did not {verb} {root}: its answer ended without saying so.")


async def read_lines(answer: aiohttp.ClientResponse, name: str) -> AsyncIterator[dict[str, Any]]:
    """The JSON lines of an answer. Raises ContentUnavailable for one that is an error, or for endless ones."""
    rest, count = b"", 0
    async for piece in answer.content.iter_any():
        *whole, rest = (rest + piece).split(b"\n")
        count += len(piece)
        if len(rest) > LINE_LIMIT_BYTES or count > _ANSWER_LIMIT_BYTES:
            raise ContentUnavailable(f"{name} says more than anyone can read.")
        for text in whole:
            if text.strip():
                yield _parse(text, name)
        await asyncio.sleep(0)
    if rest.strip():
        yield _parse(rest, name)


def _parse(text: bytes, name: str) -> dict[str, Any]:
    try:
        line = from_json(text)  # ends at 200 levels, where json would go as deep as the stack
    except ValueError:
        raise ContentUnavailable(f"{name} answered with something that is not JSON.") from None
    if not isinstance(line, dict):
        raise ContentUnavailable(f"{name} answered with something that is no JSON object.")
    root = line.get("Root")
    failed = line.get("Type") == "error" or (isinstance(root, dict) and root.get("PinErrorMsg"))
    if failed:
        raise ContentUnavailable(f"{name}: {message_of(line) or message_of(root)}")
    return line


def message_of(line: object) -> str:
    """The daemon's words, printable and short: they end up in our errors."""
    if not isinstance(line, dict):
        return ""
    return _UNPRINTABLE.sub(" ", str(line.get("Message") or line.get("PinErrorMsg") or ""))[:300]


def text_of(line: Mapping[str, Any], key: str) -> str:
    return _UNPRINTABLE.sub(" ", str(line.get(key) or ""))[:256]
