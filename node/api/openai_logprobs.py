"""Log probabilities as OpenAI tells them: for chat by token, for plain completions in columns. Pure.

A token that is no whole UTF-8 text (half an emoji) has its bytes in `bytes`, and in `token` what is no text as `\\xNN`.
A control token has no bytes: `token` is `token_id:<id>`. Natural logarithms.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from market.errors import EncodingInvalid
from market.message import Logprobs
from market.ports import Tokenizer
from market.taking import Delta
from market.task import MICRO


def token_text(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """What stands for a token, and its bytes. A token that the model does not have is told by its number."""
    try:
        data = tokenizer.token_bytes(token)
    except EncodingInvalid:
        data = b""
    return (data.decode(errors="backslashreplace") if data else f"token_id:{token}"), data


def chat_logprobs(tokenizer: Tokenizer, deltas: Iterable[Delta]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`."""
    return [
        {
            **_entry(tokenizer, token, logprobs.own_micro),
            "top_logprobs": [_entry(tokenizer, likely.token, likely.micro) for likely in logprobs.top],
        }
        for token, logprobs in _pairs(deltas)
    ]


def _entry(tokenizer: Tokenizer, token: int, micro: int) -> dict[str, Any]:
    text, data = token_text(tokenizer, token)
    return {"token": text, "logprob": micro / MICRO, "bytes": list(data) or None}


class Columns:
    """The columns of a plain completion; keeps count of where each token's text begins."""

    def __init__(self, tokenizer: Tokenizer, *, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._offset = 0
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, deltas: Iterable[Delta]) -> dict[str, Any]:
        """`choices[].logprobs` of these deltas; `text_offset` counts characters from the beginning of the answer."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "text_offset": []}
        tops: list[dict[str, float]] = []
        for token, logprobs in _pairs(deltas):
            text, data = token_text(self._tokenizer, token)
            columns["tokens"].append(text)
            columns["token_logprobs"].append(logprobs.own_micro / MICRO)
            columns["text_offset"].append(self._offset)
            self._offset += len(self._text.decode(data))
            top: dict[str, float] = {}
            for likely in logprobs.top:  # best first; of two that read alike the better one stays
                top.setdefault(token_text(self._tokenizer, likely.token)[0], likely.micro / MICRO)
            tops.append(top)
        return {**columns, "top_logprobs": tops if self._top else None}


def _pairs(deltas: Iterable[Delta]) -> Iterable[tuple[int, Logprobs]]:
    return ((token, logprobs) for delta in deltas for token, logprobs in zip(delta.ids, delta.logprobs, strict=True))
