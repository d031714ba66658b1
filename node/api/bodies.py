"""JSON bodies and the fields of forms, parsed once, within limits; the first thing that is wrong becomes a
RequestInvalid that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from market.errors import RequestInvalid

_MESSAGE_LIMIT = 400
_PYDANTICS_OWN = re.compile(r" after validation(, not 0$)?")


class Shape(BaseModel):
    """Strict: the text "1" is no number. NaN and infinity are none either."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    @model_validator(mode="after")
    def _know_all_names(self) -> Self:
        # Not extra="forbid": a million unknown names would then cost a million error messages.
        for name in self.model_extra or ():
            raise PydanticCustomError("unknown", "this node knows no such parameter", {"param": name[:64]})
        return self


S = TypeVar("S", bound=Shape)


def parse_body(shape: type[S], data: bytes) -> S:
    """Raises RequestInvalid naming the first parameter that is wrong.

    The parser is iterative and stops at 200 levels and at 4,300 digits; numbers beyond double are no numbers.
    """
    try:
        return shape.model_validate_json(data)
    except ValidationError as error:
        raise _named(error) from None


def parse_fields(shape: type[S], fields: Mapping[str, object]) -> S:
    """The same for the fields of a form: texts, lists of texts, maps of texts."""
    try:
        return shape.model_validate(fields, strict=False)  # a form knows texts only
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> RequestInvalid:
    # `include_input=False`: what was sent may be a prompt, and errors end up in logs.
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "json_invalid":
        return RequestInvalid(f"the body is not valid JSON: {first['ctx']['error']}.")
    if first["type"] == "model_type" and not first["loc"]:
        return RequestInvalid("the body should be a JSON object.")
    path = [*first["loc"], *([first["ctx"]["param"]] if "param" in first.get("ctx", {}) else [])]
    param = _path_text(path)
    message = first["msg"][:1].lower() + first["msg"][1:_MESSAGE_LIMIT]
    message = _PYDANTICS_OWN.sub("", message.replace("tuple should", "list should", 1))
    return RequestInvalid(f"{param}: {message}.", param=param)


def _path_text(path: list[int | str]) -> str:
    """`messages[0].content`, as OpenAI writes it."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")[:200]
