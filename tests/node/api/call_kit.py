"""What a `CallReader` makes of an answer, in a shape that tests can write down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from node.api.openai_tools import Toolbox
from node.api.tool_calls import Arguments, CallReader, Head


def read_calls(toolbox: Toolbox, pieces: Iterable[str]) -> list[Any]:
    """Text joined, calls as [name, arguments]."""
    reader = CallReader(toolbox)
    said = [item for piece in pieces for item in reader.feed(piece)] + reader.end()
    out: list[Any] = []
    for item in said:
        if isinstance(item, Head):
            out.append([item.name, ""])
        elif isinstance(item, Arguments):
            out[-1][1] += item.text
        elif out and isinstance(out[-1], str):
            out[-1] += item
        else:
            out.append(item)
    return out
