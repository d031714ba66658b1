"""A folder of the user's, walked for adding: which files lie in it, in an order that never changes.

Lives here: what is taken and what is refused. Reads names and kinds only; never a file's bytes, never a link's target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from inference.models.directory import ENTRIES_LIMIT
from inference.models.names import PATH_DEPTH_LIMIT, check_name
from market.errors import EncodingInvalid
from market.values import value


@value
class LocalFolder:
    """Paths relative to the folder, with '/'; `folders` are all those below it, empty ones too."""

    files: Sequence[str]
    folders: Sequence[str]


def folder_entries(folder: Path, *, hidden: bool = False) -> LocalFolder:
    """What `build_folder` needs to know of a folder. Depth first, each folder sorted by the names' bytes.

    Names with a leading dot are left out unless `hidden`, as `ipfs add -r` does (`.git`, `.cache` of a download).
    A link or device is refused, not skipped: a model with a file missing would get a CID like any other. Whoever
    opens the files must refuse links again (O_NOFOLLOW), for they may change meanwhile.
    Raises EncodingInvalid (a link, a device, a bad name, too deep, too many), OSError.
    """
    files: list[str] = []
    folders: list[str] = []
    waiting = [""]
    while waiting:
        above = waiting.pop()
        below: list[str] = []
        for entry in sorted(os.scandir(folder / above), key=lambda entry: os.fsencode(entry.name)):
            if entry.name.startswith(".") and not hidden:
                continue
            check_name(entry.name)
            path = f"{above}/{entry.name}" if above else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_file(follow_symlinks=False):
                files.append(path)
            else:
                raise EncodingInvalid(
                    f"{path!r} is a link, a device or a pipe: only files and folders can be added.",
                    next_step="Replace it by the file itself (`cp -L`), or move it out of the folder.",
                )
            if len(files) + len(folders) + len(below) > ENTRIES_LIMIT:
                raise EncodingInvalid(f"{folder.name!r} holds more than {ENTRIES_LIMIT} files and folders.")
        if below and below[0].count("/") >= PATH_DEPTH_LIMIT - 1:
            raise EncodingInvalid(f"{below[0][:80]!r} lies deeper than {PATH_DEPTH_LIMIT} levels.")
        folders.extend(below)
        waiting.extend(reversed(below))
    return LocalFolder(files=files, folders=folders)
