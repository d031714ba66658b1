"""Calls of tools, read out of an answer as it comes, in the form that the model writes them.

Reading is incremental: what could still become a call is held back, a call's arguments go on as they come. What is no
call of a function on offer stays text. However the answer is cut into pieces, the same is read. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from market.tools import CALLS_LIMIT
from node.api.openai_tools import Toolbox

_HEAD_LIMIT_CHARS = 512
"""A call whose name and beginning of arguments do not stand within so many characters is no call."""
_TAIL_LIMIT_CHARS = 128
_OBJECT = (
    r'\s*\{\s*(?:"(?:id|type)"\s*:\s*"[^"\\]{0,64}"\s*,\s*)*"name"\s*:\s*("(?:[^"\\]|\\.){1,64}")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_TAIL = re.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"\\]{0,64}"\s*)?\}')
_BRACES = re.compile(r'"|[{\[]+|[}\]]+')
_QUOTES = re.compile(r'["\\]')
_CALL_KEYS = frozenset(("name", "arguments", "parameters", "id", "type"))


@dataclass(frozen=True, slots=True)
class Head:
    """A call begins: `number` counts the calls of an answer."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of a call's arguments: text of a JSON object."""

    number: int
    text: str


Said = str | Head | Arguments


class CallReader:
    """Splits an answer into text and calls, as it comes. Feed it pieces, then `end` it."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._names = toolbox.names
        self._form = form = toolbox.form
        self._calls_limit = 1 if toolbox.must or not toolbox.parallel else CALLS_LIMIT
        self._first_head = re.compile((r"\s*\[" if form.listed else "") + _OBJECT, re.DOTALL)
        self._next_head = re.compile((r"\s*," if form.listed else r"\s*;?") + _OBJECT, re.DOTALL)
        self._held = ""
        self._state: Literal["start", "text", "head", "arguments", "tail", "after"] = "start"
        self._tagged = False
        self._following = False
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self.calls = 0

    def feed(self, text: str) -> list[Said]:
        self._held += text
        return list(self._read(ended=False))

    def end(self) -> list[Said]:
        return list(self._read(ended=True))

    def _read(self, *, ended: bool) -> Iterator[Said]:
        while True:
            before = (self._state, len(self._held))
            match self._state:
                case "start":
                    self._start(ended=ended)
                case "text":
                    yield from self._text(ended=ended)
                case "head":
                    yield from self._head(ended=ended)
                case "arguments":
                    yield from self._arguments()
                case "tail":
                    self._tail(ended=ended)
                case "after":
                    self._after(ended=ended)
            if (self._state, len(self._held)) == before:
                return

    def _start(self, *, ended: bool) -> None:
        """Space before a call is nothing that the model says; a brace may begin a call without tags."""
        rest, decided = self._past_space(ended=ended)
        opening = self._form.opening
        if rest.startswith(opening) and self.calls < self._calls_limit:
            self._begin(rest[len(opening) :], tagged=True)
        elif rest and not ended and opening.startswith(rest):
            return
        elif rest.startswith(self._form.bare) and not self.calls:
            self._begin(self._held, tagged=False)
        elif decided:
            self._held, self._state = (rest if self.calls else self._held), "text"

    def _begin(self, held: str, *, tagged: bool, following: bool = False) -> None:
        self._held, self._state, self._tagged, self._following = held, "head", tagged, following

    def _past_space(self, *, ended: bool) -> tuple[str, bool]:
        """What is held without the space before it, and whether that is all the space there is."""
        window = self._held[:_HEAD_LIMIT_CHARS]  # so that megabytes of space are not looked through time and again
        space = len(window) - len(window.lstrip())
        return self._held[space:], ended or space < len(window) or len(window) == _HEAD_LIMIT_CHARS

    def _text(self, *, ended: bool) -> Iterator[Said]:
        opening = self._form.opening
        found = self._held.find(opening) if self.calls < self._calls_limit else -1
        kept = 0 if ended else _overlap(self._held, opening)
        end = found if found >= 0 else len(self._held) - kept
        if end:
            yield self._held[:end]
        self._held = self._held[end:]
        if found >= 0:
            self._begin(self._held[len(opening) :], tagged=True)

    def _head(self, *, ended: bool) -> Iterator[Said]:
        window = self._held[:_HEAD_LIMIT_CHARS]  # so that it does not matter how the text was cut
        found = (self._next_head if self._following else self._first_head).match(window)
        name = _loaded(found[1]) if found else None
        if found and isinstance(name, str) and name in self._names:
            yield Head(self.calls, name)
            self.calls += 1
            self._held = self._held[found.end() :]
            self._state, self._depth, self._quoted, self._escaped = "arguments", 0, False, False
            return
        closing = self._form.closing if self._tagged and not self._form.listed else ""
        close = window.find(closing) if closing else -1
        calls = self._whole(window[:close] if close >= 0 else window) if close >= 0 or ended else ()
        if calls:
            for called, arguments in calls[: self._calls_limit - self.calls]:
                yield Head(self.calls, called)
                yield Arguments(self.calls, arguments)
                self.calls += 1
            self._held, self._state = (self._held[close:] if close >= 0 else ""), "after"
        elif found or close >= 0 or ended or len(self._held) >= _HEAD_LIMIT_CHARS:
            self._state = "text"  # it was no call: it is what the model says
            if self._tagged and not self._following:
                yield self._form.opening

    def _whole(self, text: str) -> list[tuple[str, str]]:
        """Calls in another order or spelling than the usual one; none if anything of it is no call."""
        text = text.strip()
        if self._following:
            text = text.removeprefix(self._form.between)
            text = f"[{text}" if self._form.listed else text
        said = _loaded(text)
        items = said if self._form.listed and isinstance(said, list) else [said]
        calls = [self._call(item) for item in items]
        return [] if None in calls else [call for call in calls if call is not None]

    def _call(self, call: Any) -> tuple[str, str] | None:
        if not isinstance(call, dict) or not call.keys() <= _CALL_KEYS:
            return None
        name, given = call.get("name"), call.get("arguments", call.get("parameters"))
        given = {} if given is None else _loaded(given) if isinstance(given, str) else given
        if not isinstance(name, str) or name not in self._names or not isinstance(given, dict):
            return None
        return name, json.dumps(given, ensure_ascii=False)

    def _arguments(self) -> Iterator[Said]:
        length = self._span(self._held)
        if length:
            yield Arguments(self.calls - 1, self._held[:length])
            self._held = self._held[length:]
        if not self._depth and length:
            self._state = "tail"

    def _span(self, text: str) -> int:
        """How much of `text` belongs to the object that is open; all of it, until it closes."""
        at = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        while found := (_QUOTES if self._quoted else _BRACES).search(text, at):
            mark, at = found[0], found.end()
            if mark == "\\":
                self._escaped = at == len(text)
                at += 1
            elif mark == '"':
                self._quoted = not self._quoted
            elif mark[0] in "{[":
                self._depth += len(mark)
            elif len(mark) < self._depth:
                self._depth -= len(mark)
            else:
                at = found.start() + self._depth
                self._depth = 0
                return at
        return len(text)

    def _tail(self, *, ended: bool) -> None:
        """The rest of the call's own object: its brace, and with some models an id."""
        if self.calls >= self._calls_limit:
            self._held = ""
            return
        window = self._held[:_TAIL_LIMIT_CHARS]
        found, rest = _TAIL.match(window), window.lstrip()
        if found:
            self._held, self._state = self._held[found.end() :], "after"
        elif ended or len(window) == _TAIL_LIMIT_CHARS or (rest and rest[0] != ","):
            self._state = "after"

    def _after(self, *, ended: bool) -> None:
        """Past a call's closing tag; what follows is text, or another call."""
        if self.calls >= self._calls_limit:
            self._held = ""
            return
        rest, decided = self._past_space(ended=ended)
        form = self._form
        if form.between and rest.startswith(form.between if form.listed else (form.between, form.bare)):
            self._begin(self._held, tagged=False, following=True)
        elif form.closing and rest.startswith(form.closing):
            self._held, self._state = rest[len(form.closing) :], "start"
        elif rest and not ended and form.closing.startswith(rest):
            return
        elif decided:
            self._held, self._state = rest, "start"


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` could begin `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
