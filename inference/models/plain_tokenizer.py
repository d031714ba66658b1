"""Text counted in units of three bytes, for models whose tokenizer nobody here has: those behind somebody's server.

Lives here: the units, the one way in which a text is cut into them, and the canonical text of a chat. Knows no server.

A unit is a token id: (n << 24) | bytes, with n = 1 to 3 bytes of UTF-8, big-endian. All units of a text but the last
have three bytes. So how many there are is a function of the text alone: buyer and seller count alike without weights,
and a seller who cuts "the" into three units to be paid thrice is seen (`is_canonical`). A chat is the JSON text of its
messages, without spaces, keys in the order role, name, content, characters as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from inference.models.tokenizer import ROLES
from inference.models.tool_values import refuse_tools
from market.errors import EncodingInvalid, RequestInvalid
from market.task import MESSAGES_LIMIT, ChatMessage
from market.tools import CallForm, Tool

UNIT_BYTES: Final = 3
_KEYS: Final = (["role", "content"], ["role", "name", "content"])


class PlainTokenizer:
    """Implements `market.ports.Tokenizer`. No token ends an answer: the server that makes it says when it is over."""

    end_tokens: frozenset[int] = frozenset()
    call_form = CallForm.PLAIN

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The units of a chat. Raises RequestInvalid for a role that is none, for half a character, and for tools."""
        refuse_tools(messages, tools)
        for message in messages:
            if message.role not in ROLES:
                raise RequestInvalid(
                    f"{message.role!r} is not a role.", next_step=f"Use one of {', '.join(sorted(ROLES))}."
                )
        try:
            return units_of(_text_of(messages).encode())
        except UnicodeEncodeError:
            raise RequestInvalid("The text holds half a character (a lone surrogate).") from None

    def encode(self, text: str) -> tuple[int, ...]:
        """The units of plain text. Raises RequestInvalid for half a character."""
        try:
            return units_of(text.encode())
        except UnicodeEncodeError:
            raise RequestInvalid("The text holds half a character (a lone surrogate).") from None

    def token_bytes(self, token: int) -> bytes:
        """Raises EncodingInvalid for an id that is no unit."""
        return unit_bytes(token)

    def may_precede(self, token: int) -> bool:
        """All units of a text but the last have three bytes."""
        return token >> 24 == UNIT_BYTES


def units_of(data: bytes) -> tuple[int, ...]:
    return tuple(
        (len(piece) << 24) | int.from_bytes(piece, "big")
        for piece in (data[at : at + UNIT_BYTES] for at in range(0, len(data), UNIT_BYTES))
    )


def unit_bytes(unit: int) -> bytes:
    """Raises EncodingInvalid for an id that is no unit."""
    size = unit >> 24
    if not 1 <= size <= UNIT_BYTES or (unit & 0xFFFFFF) >> (8 * size):
        raise EncodingInvalid(f"{unit} is not a unit of one to three bytes.")
    return (unit & 0xFFFFFF).to_bytes(size, "big")


def is_canonical(units: Sequence[int]) -> bool:
    """Whether all units but the last have three bytes: nobody has been counted more than the text has."""
    return all(unit >> 24 == UNIT_BYTES for unit in units[:-1])


def bytes_of(units: Iterable[int]) -> bytes:
    return b"".join(map(unit_bytes, units))


def messages_of(prompt: Sequence[int]) -> tuple[ChatMessage, ...]:
    """The chat that `PlainTokenizer.render` made a prompt of. Raises RequestInvalid for anything else: what is not
    rendered to the same units again was not counted by these rules."""
    try:
        text = bytes_of(prompt).decode()
        parsed = json.loads(text)
        messages = tuple(map(_message, parsed if isinstance(parsed, list) else ()))
        if 1 <= len(messages) <= MESSAGES_LIMIT and PlainTokenizer().render(messages) == tuple(prompt):
            return messages
    except (EncodingInvalid, ValueError, RecursionError):
        pass
    raise RequestInvalid(
        "the server that runs this model is asked chats alone, and this is none.",
        next_step="Ask /v1/chat/completions.",
        param="messages",
    )


class UnitCutter:
    """Text as it comes, units as they become whole; at most `limit` of them, and no half character at that end."""

    def __init__(self, limit: int) -> None:
        self._room = limit * UNIT_BYTES
        self._held = b""
        self._surrogate = ""
        self.full = False
        """There was more text than `limit` units hold; what is over is dropped."""

    def feed(self, text: str) -> tuple[int, ...]:
        """Whole units; up to two bytes wait for what comes next. JSON may break a character into two surrogates, and
        a server may send the second half in its next piece."""
        text, self._surrogate = self._surrogate + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._surrogate = text[:-1], text[-1]
        return self._cut(text)

    def finish(self) -> tuple[int, ...]:
        """The rest."""
        text, self._surrogate = self._surrogate, ""
        units = self._cut(text)
        last, self._held = self._held, b""
        return units + units_of(last)

    def _cut(self, text: str) -> tuple[int, ...]:
        if self.full:
            return ()
        data = self._held + _utf8(text)
        if len(data) > self._room:
            self.full = True
            data = _without_half_a_character(data[: self._room])
        whole = len(data) - len(data) % UNIT_BYTES
        self._held = data[whole:]
        self._room -= whole
        return units_of(data[:whole])


def _text_of(messages: Sequence[ChatMessage]) -> str:
    named: list[dict[str, str]] = [
        {"role": message.role, **({} if message.name is None else {"name": message.name}), "content": message.content}
        for message in messages
    ]
    return json.dumps(named, ensure_ascii=False, separators=(",", ":"))


def _message(plain: Any) -> ChatMessage:
    if not isinstance(plain, dict) or list(plain) not in _KEYS or not all(isinstance(x, str) for x in plain.values()):
        raise EncodingInvalid("not a message.")
    return ChatMessage(role=plain["role"], name=plain.get("name"), content=plain["content"])


def _utf8(text: str) -> bytes:
    """Two surrogates become their character; one alone becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _without_half_a_character(data: bytes) -> bytes:
    for back in range(1, min(4, len(data)) + 1):
        first = data[-back]
        if first & 0xC0 != 0x80:  # where the last character starts
            wanted = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return data if back >= wanted else data[:-back]
    return data
