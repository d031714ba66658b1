"""A runner for tests of the child process: what it does, an input text says."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.work.runner import Desk, Task
from market.errors import ModelFileInvalid, RequestInvalid
from market.work import EmbedRequest


class ToyRunner:
    engine = "toy/1"
    context = 1000

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, desk: Desk) -> None:
        while tasks := desk.take(1):
            self._do(desk, tasks[0])

    def _do(self, desk: Desk, task: Task) -> None:
        assert isinstance(task.request, EmbedRequest)
        texts = task.request.inputs
        for number, text in enumerate(texts):
            if task.cancelled:
                return
            word, _, rest = text.partition(" ")
            match word:
                case "hang":
                    time.sleep(60)
                case "die":
                    os.abort()
                case "eat":
                    bytearray(8 << 30)
                case "raise":
                    raise ValueError(f"secret {text}")
                case "refuse":
                    desk.refuse(task, RequestInvalid("not\nthat", next_step="Send this."))
                    return
                case "slow":
                    for _ in range(int(rest)):
                        time.sleep(0.01)
                        desk.beat()
                        if task.cancelled:
                            return
                case "torn":
                    desk.made(task, [b"x"])
                case "break":
                    attempts = (
                        Path("/etc/passwd").read_text,
                        lambda: (self._folder / "new").write_text("x"),
                        (self._folder / "model.onnx").read_text,
                        socket.socket,
                    )
                    for attempt in attempts:
                        try:
                            attempt()
                        except OSError:
                            continue
                        return  # the task is left undone: the test sees an error
            desk.made(task, [task.blob[:32].ljust(32, b"\0")], progress=(number + 1) * 100 // len(texts))
        desk.made(task, progress=100, finish="stop")


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> ToyRunner:
    if options.get("fail") == "invalid":
        raise ModelFileInvalid("this is no model.")
    if options.get("fail") == "raise":
        raise ValueError(f"bad file {folder}/model.onnx")
    if options.get("fail") == "die":
        os.abort()
    if options.get("fail") == "eat":
        bytearray(8 << 30)
    return ToyRunner(folder)
