"""Which kind of work a request to /api/v1/inference is, and the audio or image that it brings along.

Pure. Bytes come as base64, as a `data:` URL, or apart, in a form. Nothing is fetched: a node that follows a stranger's
URL reaches what stands behind its firewall (server-side request forgery).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from market.errors import RequestInvalid
from market.work import BLOB_LIMIT_BYTES, Work
from node.api.inference_request import InferenceBody

_DATA_URL = re.compile(r"data:[A-Za-z0-9.+/-]{0,100}(?:;[A-Za-z0-9=.+-]{1,100}){0,4};base64,")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}:")
_BRING: Mapping[Work, str] = {Work.TRANSCRIBE: "audio", Work.LOOK: "image"}
_SIGNS: Mapping[str, Work] = {
    "messages": Work.CHAT,
    "texts": Work.EMBED,
    "documents": Work.RERANK,
    "audio": Work.TRANSCRIBE,
    "image": Work.LOOK,
    "what": Work.LOOK,
    "text": Work.SPEAK,
    "prompt": Work.IMAGE,
}
"""A member of `input` by which a kind of work is known; the first that is there decides."""

WorksOf = Callable[[str], Collection[Work]]
"""What a model of that name is offered for; raises ModelUnknown."""


class Sorted(NamedTuple):
    """`input` without the bytes, which are `blob`."""

    work: Work
    input: Any
    blob: bytes


def sort_out(asked: InferenceBody, file: bytes, works_of: WorksOf) -> Sorted:
    """`file` came apart, in a form. Raises RequestInvalid, ModelUnknown."""
    work = asked.work or _work_of(asked.input, file, asked.model, works_of)
    given, name = asked.input, _BRING.get(work, "")
    if not isinstance(given, dict) or name not in given:
        return Sorted(work, given, file)
    if file:
        raise RequestInvalid(f"input.{name}: it is there twice.", param=f"input.{name}")
    rest = {key: said for key, said in given.items() if key != name}
    return Sorted(work, rest, _bytes(given[name], f"input.{name}"))


def _work_of(given: object, file: bytes, model: str, works_of: WorksOf) -> Work:
    if isinstance(given, dict):
        for sign, work in _SIGNS.items():
            if sign in given:
                return work
    if file:
        return Work.LOOK if file.startswith((b"\x89PNG", b"\xff\xd8\xff")) else Work.TRANSCRIBE
    if isinstance(given, list) and given and isinstance(given[0], dict):
        return Work.CHAT
    if isinstance(given, str | list):
        offered = works_of(model)
        return Work.CHAT if Work.CHAT in offered or not offered else sorted(offered)[0]
    raise RequestInvalid(
        "input: it does not show which kind of work it is for.",
        next_step=f"Name one in `work`: {', '.join(Work)}.",
        param="input",
    )


def _bytes(given: object, where: str) -> bytes:
    if not isinstance(given, str):
        raise RequestInvalid(f"{where}: it should be a text of base64.", param=where)
    data_url = _DATA_URL.match(given)
    if data_url is None and _URL.match(given):
        raise RequestInvalid(
            f"{where}: this node fetches no URLs.",
            next_step="Send the bytes themselves, as base64, as a data: URL of base64, or as a form's file.",
            param=where,
        )
    text = given[data_url.end() :] if data_url else given
    if len(text) > (BLOB_LIMIT_BYTES + 2) // 3 * 4:
        raise RequestInvalid(f"{where}: it has more than {BLOB_LIMIT_BYTES} bytes.", param=where)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestInvalid(f"{where}: it is no base64.", param=where) from None
    if not data:
        raise RequestInvalid(f"{where}: it is empty.", param=where)
    return data
