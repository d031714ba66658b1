"""Streamed text on a terminal: words, wrapped as they come, under a hanging indent."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from node.cli.show import printable


class Wrapped:
    """`indent` is what the first line already holds, and what the next ones are pushed in by."""

    def __init__(self, out: Console, *, indent: int = 0) -> None:
        self._out = out
        self._indent = indent
        self._room = out.width - indent
        self._column = 0
        self._word = ""
        self._gap = False

    def write(self, text: str) -> None:
        for character in printable(text):
            if character in " \n":
                self._flush()
                self._space(character)
            else:
                self._word += character
        self._out.file.flush()

    def end(self) -> None:
        self._flush()
        self._out.print()

    def _space(self, character: str) -> None:
        if character == "\n":
            self._break()
        else:
            self._gap = self._column > 0

    def _flush(self) -> None:
        if not self._word:
            return
        if self._column and self._column + self._gap + len(self._word) > self._room:
            self._break()
        self._out.print(Text(" " * self._gap + self._word), end="", soft_wrap=True)
        self._column += self._gap + len(self._word)
        self._word, self._gap = "", False

    def _break(self) -> None:
        self._out.print()
        self._out.print(" " * self._indent, end="", soft_wrap=True)
        self._column, self._gap = 0, False
