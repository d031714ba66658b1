"""What is left when a devnet is killed: nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

from node import janitor

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)

PATIENCE_S = 60


def start(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_after_the_end_of_the_pipe_processes_and_folder_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "devnet"
    (folder / "provider-1").mkdir(parents=True)
    process = start(SLEEPER)
    watcher = subprocess.Popen([sys.executable, "-I", janitor.__file__, str(folder)], stdin=subprocess.PIPE, text=True)
    assert watcher.stdin is not None
    watcher.stdin.write(f"group {process.pid}\n")
    watcher.stdin.close()  # what the kernel does when the devnet is killed
    assert process.wait(timeout=PATIENCE_S) < 0
    assert watcher.wait(timeout=PATIENCE_S) == 0
    assert not folder.exists()


def test_after_done_it_touches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    process = start(SLEEPER)
    janitor.watch([f"group {process.pid}\n", "done\n"], folder)
    assert process.poll() is None
    assert folder.exists()
    os.killpg(process.pid, 9)
    process.wait()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    process = start(STUBBORN)
    began = time.monotonic()
    janitor.end_groups([process.pid], patience_s=0.2)
    assert process.wait(timeout=PATIENCE_S) == -9
    assert time.monotonic() - began >= 0.2


def test_a_folder_that_is_still_being_written_to_goes_too(tmp_path: Path) -> None:
    """What was just starting when the devnet died is in no group yet: it ends by itself, a little later."""
    folder = tmp_path / "devnet"
    (folder / "chain").mkdir(parents=True)
    writing = (
        "import contextlib, os, sys, time; print('up', flush=True)\n"
        "made, until = 0, None\n"
        "while until is None or time.monotonic() < until:\n"
        " with contextlib.suppress(OSError): os.mkdir(f'{sys.argv[1]}/chain/{time.monotonic_ns()}'); made += 1\n"
        " if made == 200: until = until or time.monotonic() + 0.5\n"
        " time.sleep(0.001)"  # some hundred folders: a busy disk has the patience for them
    )
    process = subprocess.Popen([sys.executable, "-c", writing, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    while len(os.listdir(folder / "chain")) < 200:
        pass
    janitor.remove(folder)
    assert not folder.exists()
    assert process.wait(timeout=PATIENCE_S) == 0


def test_lines_that_name_no_group_are_passed_over() -> None:
    janitor.watch(["", "group x\n", "group -1\n", "group \n"], None)
