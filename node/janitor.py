"""Cleans up after a devnet that was killed: ends its processes and removes its folder.

A process of its own, started by file path, so it imports the standard library only. Its standard input
is a pipe that the devnet holds: lines `group N` name process groups, `done` says that nothing is left to
do, and the end of the pipe without `done` means that the devnet died, however it died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE_S = 10.0


def end_groups(groups: Iterable[int], *, patience_s: float = PATIENCE_S) -> None:
    """SIGTERM to process groups, SIGKILL to those that are still there after `patience_s`."""
    left = [group for group in groups if _signal(group, signal.SIGTERM)]
    deadline = time.monotonic() + patience_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [group for group in left if _signal(group, 0)]
    for group in left:
        _signal(group, signal.SIGKILL)
    time.sleep(0.1 if left else 0)


def watch(lines: Iterable[str], folder: Path | None) -> None:
    """Read until the pipe ends; then, unless `done` was said, clean up."""
    groups: list[int] = []
    for line in lines:
        word, _, number = line.strip().partition(" ")
        if word == "done":
            return
        if word == "group" and number.isdigit():
            groups.append(int(number))
    end_groups(groups)
    if folder is not None:
        remove(folder)


def remove(folder: Path, *, patience_s: float = PATIENCE_S) -> None:
    """Again and again: what was just being started when the devnet died may still write into it while it ends."""
    deadline = time.monotonic() + patience_s
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _signal(group: int, number: int) -> bool:
    """Whether the group was there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # whoever ends the devnet's terminal must not end us first
    watch(sys.stdin, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
