"""What a URL and an Accept header ask for.

Lives here: pure parsing of the hostile parts of a request. Knows no store and no answer.
Sources: https://specs.ipfs.tech/http-gateways/path-gateway/ , RFC 3986 (percent-encoding).
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from inference.models.names import PATH_DEPTH_LIMIT, check_name
from market.errors import EncodingInvalid

RAW_TYPE = "application/vnd.ipld.raw"
_OTHER_TYPES = frozenset(
    {
        "application/vnd.ipld.car",
        "application/vnd.ipld.dag-json",
        "application/vnd.ipld.dag-cbor",
        "application/vnd.ipfs.ipns-record",
        "application/x-tar",
    }
)
"""Formats that the path gateway's specification names and that are not served here (yet)."""
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

Form = Literal["raw", "plain"]


def names_in(raw_path: str) -> tuple[str, ...]:
    """'/ipfs/bafy…/a%20b' -> ('ipfs', 'bafy…', 'a b'); one slash at the end is allowed and means nothing.

    Raises EncodingInvalid for an empty name, '.', '..', NUL, an escaped slash, bad escapes, or a path too deep. Nothing
    is ever tidied up: what a proxy in front might have read otherwise is refused.
    """
    parts = raw_path.split("/")
    if parts[0] or len(parts) < 2 or len(parts) > PATH_DEPTH_LIMIT + 5:
        raise EncodingInvalid("the path is too deep, or does not begin with a slash.")
    if parts[-1] == "" and len(parts) > 2:
        parts.pop()
    return tuple(_decoded(part) for part in parts[1:])


def _decoded(part: str) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise EncodingInvalid("the path has a % that is no escape.")
    try:
        name = unquote_to_bytes(part).decode()
    except ValueError:  # UnicodeError is one
        raise EncodingInvalid("the path is not UTF-8.") from None
    check_name(name)
    return name


def form_of(query_format: str | None, accept: str) -> Form | None:
    """'raw' for one block as it is, 'plain' for the file or listing; None for a format that is not served (406).

    `format` goes before Accept. Accept is a wish: types that mean nothing here are passed over, but somebody who wants
    a CAR and nothing else is told.
    """
    if query_format is not None:
        return "raw" if query_format == "raw" else None
    wanted = set()
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters):
            wanted.add(name)
    if RAW_TYPE in wanted:
        return "raw"
    return None if wanted and wanted <= _OTHER_TYPES else "plain"


def content_path(names: tuple[str, ...]) -> str:
    """The path again, every name escaped: fit for a header."""
    return "".join("/" + quote(name, safe="") for name in names)


def attachment(name: str) -> str:
    """A Content-Disposition that saves and never shows (RFC 6266, RFC 8187)."""
    plain = re.sub(r"[^A-Za-z0-9._ +()\[\]=,@~^-]", "_", name)
    text = f'attachment; filename="{plain}"'
    return text if plain == name else f"{text}; filename*=UTF-8''{quote(name, safe='')}"
