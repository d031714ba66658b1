"""What every process that loads llama.cpp asks of the library itself: silence, its reasons, and its engine class.

Lives here: the log, and words about the build and a file. Must not know: contexts, jobs. Only child processes import
this module, because a bad model file can take the process down.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from pathlib import Path
from typing import Any, Final

import llama_cpp

from inference.hardware import isa_word
from market.errors import ModelFileInvalid, NodeMisconfigured, OctoError

GGML_LOG_LEVEL_ERROR: Final = 4
"""From ggml.h; llama-cpp-python does not export it."""
_NO_MEMORY: Final = re.compile(r"memory|bad_alloc|failed to allocate", re.IGNORECASE)
_LINES_LIMIT: Final = 16
_TEXT_BYTES: Final = 64


class LlamaLog:
    """The library's error lines are kept for our own errors; nothing is printed, as long as this lives."""

    def __init__(self) -> None:
        self._lines: list[str] = []

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def note(level: int, text: bytes, _data: object) -> None:
            if level == GGML_LOG_LEVEL_ERROR and len(self._lines) < _LINES_LIMIT:
                self._lines.append(text.decode(errors="replace").strip())

        self._note = note
        llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
        weakref.finalize(self, _forget_log)  # the library would call what is no longer there
        llama_cpp.llama_backend_init()

    def reason(self) -> str:
        """The first error line, which names the cause; the ones after it repeat that it failed."""
        line = self._lines[0] if self._lines else "it gives no reason"
        return line.rsplit(": ", 1)[-1][:200] if line.count(": ") == 1 else line[:200]


def _forget_log() -> None:
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def load_model(path: Path, options: Any, log: LlamaLog) -> Any:
    """Raises ModelFileInvalid with the library's reason, NodeMisconfigured if it found no memory."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise refused(f"load {path.name}", log)
    return model


def refused(what: str, log: LlamaLog) -> OctoError:
    """Why the library did not do `what`: there was no memory for it, or the file is to blame."""
    reason = log.reason()
    if _NO_MEMORY.search(reason):
        return NodeMisconfigured(
            f"there is too little memory to {what}: llama.cpp says {reason}.",
            next_step="Free some, or use fewer slots or workers, a shorter context, or a smaller model.",
        )
    return ModelFileInvalid(f"llama.cpp cannot {what}: {reason}.", next_step="Pull or convert the model again.")


def engine_class(model: Any, *, where: str = "") -> str:
    """Library, version, instruction set, quantisation; equal classes replay bit for bit. `where` layers lie, if not on
    the processor."""
    info = llama_cpp.llama_print_system_info().decode()
    flags = {part.split("=")[0].strip().lower() for part in info.replace(":", "|").split("|") if "= 1" in part}
    return f"llama.cpp/{llama_cpp.__version__}/{where}cpu-{isa_word(flags)}/{_file_type(model)}"


def metadata(model: Any, key: str) -> str:
    """What the file says under a key, as text; empty if nothing."""
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    found = llama_cpp.llama_model_meta_val_str(model, key.encode(), text, len(text))
    return text.value.decode(errors="replace") if found >= 0 else ""


def _file_type(model: Any) -> str:
    said = metadata(model, "general.file_type")
    if not said.isdigit():
        return "unknown"
    prefix = "LLAMA_FTYPE_MOSTLY_"
    names = {getattr(llama_cpp, name): name.removeprefix(prefix) for name in dir(llama_cpp) if prefix in name}
    names[0] = "F32"
    return str(names.get(int(said), "unknown")).lower()
