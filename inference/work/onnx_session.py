"""One ONNX graph in ONNX Runtime, inside a child: opened with bounded threads, checked, run.

Lives here: session options, execution providers, names and types of inputs, how long a run may take. Knows no task and
no frame.

A run can be ended, and cannot be asked how far it is. So it has a thread of its own (60 us a run), while the one that
speaks to the node asks whether to go on, and so says that we live, for as long as `Patience` has. Then the run is told
to end, and if it does not, the node hears nothing more of us: a hang is noticed some time after that, and one of the
whole process at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import onnxruntime

from inference.work.runner import GoOn, RanTooLong
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

_ASK_S: Final = 0.1
LEAST_S: Final = 30.0
LIMIT_S: Final = 600.0
"""No run may take longer. The slowest to be expected, 8,192 tokens through 24 layers of 1,024, is four minutes of work
for a core that makes 50 GFLOPS."""
_FACTOR: Final = 20.0
"""Attention makes each token of a long text up to three times as dear as of a short one; the rest is for busy cores."""

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


class Patience:
    """How long a run may take: many times what the dearest piece of work took so far, times its pieces; LIMIT_S as long
    as nothing is known, since a library may have to compile something for a first run. `size` is the number of elements
    of a run's first input: tokens, or pixels."""

    def __init__(self, *, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._dearest_s = 0.0

    def of(self, size: int) -> float:
        if not self._dearest_s:
            return LIMIT_S
        return min(LIMIT_S, max(self._least_s, _FACTOR * self._dearest_s * size))

    def took(self, size: int, seconds: float) -> None:
        self._dearest_s = max(self._dearest_s, seconds / max(1, size))


class Session:
    """`providers` are what it runs on, most wanted first; `metadata` what the file says about itself. One run at a
    time."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        providers: Sequence[str] = ("cpu",),
        fall_back: bool = False,
        patience: Patience | None = None,
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
        self._runs = _Runs(patience or Patience())
        self.providers = tuple(self._session.get_providers())
        self.inputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_inputs()}
        self.outputs = {item.name: (item.type, tuple(item.shape)) for item in self._session.get_outputs()}
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if not 1 <= len(self.inputs) <= _INPUTS_LIMIT:
            raise ModelFileInvalid(f"{path.name} has {len(self.inputs)} inputs.")

    def run(self, feeds: Mapping[str, Array], output: str, go_on: GoOn) -> Array:
        """`go_on` is asked first, and now and then. Raises what it does, EngineFailed if the graph does not take it or
        if it shall not go on, RanTooLong."""
        [made] = self.run_all(feeds, [output], go_on)
        if made.dtype.kind != "f":
            raise EngineFailed("the model's output is not made of floating-point numbers.")
        return made

    def run_all(self, feeds: Mapping[str, Array], outputs: Sequence[str], go_on: GoOn) -> list[Array]:
        """Several outputs, in order. As `run`, and EngineFailed if the graph makes something else than arrays."""
        made = self._runs.run(
            lambda options: self._session.run(list(outputs), dict(feeds), options), size=_size(feeds), go_on=go_on
        )
        if not all(isinstance(array, np.ndarray) for array in made):
            raise EngineFailed("the model's output is no array.")
        return list(made)

    def bind(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound:
        """A run that can be repeated: it reads and writes these very arrays. Raises EngineFailed."""
        return Bound(self._session, self._runs, feeds, outputs)


class Bound:
    """Arrays tied to a graph's inputs and outputs: nothing is allocated or copied for a run on the processor."""

    def __init__(self, session: Any, runs: _Runs, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._session = session
        self._runs = runs
        self._size = _size(feeds)
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

    def run(self, go_on: GoOn) -> None:
        """As `Session.run`; EngineFailed too if it makes something of another shape."""
        self._runs.run(
            lambda options: self._session.run_with_iobinding(self._binding, options), size=self._size, go_on=go_on
        )


class _Runs:
    """The thread for a session's runs, and its patience."""

    def __init__(self, patience: Patience) -> None:
        self._thread = ThreadPoolExecutor(1, "onnx")
        self._patience = patience

    def run(self, call: Callable[[Any], T], *, size: int, go_on: GoOn) -> T:
        """The result of `call(options)`. See `Session.run`."""
        if not go_on():
            raise _unwanted()
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        began_s, limit_s = time.monotonic(), self._patience.of(size)
        running = self._thread.submit(call, options)
        left, late = False, False
        while not wait((running,), _ASK_S).done:
            late = time.monotonic() - began_s > limit_s
            try:
                left = (not late and not go_on()) or left
            except BaseException:  # the node is gone, maybe; but a run must not outlive its call
                options.terminate = True
                wait((running,))
                raise
            options.terminate = left or late
        if left:
            raise _unwanted()
        try:
            made = running.result()
        except Exception as error:  # noqa: BLE001 - as above
            if late:
                raise RanTooLong(
                    f"the model took longer than the {limit_s:.0f} s that such an input may take."
                ) from None
            raise EngineFailed(f"the model failed on the input ({type(error).__name__}).") from None
        self._patience.took(size, time.monotonic() - began_s)
        return made


def _size(feeds: Mapping[str, Array]) -> int:
    return next(iter(feeds.values())).size


def _unwanted() -> EngineFailed:
    return EngineFailed("nobody waits for the result any more.")


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
