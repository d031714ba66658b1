"""A contract's ABI: calls in, results, events and errors out. Addresses are 20 bytes everywhere.

Knows types and selectors, no contract and no chain. Source: the Solidity contract ABI specification.
eth-abi is imported when the first call is encoded: it takes 0.1 s of a core, and most commands never need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eth_hash.auto import keccak

from contracts.faults import ChainError
from market.values import value

_ERROR_TEXT = bytes.fromhex("08c379a0")  # Error(string), what `require(…, "…")` gives
_PANIC = bytes.fromhex("4e487b71")  # Panic(uint256), the compiler's own checks


@value
class Member:
    """One input or output: its canonical type, and its parts if it is a struct or an array of structs."""

    name: str
    type: str
    indexed: bool = False


@value
class Entry:
    """A function, event or error. `selector` is 4 bytes, an event's topic 32."""

    name: str
    selector: bytes
    inputs: tuple[Member, ...]
    outputs: tuple[Member, ...] = ()


@value
class Event:
    name: str
    arguments: Mapping[str, Any]


class Abi:
    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        """`items` is the compiler's JSON. An overloaded name is found by its signature, `f(uint256)`."""
        self._functions: dict[str, Entry] = {}
        self._events: dict[bytes, Entry] = {}
        self._errors: dict[bytes, Entry] = {}
        self._constructor: tuple[Member, ...] = ()
        for item in items:
            inputs = _members(item.get("inputs", ()))
            if item["type"] == "constructor":
                self._constructor = inputs
            if item["type"] not in ("function", "event", "error"):
                continue
            signature = f"{item['name']}({','.join(member.type for member in inputs)})"
            topic = bytes(keccak(signature.encode()))
            selector = topic if item["type"] == "event" else topic[:4]
            entry = Entry(
                name=item["name"], selector=selector, inputs=inputs, outputs=_members(item.get("outputs", ()))
            )
            if item["type"] == "function":
                self._functions[signature] = entry
                self._functions.setdefault(entry.name, entry)
            elif item["type"] == "event":
                self._events[topic] = entry
            else:
                self._errors[selector] = entry

    def call(self, name: str, *arguments: Any) -> bytes:
        """Calldata. A struct is a tuple of its members in order."""
        entry = self._functions[name]
        return entry.selector + _encode(entry.inputs, arguments)

    def construct(self, *arguments: Any) -> bytes:
        """What follows the bytecode of a deployment."""
        return _encode(self._constructor, arguments)

    def result(self, name: str, data: bytes) -> Any:
        """What a call returned: the one value, or a tuple. Raises ChainError for bytes of another shape."""
        outputs = self._functions[name].outputs
        found = _decode(outputs, data, what=name)
        return found[0] if len(outputs) == 1 else found

    def topic(self, event: str) -> bytes:
        return next(topic for topic, entry in self._events.items() if entry.name == event)

    def event(self, topics: Sequence[bytes], data: bytes) -> Event | None:
        """The event of a log; None for one that is not in this ABI. An indexed text or struct stays its hash."""
        entry = self._events.get(topics[0]) if topics else None
        if entry is None:
            return None
        indexed = [member for member in entry.inputs if member.indexed]
        plain = [member for member in entry.inputs if not member.indexed]
        if len(indexed) != len(topics) - 1:
            return None
        arguments: dict[str, Any] = {}
        for member, word in zip(indexed, topics[1:], strict=True):
            static = not member.type.endswith("]") and member.type not in ("string", "bytes") and "(" not in member.type
            arguments[member.name] = _decode((member,), word, what=entry.name)[0] if static else word
        arguments.update(zip((m.name for m in plain), _decode(plain, data, what=entry.name), strict=True))
        return Event(name=entry.name, arguments=arguments)

    def fault(self, data: bytes) -> tuple[str, tuple[Any, ...]]:
        """(name, arguments) of the error that a call reverted with; ("", ()) if it is not known here."""
        if data[:4] in self._errors:
            entry = self._errors[data[:4]]
            return entry.name, _decode(entry.inputs, data[4:], what=entry.name)
        text, number = Member(name="", type="string"), Member(name="", type="uint256")
        if data[:4] == _ERROR_TEXT:
            return "Error", _decode((text,), data[4:], what="Error")
        if data[:4] == _PANIC:
            return "Panic", _decode((number,), data[4:], what="Panic")
        return "", ()


def merge(*abis: Abi) -> Abi:
    """One that knows what all know, the first first: an escrow's revert may be its token's."""
    merged = Abi(())
    for abi in reversed(abis):
        merged._functions.update(abi._functions)
        merged._events.update(abi._events)
        merged._errors.update(abi._errors)
    return merged


def _members(items: Sequence[Mapping[str, Any]]) -> tuple[Member, ...]:
    return tuple(
        Member(name=item.get("name", ""), type=_canonical(item), indexed=bool(item.get("indexed"))) for item in items
    )


def _canonical(item: Mapping[str, Any]) -> str:
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_canonical(part) for part in item['components'])}){kind[len('tuple') :]}"


def _encode(members: Sequence[Member], arguments: Sequence[Any]) -> bytes:
    from eth_abi.abi import encode

    return encode([member.type for member in members], arguments)


def _decode(members: Sequence[Member], data: bytes, *, what: str) -> tuple[Any, ...]:
    from eth_abi.abi import decode

    types = [member.type for member in members]
    try:
        found = decode(types, data)
    except Exception as error:  # noqa: BLE001 - eth-abi raises a dozen kinds for bytes that do not fit
        raise ChainError(
            f"{what} answered {len(data)} bytes that are not {','.join(types)} ({type(error).__name__}).",
            next_step="Is this the address of another contract? See `octo-node contracts show`.",
        ) from None
    return tuple(
        _plain(part) if "address" in member.type else part for member, part in zip(members, found, strict=True)
    )


def _plain(part: Any) -> Any:
    """eth-abi gives addresses as 0x… text. (None of our contracts mixes texts and addresses in one struct.)"""
    if isinstance(part, str) and len(part) == 42 and part.startswith("0x"):
        try:
            return bytes.fromhex(part[2:])
        except ValueError:
            return part
    if isinstance(part, (tuple, list)):
        return tuple(_plain(inner) for inner in part)
    return part
