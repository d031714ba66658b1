"""Which format a model file is of, by its first bytes, and whether its name says the same.

Lives here: magic numbers and the refusal of pickles. Reads the first and, for archives, the last bytes; loads and
unpickles nothing, and every read has a limit. Knows no manifest's fields and no store.
Sources: GGUF, safetensors and ONNX as in their readers; PyTorch: a pickle (PEP 307, PEP 3154) or a zip with a
`data.pkl`; TensorRT: `ptrt` or `ftrt`; CTranslate2: version, length and name of its specification.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import IO

from inference.models.manifest import Format
from inference.models.onnx_header import read_onnx_header
from inference.models.safetensors_header import HEADER_LIMIT_BYTES
from market.errors import ModelFileInvalid, ModelUntrusted

SUFFIXES: dict[str, frozenset[Format]] = {
    ".gguf": frozenset((Format.GGUF,)),
    ".safetensors": frozenset((Format.SAFETENSORS,)),
    ".onnx": frozenset((Format.ONNX,)),
    ".plan": frozenset((Format.TENSORRT,)),
    ".engine": frozenset((Format.TENSORRT,)),
    ".trt": frozenset((Format.TENSORRT,)),
    ".bin": frozenset((Format.PYTORCH, Format.CTRANSLATE2)),
    ".pt": frozenset((Format.PYTORCH,)),
    ".pth": frozenset((Format.PYTORCH,)),
    ".ckpt": frozenset((Format.PYTORCH,)),
    ".pkl": frozenset((Format.PYTORCH,)),
}
"""What a weights file of this suffix may be."""

_HEAD_BYTES = 128
_ARCHIVE_READ_LIMIT_BYTES = 4 * 1024 * 1024
"""The list of an archive's members: 4 MiB name over 50,000 tensors, and become at most 50 MB of Python objects."""
_CTRANSLATE2_VERSIONS = range(1, 64)
_CTRANSLATE2_SPEC = re.compile(rb"[A-Za-z0-9]{1,40}Spec\0")
_OTHERS = {
    b"\x89HDF": "HDF5 (Keras)",
    b"\x93NUM": "NumPy",
    b"ggjt": "GGML, older than GGUF",
    b"tjgg": "GGML, older than GGUF",
    b"lmgg": "GGML, older than GGUF",
    b"version https://git-lfs": "a pointer to a Git LFS file, not the file",
}


def recognise(path: Path, name: str) -> Format:
    """The format of the bytes at `path`, of a weights file that calls itself `name`. Blocking.

    Raises ModelFileInvalid for bytes of no format of ours, and for a name that says another format; OSError.
    """
    found = _format_of(path, name)
    said = SUFFIXES.get(Path(name).suffix.lower())
    if said is not None and found not in said:
        raise ModelFileInvalid(
            f"{name} calls itself {' or '.join(sorted(said))}, but its bytes are {found}.",
            next_step="Do not trust where it came from; get the file from its publisher.",
        )
    return found


def refuse_pickle(format: Format, name: str) -> None:
    """Raises ModelUntrusted for a pickled file: to load one is to run whatever its author put into it."""
    if format == Format.PYTORCH:
        raise ModelUntrusted(
            f"{name} is a pickled PyTorch file: loading it would run whatever code its author put into it.",
            next_step="Use the model's .safetensors files, or convert it to safetensors on a machine you can lose.",
        )


def _format_of(path: Path, name: str) -> Format:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head.startswith(b"GGUF"):
            return Format.GGUF
        if head[:4] in (b"ptrt", b"ftrt"):
            return Format.TENSORRT
        if _is_pickle(head) or (head.startswith(b"PK") and _is_torch_archive(file, name)):
            return Format.PYTORCH
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= HEADER_LIMIT_BYTES:
        return Format.SAFETENSORS
    if _is_ctranslate2(head):
        return Format.CTRANSLATE2
    if head[:1] == b"\x08" and size > 8:
        read_onnx_header(path)
        return Format.ONNX
    other = next((words for magic, words in _OTHERS.items() if head.startswith(magic)), "of no format that we know")
    raise ModelFileInvalid(
        f"{name} is no model file that can be used here: it is {other}.",
        next_step=f"A weights file is one of {', '.join(Format)}.",
    )


def _is_pickle(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_ctranslate2(head: bytes) -> bool:
    if len(head) < 8:
        return False
    version, length = struct.unpack_from("<IH", head)
    return version in _CTRANSLATE2_VERSIONS and _CTRANSLATE2_SPEC.fullmatch(head[6 : 6 + length]) is not None


def _is_torch_archive(file: IO[bytes], name: str) -> bool:
    """Whether a zip archive has a pickle in it; only the list of members is read."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            pickled = any(member.endswith(".pkl") for member in archive.namelist())
    except (
        zipfile.BadZipFile,
        ValueError,
        OSError,
        RuntimeError,
        struct.error,
    ):  # RuntimeError: a way of packing it lacks
        raise ModelFileInvalid(f"{name} is a torn or oversized zip archive.") from None
    if not pickled:
        raise ModelFileInvalid(f"{name} is a zip archive that holds no model.")
    return True


class _Bounded(io.RawIOBase):
    """A file that gives no more than the limit in one read: an archive may claim a list of any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > _ARCHIVE_READ_LIMIT_BYTES:
            raise ValueError("the list of members is too long")
        return self._file.read(_ARCHIVE_READ_LIMIT_BYTES if size < 0 else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
