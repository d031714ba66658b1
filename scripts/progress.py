"""Runs one long command so that a person sees what is going on: elapsed time, how far, how long it usually takes.

Standard library only: it runs before anything is installed. Knows commands and logs, never what they are for.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_QUIET_EVERY_S = 20.0  # one line in a CI log
_LIVE_EVERY_S = 0.5  # the same line again on a terminal
_LAST_LINES = 40

ReadLine = Callable[[str], str | None]
"""Takes a line of output; returns a few words on how far the step is, or None when it says nothing new."""


class StepFailed(Exception):
    """A command failed; the message carries the end of its output and where the rest is."""


def no_detail(_line: str) -> str | None:
    return None


def run_step(
    title: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    usually: str = "",
    detail: ReadLine = no_detail,
) -> None:
    """Runs `command` without stdin, all output into `log`; raises StepFailed when it does not exit with 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started, state = time.monotonic(), {"detail": ""}
    print(f"[octo] {title}{f' (usually {usually})' if usually else ''}", flush=True)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(env),
        )
        done = threading.Event()
        ticker = threading.Thread(target=_tick, args=(title, started, state, done), daemon=True)
        ticker.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                out.write(line)
                state["detail"] = detail(line) or state["detail"]
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            done.set()
            ticker.join()
    if code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        raise StepFailed("\n".join([*tail, f"[octo] {title}: failed with exit code {code}. All of its output: {log}"]))
    print(f"[octo]   done in {_clock(time.monotonic() - started)}", flush=True)


def _tick(title: str, started: float, state: Mapping[str, str], done: threading.Event) -> None:
    live = sys.stdout.isatty()
    while not done.wait(_LIVE_EVERY_S if live else _QUIET_EVERY_S):
        text = f"[octo]   {_clock(time.monotonic() - started)}  {state['detail'] or title}"
        if live:
            sys.stdout.write(f"\r\x1b[K{text[:110]}")
            sys.stdout.flush()
        else:
            print(text, flush=True)
    if live:
        sys.stdout.write("\r\x1b[K")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
