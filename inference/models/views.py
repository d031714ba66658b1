"""Folders for engines that want a model as one: hard links to stored files, under the names that they expect.

Lives here: making a view, dropping views whose files are gone. A view takes no room, and a file in
use through it is locked like the stored one: they are the same inode.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from inference.models.filenames import check_file_names
from inference.models.folders import Folders
from inference.models.locks import alone
from market.errors import ContentUnavailable, EncodingInvalid, NodeMisconfigured

_FILES_LIMIT = 10_000
_NEW = ".new-"


def make_view(folders: Folders, files: Mapping[str, Path]) -> Path:
    """Blocking. The folder with these files (relative path -> stored file); the same one for the same files.

    Raises EncodingInvalid for an unsafe path, ContentUnavailable if a file is gone.
    """
    if not files or len(files) > _FILES_LIMIT:
        raise EncodingInvalid(f"A folder of {len(files)} files is refused; it may have 1 to {_FILES_LIMIT}.")
    check_file_names(files)
    told = hashlib.sha256()
    for name, path in sorted(files.items()):
        told.update(f"{name}\0{path.name}\n".encode())
    view = folders.views / told.hexdigest()[:32]
    if _is_whole(view, files):
        return view
    folders.need_write()
    made = folders.views / f"{_NEW}{secrets.token_hex(8)}"
    try:
        made.mkdir(mode=0o755)
        for name, path in files.items():
            target = made / name
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            os.link(path, target)
        if view.exists():
            shutil.rmtree(view)  # of a file that went and came back as another inode
        made.rename(view)
    except FileNotFoundError:
        raise ContentUnavailable(
            "A file of the model is not in this store any more.", next_step="Pull the model again."
        ) from None
    except PermissionError as error:
        raise NodeMisconfigured(
            f"The file system of {folders.root} makes no hard links: {error.strerror}.",
            next_step="Set a folder for models on a file system that does (not FAT).",
        ) from None
    except OSError:
        if _is_whole(view, files):  # another process was faster
            return view
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return view


def drop_dead_views(folders: Folders) -> int:
    """Under the store's lock: views of which a stored file is gone (and which nobody uses) go; how many."""
    stored = {path.stat().st_ino for path in folders.files.iterdir()}
    gone = 0
    for view in list(folders.views.iterdir()):
        files = [path for path in view.rglob("*") if path.is_file()]
        dead = view.name.startswith(_NEW) or any(path.lstat().st_ino not in stored for path in files)
        if dead and all(_is_free(path) for path in files):
            shutil.rmtree(view, ignore_errors=True)
            gone += 1
    return gone


def _is_free(path: Path) -> bool:
    with alone(path) as free:
        return free


def _is_whole(view: Path, files: Mapping[str, Path]) -> bool:
    try:
        return all(path.samefile(view / name) for name, path in files.items())
    except FileNotFoundError:
        return False
