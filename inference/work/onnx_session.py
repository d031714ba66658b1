"""One ONNX graph in ONNX Runtime, inside a child: opened with bounded threads, checked, run.

Lives here: session options, execution providers, names and types of inputs. Knows no task and no frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured

CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final[Mapping[str, str]] = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_SILENT: Final = 4
"""Only fatal errors are logged: warnings quote the model."""
_INPUTS_LIMIT: Final = 64

Array = np.ndarray[Any, np.dtype[Any]]


class Session:
    """`providers` are what it runs on, most wanted first; `metadata` what the file says about itself."""

    def __init__(self, path: Path, *, threads: int, providers: Sequence[str] = ("cpu",)) -> None:
        """Raises ModelFileInvalid, NodeMisconfigured."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        # Spinning threads take the core from whoever has work (facts: 100 times slower on two busy cores).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = [_provider(name) for name in providers]
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=list(dict.fromkeys((*wanted, CPU)))
            )
        except Exception as error:  # noqa: BLE001 - the library's errors have no common class
            raise ModelFileInvalid(
                f"{path.name} is no ONNX model that ONNX Runtime {onnxruntime.__version__} loads "
                f"({type(error).__name__}).",
                next_step="Pull the model again; if it is whole, it needs a newer ONNX Runtime.",
            ) from None
        self.providers = tuple(self._session.get_providers())
        self.inputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_inputs()}
        self.outputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_outputs()}
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if not 1 <= len(self.inputs) <= _INPUTS_LIMIT:
            raise ModelFileInvalid(f"{path.name} has {len(self.inputs)} inputs.")

    def run(self, feeds: Mapping[str, Array], output: str) -> Array:
        """Raises EngineFailed if the graph does not take it."""
        try:
            made = self._session.run([output], dict(feeds))[0]
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineFailed(f"the model failed on the input ({type(error).__name__}).") from None
        if not isinstance(made, np.ndarray) or made.dtype.kind != "f":
            raise EngineFailed("the model's output is not made of floating-point numbers.")
        return made


def _provider(name: str) -> str:
    full = PROVIDERS.get(name)
    if full is None:
        raise NodeMisconfigured(
            f"{name!r} is no execution provider.", next_step=f"Choose among {', '.join(sorted(PROVIDERS))}."
        )
    if full not in onnxruntime.get_available_providers():
        raise NodeMisconfigured(
            f"The installed ONNX Runtime has no {full}.",
            next_step="Install onnxruntime-gpu instead of onnxruntime, or choose `cpu`.",
        )
    return full
