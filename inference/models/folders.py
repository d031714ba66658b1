"""Where a store keeps what: one folder on one file system.

Lives here: the names of its parts and whether they can be written. Only a CID ever becomes a file's name.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from inference.models.cid import parse_cid
from inference.models.disk import read_only
from inference.models.index import Stamp


class Folders:
    """Makes what is missing. A store that cannot be written is opened for reading if it is all there.

    Raises NodeMisconfigured for a folder that cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        self.parts = root / "parts"
        self.quarantine = root / "quarantine"
        self.views = root / "views"
        self.index = root / "index.db"
        self.lock = root / "store.lock"
        self.writable = True
        try:
            for folder in (root, self.files, self.parts, self.quarantine, self.views):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            if not (self.files.is_dir() and self.index.is_file()):
                raise read_only(root) from None
            self.writable = False

    def path_of(self, root: str) -> Path:
        """Raises EncodingInvalid."""
        return self.files / str(parse_cid(root))

    def need_write(self) -> None:
        """Raises NodeMisconfigured for a store that is open for reading only."""
        if not self.writable:
            raise read_only(self.root)


def stamp_of(seen: os.stat_result) -> Stamp:
    return Stamp(size_bytes=seen.st_size, mtime_ns=seen.st_mtime_ns, inode=seen.st_ino)
