"""Names of directory entries, and paths through directories, wherever they come from.

Lives here: what UnixFS allows. Bytes decide: names that differ only in case or Unicode form are different names.
A manifest's file names are stricter (filenames.py): only they become names on a disk.
"""

from __future__ import annotations

from market.errors import BlockInvalid, EncodingInvalid

NAME_LIMIT_BYTES = 255
"""What ext4, APFS and NTFS can hold."""
PATH_DEPTH_LIMIT = 32


def check_name(name: str) -> bytes:
    """The name's bytes. Raises EncodingInvalid for '', '.', '..', '/', NUL, a lone surrogate, over 255 bytes."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise EncodingInvalid(f"{name[:80]!a} is no file name: it is not UTF-8.") from None
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(raw) > NAME_LIMIT_BYTES:
        raise EncodingInvalid(
            f"{name[:80]!r} is no file name: '', '.', '..', '/', NUL and over {NAME_LIMIT_BYTES} bytes are refused."
        )
    return raw


def name_of(raw: bytes) -> str:
    """A name in somebody's block. Raises BlockInvalid."""
    try:
        name = raw.decode()
        check_name(name)
    except UnicodeDecodeError:
        raise BlockInvalid(f"a directory has an entry {raw[:80]!r} whose name is not UTF-8.") from None
    except EncodingInvalid as error:
        raise BlockInvalid(f"a directory has a bad entry: {error.message}") from None
    return name


def split_path(path: str) -> list[str]:
    """'a/b.gguf' -> its names; '' -> none. Raises EncodingInvalid, also for '//', '..' and a leading '/'."""
    names = path.split("/") if path else []
    if len(names) > PATH_DEPTH_LIMIT:
        raise EncodingInvalid(f"a path of {len(names)} names is over the limit of {PATH_DEPTH_LIMIT}.")
    for name in names:
        check_name(name)
    return names
