"""Tools: how they are told to a model, what an answer that must be a call has to match, and how calls are read out.

A model that may call is told so in the system message (`Toolbox.preface`). One that must call is held to a JSON
schema of {"name", "arguments"}. Reading is incremental: what could still become a call is held back, a call's
arguments go on as they come. Pure; knows no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from node.api.bodies import Shape
from node.api.openai_messages import CALL_CLOSE, CALL_OPEN, FunctionName, plain_json

TOOLS_LIMIT = 128
_HEAD_LIMIT_CHARS = 512
"""A call whose name and beginning of arguments do not stand within so many characters is no call."""
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,64}")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL
)
_NAMES_NONE = frozenset(("type", "properties", "required", "title", "description", "$schema"))
_AS_DATA = frozenset(("const", "enum", "default", "examples"))


class Function(Shape):
    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Shape):
    type: Literal["function"]
    function: Function


class _Named(Shape):
    name: FunctionName


class _Choice(Shape):
    type: Literal["none", "auto", "required", "function"]
    function: _Named | None = None

    @model_validator(mode="after")
    def _name_where_it_belongs(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise PydanticCustomError("name", "belongs to the type function, and to no other", {"param": "function"})
        return self


ToolChoice = Annotated[_Choice, BeforeValidator(lambda raw: {"type": raw} if isinstance(raw, str) else raw)]


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


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request. `must`: the answer has to be one call of them."""

    functions: Sequence[Function]
    must: bool
    parallel: bool

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    def preface(self) -> str:
        """What the model is told. docs/api.md repeats it."""
        lines = [
            plain_json({"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict"})})
            for function in self.functions
        ]
        listed = "\n".join(["You can call these functions:", "<tools>", *lines, "</tools>"])
        call = '{"name": <name of the function>, "arguments": <object that fits its parameters>}'
        if self.must:
            return f"{listed}\nAnswer with a call and nothing else, as one JSON object:\n{call}"
        more = "To make several calls, write several such blocks. " if self.parallel else ""
        return (
            f"{listed}\nTo call one, answer with:\n{CALL_OPEN}\n{call}\n{CALL_CLOSE}\n{more}"
            "Results come back in <tool_response> blocks. If no function helps, answer in plain words."
        )

    def stop(self) -> tuple[str, ...]:
        """One call only: nothing after its end is wanted, or paid for."""
        return () if self.must or self.parallel else (CALL_CLOSE,)

    def grammar(self, answer: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The JSON schema of one call, or of an answer that matches `answer` instead; None if any text will do.

        Each part's own schema moves to `$defs`, so that references inside it find what they mean.
        """
        if not self.must and answer is None:
            return None
        parts: dict[str, Any] = {}
        options: list[dict[str, Any]] = []
        for number, function in enumerate(self.functions):
            place = f"arguments_{number}"
            parts[place] = _moved(_arguments(function), place)
            options.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": function.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        if answer is not None and not self.must:
            parts["answer"] = _moved(answer, "answer")
            options.append({"$ref": "#/$defs/answer"})
        return {**(options[0] if len(options) == 1 else {"anyOf": options}), "$defs": parts}


def _arguments(function: Function) -> Mapping[str, Any]:
    """A function that names no parameter takes none: arguments that a model made up would break its caller's code."""
    parameters = function.parameters or {}
    if parameters.keys() <= _NAMES_NONE and not parameters.get("properties"):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return parameters


def _moved(schema: Any, place: str) -> Any:
    """`schema` with its references to itself pointing to `#/$defs/<place>`, where it stands now."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: item if key in _AS_DATA else _moved(item, place) for key, item in schema.items()}
    ref = moved.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        moved["$ref"] = f"#/$defs/{place}{ref[1:]}"
    return moved


class CallReader:
    """Splits an answer into text and calls, as it comes. Feed it pieces, then `end` it."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._names = toolbox.names
        self._calls_limit = 1 if toolbox.must or not toolbox.parallel else TOOLS_LIMIT
        self._held = ""
        self._state: Literal["start", "text", "head", "arguments", "after"] = "start"
        self._tagged = False
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
                case "after":
                    self._after(ended=ended)
            if (self._state, len(self._held)) == before:
                return

    def _start(self, *, ended: bool) -> None:
        """Space before a call is nothing that the model says; a brace may begin a call without tags."""
        rest = self._held.lstrip()
        if rest.startswith("{") and not self.calls:
            self._state, self._tagged = "head", False
        elif rest.startswith(CALL_OPEN) and self.calls < self._calls_limit:
            self._held, self._state, self._tagged = rest[len(CALL_OPEN) :], "head", True
        elif ended or (rest and not CALL_OPEN.startswith(rest)):
            self._held, self._state = (rest if self.calls else self._held), "text"

    def _text(self, *, ended: bool) -> Iterator[Said]:
        found = self._held.find(CALL_OPEN) if self.calls < self._calls_limit else -1
        kept = 0 if ended else _overlap(self._held, CALL_OPEN)
        end = found if found >= 0 else len(self._held) - kept
        if end:
            yield self._held[:end]
        self._held = self._held[end:]
        if found >= 0:
            self._held, self._state, self._tagged = self._held[len(CALL_OPEN) :], "head", True

    def _head(self, *, ended: bool) -> Iterator[Said]:
        window = self._held[:_HEAD_LIMIT_CHARS]  # so that it does not matter how the text was cut
        found = _HEAD.match(window)
        name = _loaded(found[1]) if found else None
        if found and name in self._names:
            yield Head(self.calls, str(name))
            self.calls += 1
            self._held = self._held[found.end() :]
            self._state, self._depth, self._quoted, self._escaped = "arguments", 0, False, False
            return
        close = window.find(CALL_CLOSE) if self._tagged else -1
        call = self._whole(window[:close] if close >= 0 else window) if close >= 0 or ended else None
        if call is not None:
            yield Head(self.calls, call[0])
            yield Arguments(self.calls, call[1])
            self.calls += 1
            self._held, self._state = (self._held[close:] if close >= 0 else ""), "after"
        elif found or close >= 0 or ended or len(self._held) >= _HEAD_LIMIT_CHARS:
            self._state = "text"  # it was no call: it is what the model says
            if self._tagged:
                yield CALL_OPEN

    def _whole(self, text: str) -> tuple[str, str] | None:
        """A call in another order or spelling than the usual one."""
        call = _loaded(text)
        if not isinstance(call, dict) or call.get("name") not in self._names or not call.keys() <= _CALL_KEYS:
            return None
        given = call.get("arguments", call.get("parameters"))
        given = {} if given is None else _loaded(given) if isinstance(given, str) else given
        return (call["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None

    def _arguments(self) -> Iterator[Said]:
        length = self._span(self._held)
        if length:
            yield Arguments(self.calls - 1, self._held[:length])
            self._held = self._held[length:]
        if not self._depth and length:
            self._state = "after"

    def _span(self, text: str) -> int:
        """How much of `text` belongs to the object that is open; all of it, until it closes."""
        for at, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._depth = 0
                    return at + 1
        return len(text)

    def _after(self, *, ended: bool) -> None:
        """Past the call's own brace and closing tag; what follows is text, or another call."""
        if self.calls >= self._calls_limit:
            self._held = ""
            return
        rest = self._held.lstrip().removeprefix("}").lstrip()
        if rest.startswith(CALL_CLOSE):
            self._held, self._state = rest[len(CALL_CLOSE) :], "start"
        elif ended or not CALL_CLOSE.startswith(rest):
            self._held, self._state = rest, "start"


_CALL_KEYS = frozenset(("name", "arguments", "parameters", "id", "type"))


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
