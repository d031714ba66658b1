"""What runs a model inside a child process, and the desk where it picks up tasks and hands out results.

Lives here: the two interfaces. Knows no process and no socket. A runner module has a function

    open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> Runner

called once, when the child has given up its rights: it can read `folder` and Python's libraries, and later, when
`open_runner` has returned, open nothing more at all, so it imports and warms up all that it will need. It raises
ModelFileInvalid for a model that it cannot run, NodeMisconfigured for a missing library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from market.errors import EngineFailed, OctoError
from market.work import WorkRequest

GoOn = Callable[[], bool]
"""We are alive; and whether somebody still waits for the call. To be asked now and then, by whoever takes long."""


def always() -> bool:
    """A `GoOn` for what is done while a model is loaded, of which nobody must hear yet."""
    return True


class RanTooLong(EngineFailed):
    """The model was ended in the middle of a call. Its rows are not tried again one by one: each may take as long."""


@dataclass(slots=True, eq=False)
class Task:
    """`cancelled` becomes true at a `beat`: nobody waits for it any more. `max_units` may come back at most."""

    number: int
    request: WorkRequest
    blob: bytes
    max_units: int
    priority: int = 0
    cancelled: bool = False


class Desk(Protocol):
    """There is one thread: the node's frames are read in `take`, `made` and `beat`. A runner that calls none of them
    for longer than the engine's `hang_s` is taken for hung, and its process is ended."""

    def take(self, limit: int, wait_s: float = 0.0) -> list[Task]:
        """Tasks to begin, most urgent first; waits for more than there are up to `wait_s`."""

    def made(
        self, task: Task, pieces: Sequence[bytes] = (), *, progress: int = 0, finish: Literal["", "stop", "length"] = ""
    ) -> None:
        """Pieces since the last call (2,048 and 16 MiB at most), percent done in all. With `finish` it is over."""

    def refuse(self, task: Task, error: OctoError) -> None:
        """RequestInvalid for an input that is not what it says; EngineFailed if the model fails on it. Over."""

    def beat(self) -> None:
        """We are alive: call it from loops and progress callbacks, then look at `cancelled`."""


class Runner(Protocol):
    """`engine` is the engine class that a replay needs (`onnxruntime/1.31.1/cpu-avx512/f32`); `context` the longest
    input in units."""

    engine: str
    context: int

    def run(self, desk: Desk) -> None:
        """Begin what `desk.take` gives, together or in turn, until it gives nothing and all is made or refused.

        A task whose `cancelled` is true is dropped, without a word. What this raises becomes the error of all tasks
        taken and not over: an OctoError as it is, anything else as EngineFailed with the name of its type alone.
        """
