"""Forms with one file in them (multipart/form-data, RFC 7578), read once, within limits on size, count and time.

The file goes to a sink as it comes and is never unpacked; fields are short texts. Lists are `name[]`, maps
`name[key]`, as OpenAI's clients write them; a map may also be one field of JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from market.errors import RequestInvalid
from node.api.limits import ApiLimits

FIELDS_LIMIT = 32
FIELD_LIMIT_BYTES = 64 * 1024
_AROUND_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_MAPPED = re.compile(r"([a-z_]{1,64})\[([a-z_]{0,64})\]")

Sink = Callable[[bytes], Awaitable[None]]
"""Takes the file's next bytes."""


@dataclass(frozen=True, slots=True)
class Upload:
    """`fields` without the file, whose length is `size`."""

    fields: dict[str, object]
    filename: str
    size: int


async def read_form(request: web.Request, limits: ApiLimits, sink: Sink, *, limit_bytes: int) -> Upload:
    """Raises RequestInvalid for a body that is malformed, HTTP 413 for a file over `limit_bytes`, HTTP 408 for one
    that does not arrive in time."""
    if request.content_type != "multipart/form-data":
        raise RequestInvalid("the body should be multipart/form-data, with the file in the field `file`.", param="file")
    announced = request.content_length or 0
    if announced > limit_bytes + _AROUND_BYTES + FIELD_LIMIT_BYTES:
        raise web.HTTPRequestEntityTooLarge(max_size=limit_bytes, actual_size=announced)
    try:
        async with asyncio.timeout(limits.upload_timeout_s):
            return await _Reading(request, limits, sink, limit_bytes).form()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except (ValueError, AssertionError, HttpProcessingError, RuntimeError, LookupError):
        # aiohttp's reader says so in many ways; what it read is a stranger's, and not repeated.
        raise RequestInvalid("the multipart body is malformed or cut off.") from None


class _Reading:
    def __init__(self, request: web.Request, limits: ApiLimits, sink: Sink, limit_bytes: int) -> None:
        self._request = request
        self._limits = limits
        self._sink = sink
        self._limit_bytes = limit_bytes
        self._left = FIELD_LIMIT_BYTES
        self._fields: dict[str, object] = {}
        self._filename = ""
        self._size = -1

    async def form(self) -> Upload:
        reader = await self._request.multipart()
        for _ in range(FIELDS_LIMIT):
            async with asyncio.timeout(self._limits.body_timeout_s):
                part = await reader.next()
            if part is None:
                break
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise RequestInvalid("each part of the form should have a name, and no parts of its own.")
            encoding = part.headers.get("Content-Transfer-Encoding", "binary").lower()
            if "Content-Encoding" in part.headers or encoding not in ("binary", "8bit", "7bit"):
                raise RequestInvalid("parts of the form should be plain bytes, packed or encoded by nothing.")
            await self._take(part, part.name)
        else:
            raise RequestInvalid(f"the form has more than {FIELDS_LIMIT} parts.")
        if self._size < 0:
            raise RequestInvalid("file: the form holds no file.", param="file")
        return Upload(self._fields, self._filename, self._size)

    async def _take(self, part: BodyPartReader, name: str) -> None:
        if name == "file":
            if self._size >= 0:
                raise RequestInvalid("file: one request takes one file.", param="file")
            self._filename = _plain_name(part.filename or "")
            self._size = 0
            while data := await self._chunk(part):
                self._size += len(data)
                if self._size > self._limit_bytes:
                    raise web.HTTPRequestEntityTooLarge(max_size=self._limit_bytes, actual_size=self._size)
                await self._sink(data)
            return
        text = bytearray()
        while data := await self._chunk(part):
            self._left -= len(data)
            if self._left < 0:
                raise RequestInvalid(f"the form's fields hold more than {FIELD_LIMIT_BYTES} bytes.")
            text += data
        try:
            self._put(name[:200], text.decode())
        except UnicodeDecodeError:
            raise RequestInvalid(f"{name[:64]}: it is not UTF-8.", param=name[:64]) from None

    async def _chunk(self, part: BodyPartReader) -> bytes:
        async with asyncio.timeout(self._limits.body_timeout_s):
            while not part.at_eof():
                if data := await part.read_chunk(_CHUNK_BYTES):
                    return bytes(data)
        return b""

    def _put(self, name: str, text: str) -> None:
        mapped = _MAPPED.fullmatch(name)
        if mapped is None:
            if name in self._fields:
                raise RequestInvalid(f"{name[:64]}: it is there twice.", param=name[:64])
            self._fields[name] = text
            return
        name, key = mapped.groups()
        held = self._fields.setdefault(name, {} if key else [])
        if key and isinstance(held, dict):
            held[key] = text
        elif not key and isinstance(held, list):
            held.append(text)
        else:
            raise RequestInvalid(f"{name}: it is there in two ways.", param=name)


def as_map(raw: object) -> object:
    """A field that is a map, written as JSON; anything else as it is."""
    if not isinstance(raw, str):
        return raw
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return parsed if isinstance(parsed, dict) and all(isinstance(item, str) for item in parsed.values()) else raw


def _plain_name(name: str) -> str:
    """A file's name for showing: never a path."""
    printable = "".join(letter for letter in name if letter.isprintable())
    return re.split(r"[/\\]", printable)[-1][:200]
