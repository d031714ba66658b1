"""A working child process: `python -m inference.work.child`; how it lives and ends: `inference.line`.

Lives here: the order in which it gives up its rights, and the desk between frames and a runner. Must not know: any
engine, the network, keys; it is told all it needs.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from inference.frames import Frame
from inference.isolation import close_the_door, confine
from inference.line import Line, live
from inference.work.orders import DIALECT, ChildFacts, ChildSettings
from inference.work.runner import Runner, Task
from market.errors import EngineFailed, ModelFileInvalid, OctoError
from market.work import decode_request


class LineDesk:
    """Implements `inference.work.runner.Desk`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._waiting: list[Task] = []
        self._taken: dict[int, Task] = {}

    def wait(self) -> None:
        """Until there is something to take."""
        while not self._waiting:
            self._obey(self._line.receive(None))

    def take(self, limit: int, wait_s: float = 0.0) -> list[Task]:
        self.beat()
        until = time.monotonic() + wait_s
        while len(self._waiting) < limit and (left_s := until - time.monotonic()) > 0:
            self._obey(self._line.receive(left_s))
        self._waiting.sort(key=lambda task: (task.priority, task.number))
        taken, self._waiting = self._waiting[:limit], self._waiting[limit:]
        self._taken |= {task.number: task for task in taken}
        return taken

    def made(
        self, task: Task, pieces: Sequence[bytes] = (), *, progress: int = 0, finish: Literal["", "stop", "length"] = ""
    ) -> None:
        self.beat()
        if self._is_over(task, ends=bool(finish)):
            return
        self._line.send(["made", task.number, progress, finish], pieces)

    def refuse(self, task: Task, error: OctoError) -> None:
        if not self._is_over(task, ends=True):
            self._line.send(["refused", task.number, error.code, error.message, error.next_step])

    def refuse_all(self, error: OctoError) -> None:
        for task in list(self._taken.values()):
            self.refuse(task, error)

    def beat(self) -> None:
        while frames := self._line.receive(0):
            self._obey(frames)
        self._line.heartbeat()

    def _is_over(self, task: Task, *, ends: bool) -> bool:
        over = task.cancelled or task.number not in self._taken
        if ends:
            self._taken.pop(task.number, None)
        return over

    def _obey(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            match frame.message:
                case ["run", number, max_units, priority]:
                    request, blob = frame.parts
                    self._waiting.append(Task(number, decode_request(request), blob, max_units, priority))
                case ["cancel", number]:
                    self._waiting = [task for task in self._waiting if task.number != number]
                    if task := self._taken.pop(number, None):
                        task.cancelled = True


def serve(desk: LineDesk, runner: Runner) -> None:
    """Until the parent goes."""
    while True:
        desk.wait()
        error: OctoError = EngineFailed("the engine left the task undone.")
        try:
            runner.run(desk)
        except MemoryError:
            raise  # what is left of this process cannot be trusted to work
        except OctoError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - libraries raise anything, and may quote the input in it
            error = EngineFailed(f"the model failed on the task ({type(caught).__name__}).")
        desk.refuse_all(error)


def open_model(settings: ChildSettings, line: Line) -> tuple[ChildFacts, Callable[[], None]]:
    """Confine this process, then load the model: a file that attacks its parser finds the cage closed.

    Raises ModelFileInvalid, NodeMisconfigured.
    """
    open_runner = importlib.import_module(settings.runner).open_runner
    folder = Path(settings.folder)
    isolation = confine(
        [folder, *map(Path, settings.readable)],
        memory_bytes=settings.memory_bytes,
        devices=[Path(device) for device in settings.devices],
    )
    try:
        runner: Runner = open_runner(folder, settings.options, settings.threads)
    except OctoError:
        raise
    except MemoryError:
        raise ModelFileInvalid(
            f"the model does not fit into {settings.memory_bytes >> 20} MiB.", next_step="Allow it more memory."
        ) from None
    except Exception as error:  # noqa: BLE001 - as above; there is no input yet that it could quote
        reason = "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error!s:.200}")
        raise ModelFileInvalid(
            f"the model cannot be loaded ({reason.replace(str(folder), 'the model')}).",
            next_step="Pull the model again; if it is whole, this engine does not run it.",
        ) from None
    close_the_door(devices=bool(settings.devices))
    facts = ChildFacts(engine=runner.engine, context=runner.context, isolation=isolation)
    return facts, lambda: serve(LineDesk(line), runner)


if __name__ == "__main__":
    sys.exit(live(DIALECT, open_model))
