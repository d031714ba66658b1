"""What a request's Range, If-Range, If-Match and If-None-Match ask of a representation.

Lives here: pure functions over header text. Knows no request, no file and no store.
Source: RFC 9110 sections 8.8.3, 13 and 14. Every body here is named by what it holds, so an ETag is enough; there
are no dates.
"""

from __future__ import annotations

import re

from market.errors import EncodingInvalid

_ONE_RANGE = re.compile(r"[ \t]*([0-9]*)-([0-9]*)[ \t]*")
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DIGITS = 18
"""More than an exabyte: no file is that long, and int() of a header full of digits is no work for a server."""


def span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, one after the last) of `size` bytes, or None where all of them should go out with status 200.

    None for no header, for a unit that is not bytes and for several ranges (RFC 9110 14.2 lets a server ignore them;
    the path gateway's specification asks for single ranges only), and for an empty body, of which there is no part.
    Raises EncodingInvalid for what becomes 416: no range, or one that begins after the end.
    """
    unit, equals, text = (header or "").partition("=")
    if not equals or unit.strip().lower() != "bytes" or "," in text or size == 0:
        return None
    found = _ONE_RANGE.fullmatch(text)
    if found is None or text.strip() == "-":
        raise EncodingInvalid("the Range header holds no range of bytes.")
    first, last = found[1].lstrip("0") or found[1][:1], found[2].lstrip("0") or found[2][:1]
    if not first:
        suffix = size if len(last) > _DIGITS else int(last)
        start, stop = max(0, size - suffix), size
    else:
        start = size if len(first) > _DIGITS else int(first)
        stop = size if not last or len(last) > _DIGITS else min(size, int(last) + 1)
        if last and (len(first), first) > (len(last), last):
            raise EncodingInvalid("the Range header ends before it begins.")
    if start >= stop:
        raise EncodingInvalid(f"the range begins after the last of {size} bytes.")
    return start, stop


def names_tag(header: str | None, tag: str, *, weak: bool) -> bool:
    """Whether an If-Match or If-None-Match list holds the strong `tag` (with its quotes). `weak`: W/ counts too."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(found[2] == tag and (weak or not found[1]) for found in _TAG.finditer(header))


def range_counts(if_range: str | None, tag: str) -> bool:
    """Whether Range may be looked at: there is no If-Range, or it is this very strong tag. A date never is."""
    return if_range is None or if_range.strip() == tag
