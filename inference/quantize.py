"""Makes a smaller or faster file of the same model: GGUF in, GGUF out, by llama.cpp's own quantiser.

Lives here: the formats we offer, the child process that runs the quantiser, the rename at the end.
Must not know: where models come from, under which CID they go out, or who asked.

The quantiser runs in a process of its own because a damaged GGUF can make the library abort, and
because it prints to stderr. Default Q4_0: of all 4-bit formats the one with a repacked kernel on CPUs
(at batch 16, one thread: 590 tokens/s against 203 for Q4_1).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from inference.isolation import child_command, child_environment
from inference.modelfile import check_gguf
from market.errors import DiskFull, EngineFailed, ModelFileInvalid, NodeMisconfigured, RequestInvalid

FORMATS: Final = ("Q4_0", "Q8_0", "Q4_K_M", "F16", "BF16")
GGML_LOG_LEVEL_ERROR: Final = 4
"""From ggml.h; llama-cpp-python does not export it."""
TIME_LIMIT_S: Final = 3600.0
"""0.3 s for the default model; an hour is a 70B model on a slow disk."""


def quantize(source: Path, target: Path, format: str = "Q4_0") -> None:
    """Write `source` in `format` to `target`; `target` appears whole or not at all.

    Raises RequestInvalid for an unknown format, ModelFileInvalid if `source` is no readable GGUF,
    NodeMisconfigured if a path is missing or not writable, DiskFull, EngineFailed for anything else.
    """
    if format not in FORMATS:
        raise RequestInvalid(f"{format!r} is not a format we make.", next_step=f"Choose one of {', '.join(FORMATS)}.")
    check_gguf(source)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise NodeMisconfigured(
            f"cannot write {target.name} to {target.parent}: {error.strerror}.", next_step="Check the folder."
        ) from None
    os.close(handle)
    part = Path(name)
    try:
        _run(source.resolve(), part, format)
        part.chmod(0o644)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _run(source: Path, part: Path, format: str) -> None:
    command = [*child_command("inference.quantize"), str(source), str(part), format]
    try:
        done = subprocess.run(
            command,
            check=False,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"quantising {source.name} took over {TIME_LIMIT_S:.0f} s and was ended.") from None
    if done.returncode == 0 and part.stat().st_size > 0:
        return
    free = os.statvfs(part.parent)
    if free.f_bavail * free.f_frsize < 1 << 20:
        raise DiskFull(f"no room left in {part.parent} for {format}.", next_step="Free some space and try again.")
    words = done.stderr.decode(errors="replace").strip().splitlines()
    reason = words[-1][:200] if words else f"the quantiser ended with {done.returncode}"
    raise ModelFileInvalid(f"{source.name} cannot be turned into {format}: {reason}.", next_step="Pull it again.")


def _main(source: str, part: str, format: str) -> int:
    """The child. Exit status 0 or the library's; on failure its last error message is on stderr."""
    import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def note(level: int, text: bytes, _data: object) -> None:
        if level == GGML_LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{format}")
    options.allow_requantize = True
    options.nthread = len(os.sched_getaffinity(0))
    # Its table of tensors goes to stdout through printf, so the file descriptor itself is turned away.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = int(llama_cpp.llama_model_quantize(source.encode(), part.encode(), ctypes.byref(options)))
    if errors:
        sys.stderr.write(errors[0] + "\n")
    return status


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:4]))
