"""One ONNX graph in ONNX Runtime, inside a child: opened with bounded threads, checked, run.

Lives here: session options, execution providers, names and types of inputs. Knows no task and no frame.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
_INPUTS_LIMIT: Final = 4096
"""A decoder has two for each of its layers."""

Array = np.ndarray[Any, np.dtype[Any]]


class Session:
    """`providers` are what it runs on, most wanted first; `metadata` what the file says about itself."""

    def __init__(
        self, path: Path, *, threads: int, providers: Sequence[str] = ("cpu",), fall_back: bool = False
    ) -> None:
        """With `fall_back`, providers that this library lacks are left out. Raises ModelFileInvalid,
        NodeMisconfigured."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        # Spinning threads take the core from whoever has work (facts: 100 times slower on two busy cores).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = choose_providers(providers, onnxruntime.get_available_providers(), fall_back=fall_back)
        if wanted != [CPU]:
            onnxruntime.preload_dlls()  # CUDA's libraries, where they were installed as packages
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
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

    def run_all(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Several outputs, in order. Raises EngineFailed if the graph does not take it, or makes something else."""
        try:
            made = self._session.run(list(outputs), dict(feeds))
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineFailed(f"the model failed on the input ({type(error).__name__}).") from None
        if not all(isinstance(array, np.ndarray) for array in made):
            raise EngineFailed("the model's output is no array.")
        return list(made)

    def bind(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound:
        """A run that can be repeated: it reads and writes these very arrays. Raises EngineFailed."""
        return Bound(self._session, feeds, outputs)


class Bound:
    """Arrays tied to a graph's inputs and outputs: nothing is allocated or copied for a run on the processor."""

    def __init__(self, session: Any, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._session = session
        self._kept = (feeds, outputs)  # the binding knows their addresses alone
        self._binding = session.io_binding()
        try:
            for name, array in feeds.items():
                self._binding.bind_cpu_input(name, array)
            for name, array in outputs.items():
                kind, place = array.dtype.type, array.ctypes.data
                self._binding.bind_output(name, "cpu", 0, kind, array.shape, place)
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineFailed(f"the model does not take its input ({type(error).__name__}).") from None

    def run(self) -> None:
        """Raises EngineFailed if the graph does not take it, or makes something of another shape."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # noqa: BLE001 - as above
            raise EngineFailed(f"the model failed on the input ({type(error).__name__}).") from None


def choose_providers(names: Sequence[str], available: Collection[str], *, fall_back: bool) -> list[str]:
    """The library's own names, in the order of `names`; the processor comes last, for what the others cannot do.

    Raises NodeMisconfigured for a name that is none, and without `fall_back` for one that is not `available`."""
    for name in names:
        if name not in PROVIDERS:
            raise NodeMisconfigured(
                f"{name!r} is no execution provider.", next_step=f"Choose among {', '.join(sorted(PROVIDERS))}."
            )
        if PROVIDERS[name] not in available and not fall_back:
            raise NodeMisconfigured(
                f"The installed ONNX Runtime has no {PROVIDERS[name]}.",
                next_step="Install onnxruntime-gpu instead of onnxruntime, or choose `cpu`.",
            )
    found = [PROVIDERS[name] for name in names if PROVIDERS[name] in available]
    return list(dict.fromkeys((*found, CPU)))
