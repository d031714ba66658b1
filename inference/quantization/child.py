"""The child process that quantises: `python -m inference.quantization.child`, its orders as JSON on standard input.

Lives here: what it gives up before it touches the file, and one call into each library. Must not know: stores,
progress, who asks. A model file is a stranger's bytes: this process can read the source's folder and Python's
libraries, and write into one folder; no network, no keys. It ends when its parent does.

Orders: {"parent", "format", "to", "sources", "folder", "out", "threads", "memory_bytes", "file_bytes"}. Ends with 0,
or with 1 and one line of JSON on standard error: {"code", "message", "next_step"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inference.isolation import confine, die_with_parent
from inference.models.manifest import Format
from inference.quantization.convert import convert
from inference.quantization.onnx_file import quantize_onnx
from market.errors import EngineFailed, ModelFileInvalid, OctoError

GGML_LOG_LEVEL_ERROR: Final = 4
"""From ggml.h; llama-cpp-python does not export it."""
_ORDERS_LIMIT_BYTES: Final = 1 << 20
_NICENESS: Final = 19
"""A quantisation may take all cores, of what those who serve leave."""


def quantize_gguf(source: Path, out: Path, to: str, threads: int) -> None:
    """By llama.cpp's own quantiser. Raises ModelFileInvalid with its first error line."""
    import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def note(level: int, text: bytes, _data: object) -> None:
        if level == GGML_LOG_LEVEL_ERROR and len(errors) < 16:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{to}")
    options.allow_requantize = True  # whether it may be is asked before this process is started
    options.nthread = threads
    status = int(llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options)))
    if status != 0:
        reason = errors[0][:200] if errors else f"llama.cpp ended with {status}"
        raise ModelFileInvalid(f"{source.name} cannot be turned into {to}: {reason}.", next_step="Pull it again.")


def _work(orders: Mapping[str, Any]) -> None:
    source, out = Path(orders["sources"][0]), Path(orders["out"])
    if orders["format"] == Format.GGUF:
        quantize_gguf(source, out, orders["to"], orders["threads"])
    elif orders["format"] == Format.SAFETENSORS:
        convert(source, out, orders["to"])
    else:
        quantize_onnx(source, out, orders["to"])


def main() -> int:
    die_with_parent()
    orders = json.loads(sys.stdin.buffer.read(_ORDERS_LIMIT_BYTES))
    if os.getppid() != orders["parent"]:  # it died before die_with_parent could see
        return 0
    os.nice(_NICENESS)
    folder = Path(orders["folder"])
    tempfile.tempdir = str(folder)
    if orders["format"] == Format.GGUF:
        import llama_cpp  # noqa: F401 - opens /dev/null as it is imported
    # Shards lie beside the first; a store's file lies beside strangers', hence files and not their folder.
    readable = [Path(source) for source in orders["sources"]]
    confine(readable, memory_bytes=orders["memory_bytes"], writable=folder, file_bytes=orders["file_bytes"])
    try:
        _work(orders)
    except MemoryError:
        error: OctoError = EngineFailed(
            f"quantising took over {orders['memory_bytes'] >> 20} MiB of memory.", next_step="Use a smaller model."
        )
    except OctoError as caught:
        error = caught
    except Exception as caught:  # noqa: BLE001 - a library chokes on a stranger's file: any way it likes
        error = ModelFileInvalid(
            f"{Path(orders['sources'][0]).name} cannot be turned into {orders['to']}: {type(caught).__name__}:"
            f" {str(caught)[:200]}.",
            next_step="Pull it again, or choose another format.",
        )
    else:
        return 0
    sys.stderr.write(json.dumps({"code": error.code, "message": error.message, "next_step": error.next_step}) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
