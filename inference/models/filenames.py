"""The names of a model's files: relative paths with '/', and nothing that a file system or a person could misread.

Lives here: the rules, pure. They are strict because a folder of links is made from these names for engines that want
a folder, and because the names come from strangers. Knows no manifest and no disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from market.errors import EncodingInvalid

NAME_LIMIT = 255
"""A whole name, in characters; also what one entry of most file systems takes."""
FOLDERS_LIMIT = 7

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=,() -]*")
"""ASCII only: no look-alike letters, no second Unicode form of one name, and case folding is plain."""


def check_file_name(name: str) -> None:
    """Raises EncodingInvalid unless `name` is a safe relative path of at most 7 folders and a file."""
    segments = name.split("/")
    if len(name) > NAME_LIMIT or len(segments) > FOLDERS_LIMIT + 1:
        raise EncodingInvalid(f"a file name is over {NAME_LIMIT} characters or {FOLDERS_LIMIT} folders deep.")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or ".." in segment or segment.endswith((".", " ")):
            raise EncodingInvalid(
                f"{name[:80]!r} is not a safe file name: it must be relative, of plain ASCII letters, digits and "
                "'. _ + @ = , ( ) -', without '..' and without hidden parts."
            )


def check_file_names(names: Iterable[str]) -> None:
    """Raises EncodingInvalid for an unsafe name, and for two that would be one file or a file and its own folder on
    a disk that does not tell upper from lower case."""
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        check_file_name(name)
        plain = name.lower()
        if plain in files:
            raise EncodingInvalid(f"the file name {name!r} occurs twice (upper and lower case are the same here).")
        files.add(plain)
        parts = plain.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    for both in sorted(files & folders):
        raise EncodingInvalid(f"{both!r} is the name of a file and of a folder.")
