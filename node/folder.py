"""The data folder: everything that a node owns, held by one process at a time.

Lives here: who may use the folder, the lock, whole-or-nothing writes, and the note that tells the CLI
where its node listens. Knows no key and no table; the modules that own a file ask for its path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from market.errors import DiskFull, NodeMisconfigured
from market.values import value

_LOCK = "node.lock"
_RUNNING = "running.json"
_RUNNING_LIMIT_BYTES = 16 * 1024
_LOCK_PATIENCE_S = 0.5  # the CLI's look at the lock, and a node that is just leaving, last milliseconds


@value
class Running:
    """How to reach the node that holds a folder. `token_file` is a path: the token itself is not in here."""

    pid: int
    api: str
    token_file: str


class Folder:
    """A data folder that this process holds. Use `open_folder`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        """A path inside the folder; the folders above it are made, for the owner alone."""
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root):
            raise NodeMisconfigured(f"{'/'.join(parts)!r} lies outside the data folder {self.root}.")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def announce(self, *, api: str, token_file: Path) -> None:
        """Tell the CLI where this node listens; forgotten when the folder is closed."""
        note = {"pid": os.getpid(), "api": api, "token_file": str(token_file)}
        write_whole(self.path(_RUNNING), json.dumps(note).encode())


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """Make the folder if need be and hold it until the end of the block.

    Raises NodeMisconfigured if another process holds it, or if others could tamper with it. A process
    that dies, however it dies, lets go: the lock is the kernel's (flock), not the file's existence.
    """
    root = _safe_root(path)
    lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _hold(lock, root)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        note = root / _RUNNING
        note.unlink(missing_ok=True)  # of a node that was killed
        try:
            yield Folder(root)
        finally:
            note.unlink(missing_ok=True)
    finally:
        os.close(lock)


def find_running(path: Path) -> Running | None:
    """The node that holds this folder now, for the CLI; None if there is none or it does not listen yet.

    A note that a killed node left behind does not count: nobody holds its lock.
    """
    try:
        root = path.expanduser().resolve(strict=True)
        lock = os.open(root / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_note(root / _RUNNING)
    finally:
        os.close(lock)
    return None


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.new")  # one name: what a kill left behind is taken away here
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to write {path}.", next_step="Free space on that disk.") from None
        raise NodeMisconfigured(
            f"{path} cannot be written ({error.strerror}).", next_step="Check the folder's owner and mode."
        ) from None


def _safe_root(path: Path) -> Path:
    path = path.expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = path.resolve(strict=True)
        status = root.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
    except OSError as error:
        raise NodeMisconfigured(
            f"the data folder {path} cannot be used ({error.strerror}).",
            next_step="Set OCTO_DATA_DIR to a folder that you own.",
        ) from None
    if status.st_uid != os.geteuid():
        raise NodeMisconfigured(
            f"the data folder {root} belongs to user {status.st_uid}, not to you ({os.geteuid()}): "
            "its owner could take the keys.",
            next_step="Set OCTO_DATA_DIR to a folder that you own, or run as its owner.",
        )
    if status.st_mode & stat.S_IWOTH:
        raise NodeMisconfigured(f"anybody may write into the data folder {root}.", next_step=f"Run: chmod 700 {root}")
    return root


def _hold(lock: int, root: Path) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise NodeMisconfigured(
                f"the data folder {root} is held by {who}.",
                next_step="Stop that node first, or give this one a folder of its own with OCTO_DATA_DIR.",
            ) from None
        return


def _read_note(path: Path) -> Running | None:
    try:
        with path.open("rb") as file:
            note = json.loads(file.read(_RUNNING_LIMIT_BYTES))
        return Running(pid=int(note["pid"]), api=str(note["api"]), token_file=str(note["token_file"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
