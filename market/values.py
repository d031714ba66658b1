"""How values become bytes and back: frozen dataclasses <-> canonical DAG-CBOR.

Lives here: the `@value` decorator, `encode`/`decode`, size and depth limits. Knows no signature and no network.

Decoding re-encodes and compares, so two different byte strings never mean the same value, and a
coercion (a text "5" where an integer belongs) cannot slip through: it would not encode back.
Source: DAG-CBOR, https://ipld.io/specs/codecs/dag-cbor/spec/
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast, dataclass_transform

import libipld
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from market.errors import EncodingInvalid

T = TypeVar("T")

SIGNED_LIMIT_BYTES = 256 * 1024
DEPTH_LIMIT = 32


@dataclass_transform(frozen_default=True, kw_only_default=True)
def value(cls: type[T]) -> type[T]:
    """A frozen, slotted, keyword-only dataclass that pydantic parses with unknown fields refused."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


class Word(StrEnum):
    """A closed set of words; travels as plain text (DAG-CBOR knows no enums)."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        schema["serialization"] = core_schema.plain_serializer_function_ser_schema(str)  # type: ignore[index]
        return schema


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(kind: Any, item: object) -> Any:
    """A value as plain maps, lists, ints, texts and bytes."""
    return _untupled(_adapter(kind).dump_python(item))


def _untupled(plain: Any) -> Any:
    """libipld knows lists only. 1.3 us for a message."""
    if isinstance(plain, dict):
        return {key: _untupled(item) for key, item in plain.items()}
    if isinstance(plain, (tuple, list)):
        return [_untupled(item) for item in plain]
    return plain


def from_plain(kind: type[T], plain: object) -> T:
    """Parse plain data into a value; raises EncodingInvalid naming the first bad field."""
    try:
        parsed: T = _adapter(cast(Any, kind)).validate_python(plain)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "value"
        name = getattr(kind, "__name__", str(kind))
        raise EncodingInvalid(f"{name} is malformed: {where}: {first['msg']}.") from None
    return parsed


def encode(kind: Any, item: object) -> bytes:
    """Canonical DAG-CBOR of a value."""
    return bytes(libipld.encode_dag_cbor(to_plain(kind, item)))


def decode(kind: type[T], data: bytes, *, limit_bytes: int = SIGNED_LIMIT_BYTES) -> T:
    """Parse canonical DAG-CBOR; raises EncodingInvalid if too large, too deep, malformed or not canonical."""
    parsed = from_plain(kind, decode_plain(data, limit_bytes=limit_bytes))
    if encode(kind, parsed) != data:
        raise EncodingInvalid(f"{getattr(kind, '__name__', kind)} is not in canonical DAG-CBOR.")
    return parsed


def decode_plain(data: bytes, *, limit_bytes: int) -> Any:
    """DAG-CBOR to plain data, refusing what is over `limit_bytes` or nested deeper than DEPTH_LIMIT."""
    if len(data) > limit_bytes:
        raise EncodingInvalid(f"{len(data)} bytes are over the limit of {limit_bytes}.")
    _check_depth(data)
    try:
        return libipld.decode_dag_cbor(data)
    except Exception:  # noqa: BLE001 - libipld raises ValueError, and others for bad UTF-8
        raise EncodingInvalid("the bytes are not DAG-CBOR.") from None


def cid_of(data: bytes) -> str:
    """CIDv1 (dag-cbor, sha2-256) of encoded bytes, in base32 text."""
    return cid_text(b"\x01\x71\x12\x20" + hashlib.sha256(data).digest())


def cid_text(binary: bytes) -> str:
    return "b" + base64.b32encode(binary).decode().lower().rstrip("=")


def cid_digest(cid: str) -> bytes:
    """The sha-256 inside a base32 CIDv1; raises EncodingInvalid for any other kind of CID."""
    try:
        text = cid[1:].upper()
        binary = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raise EncodingInvalid(f"{cid[:80]!r} is not a CID.") from None
    if len(binary) != 36 or binary[0] != 1 or binary[2:4] != b"\x12\x20" or cid_text(binary) != cid:
        raise EncodingInvalid(f"{cid[:80]!r} is not a base32 CIDv1 with sha2-256.")
    return binary[4:]


def _check_depth(data: bytes) -> None:
    """Walk the CBOR heads once without building anything.

    A recursive decoder handed a megabyte of 0x81 ("array of one") overflows the stack and takes
    the process down, so depth is checked before libipld sees the bytes.
    """
    open_items: list[int] = []
    at, end = 0, len(data)
    while at < end:
        head = data[at]
        major, info = head >> 5, head & 31
        at += 1
        count = info
        if 24 <= info <= 27:
            width = 1 << (info - 24)
            count = int.from_bytes(data[at : at + width], "big")
            at += width
        elif info > 27:
            raise EncodingInvalid("the bytes are not DAG-CBOR.")
        if major in (2, 3):
            at += count
        if major in (4, 5, 6) and (count or major == 6):
            open_items.append(1 if major == 6 else count * (major - 3))
            if len(open_items) > DEPTH_LIMIT:
                raise EncodingInvalid(f"the bytes nest deeper than {DEPTH_LIMIT} levels.")
            continue
        while open_items:
            open_items[-1] -= 1
            if open_items[-1]:
                break
            open_items.pop()
