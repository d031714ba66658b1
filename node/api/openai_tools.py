"""Tools: how they are told to a model, and what an answer that must be a call has to match.

Where the model's own template tells of tools it is handed them (`Toolbox.handed`); otherwise the system message says
it in our words (`Toolbox.preface`). One that must call is held to the JSON of one call, in its form. Knows no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from market.errors import RequestInvalid
from market.tools import ARGUMENTS_LIMIT, CallForm
from market.tools import Tool as ToolToTell
from node.api.bodies import Shape
from node.api.openai_messages import FunctionName, plain_json
from node.api.tool_forms import CALL_CLOSE, CALL_OPEN, FORMS, ToolForm

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
class Toolbox:
    """The tools of one request. `must`: the answer has to be one call of them."""

    functions: Sequence[Function]
    must: bool
    parallel: bool
    form: ToolForm = FORMS[CallForm.PLAIN]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    def handed(self) -> tuple[ToolToTell, ...]:
        """What the model's template is handed, if it can tell. Raises RequestInvalid."""
        return tuple(map(_handed, self.functions))

    def preface(self) -> str:
        """What the model is told in our words, if it is. docs/api.md repeats it."""
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
        tagged = self.form.opening == CALL_OPEN
        return (CALL_CLOSE,) if tagged and not self.must and not self.parallel else ()

    def grammar(self, answer: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The JSON schema of one call, or of an answer that matches `answer` instead; None if any text will do.

        Each part's own schema moves to `$defs`, so that references inside it find what they mean.
        """
        if not self.must and answer is None:
            return None
        parts: dict[str, Any] = {}
        calls: list[tuple[str, str]] = []
        for number, function in enumerate(self.functions):
            place = f"arguments_{number}"
            parts[place] = _moved(_arguments(function), place)
            calls.append((function.name, f"#/$defs/{place}"))
        if answer is not None and not self.must:
            parts["answer"] = _moved(answer, "answer")
        return {**self.form.schema(calls, "#/$defs/answer" if "answer" in parts else None), "$defs": parts}


def _handed(function: Function) -> ToolToTell:
    """Templates take a description and parameters for granted."""
    told = ToolToTell(name=function.name, description=function.description or "")
    if function.parameters is None:
        return told
    parameters = json.dumps(function.parameters, ensure_ascii=False)
    if len(parameters) > ARGUMENTS_LIMIT:
        raise RequestInvalid(f"tools: parameters of over {ARGUMENTS_LIMIT} characters.", param="tools")
    return replace(told, parameters=parameters)


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
