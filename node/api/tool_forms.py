"""The forms in which models write calls of tools, side by side: our own wording, and those of models' own templates.

A form says who tells the model of the tools, what a call looks like in an answer, and to which JSON an answer that
must be one is held. Values alone; `tool_calls` reads answers by them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from market.tools import CallForm

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """`by_template`: the model's own template tells of tools, calls and results; otherwise words of ours do.

    `opening` begins a call anywhere in an answer; `bare` begins one without it where the answer begins, because a
    model's control tokens (`[TOOL_CALLS]` is one) leave no text. `between` may stand between two calls.
    """

    by_template: bool
    opening: str
    closing: str
    bare: Literal["{", "["]
    between: str
    arguments: Literal["arguments", "parameters"] = "arguments"

    @property
    def listed(self) -> bool:
        return self.bare == "["

    def call_id(self, given: str) -> str:
        """A call's id as the template gets it: Mistral's refuse any that has not nine letters and digits."""
        if not self.listed or _SHORT_ID.fullmatch(given):
            return given
        return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:9]

    def schema(self, calls: Sequence[tuple[str, str]], answer: str | None) -> dict[str, Any]:
        """The JSON schema of one call in this form's own JSON, tags left out: `calls` are names of functions and
        references to the schemas of their arguments. Or of `answer`, a reference, where one is given."""
        options: list[dict[str, Any]] = []
        for name, reference in calls:
            call = {
                "type": "object",
                "properties": {"name": {"const": name}, self.arguments: {"$ref": reference}},
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            options.append({"type": "array", "items": call, "minItems": 1, "maxItems": 1} if self.listed else call)
        if answer is not None:
            options.append({"$ref": answer})
        return options[0] if len(options) == 1 else {"anyOf": options}


_TAGGED = ToolForm(by_template=True, opening=CALL_OPEN, closing=CALL_CLOSE, bare="{", between="")
FORMS: Mapping[CallForm, ToolForm] = {
    CallForm.PLAIN: replace(_TAGGED, by_template=False),
    CallForm.TAGGED: _TAGGED,
    CallForm.BARE: ToolForm(
        by_template=True, opening="<|python_tag|>", closing="", bare="{", between=";", arguments="parameters"
    ),
    CallForm.LISTED: ToolForm(by_template=True, opening="[TOOL_CALLS]", closing="]", bare="[", between=","),
}
