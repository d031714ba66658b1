"""A file of requests, one JSON object a line, read into lines of a batch; what is wrong with it, line by line.

Pure but for reading the file. Source: OpenAI's API reference, "The request input object".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from market.errors import RequestInvalid
from node.api.bodies import Shape, parse_body
from node.batches.records import BatchLimits, Line

PROBLEMS_LIMIT = 100


class _Request(Shape):
    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Annotated[str, Field(pattern="^POST$")]
    url: str
    body: dict[str, Any]


class BadFile(Exception):
    """`problems` in OpenAI's words: code, line (from 1), message, param."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def read_requests(path: Path, endpoint: str, limits: BatchLimits) -> Iterator[Line]:
    """Lines in order; blank ones are left out. Raises BadFile at the end (or after PROBLEMS_LIMIT problems)."""
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    number = 0

    def wrong(at: int | None, code: str, message: str, param: str | None = None) -> None:
        problems.append({"code": code, "line": at, "message": message, "param": param})

    with path.open("rb") as file:
        at = 0
        while (text := file.readline(limits.line_bytes + 1)) and len(problems) < PROBLEMS_LIMIT:
            at += 1
            if len(text) > limits.line_bytes:
                wrong(at, "line_too_long", f"the line has more than {limits.line_bytes} bytes.")
                break
            if not text.strip():
                continue
            if number >= limits.lines:
                wrong(at, "too_many_lines", f"a batch has at most {limits.lines} requests.")
                break
            try:
                asked = parse_body(_Request, text)
                if asked.url != endpoint:
                    wrong(at, "mismatched_endpoint", f"url is not the batch's endpoint, {endpoint}.", "url")
                    continue
                if asked.custom_id in seen:
                    wrong(at, "duplicate_custom_id", "another line has the same custom_id.", "custom_id")
                    continue
                body = json.dumps(asked.body).encode()
            except (RequestInvalid, RecursionError) as error:
                param = error.param if isinstance(error, RequestInvalid) else "body"
                wrong(at, "invalid_line", str(error) if param != "body" else "body: it is nested too deep.", param)
                continue
            seen.add(asked.custom_id)
            yield Line(number=number, custom_id=asked.custom_id, body=body)
            number += 1
    if not number and not problems:
        wrong(None, "empty_file", "the file holds no request.")
    if problems:
        raise BadFile(problems)
