"""`octo-node` as a user runs it: commands, and nodes that live for the length of a block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devnets import ROOT
from two_machines import Machine

PROGRAM = [sys.executable, "-m", "node.cli"]


def environment(folder: Path, address: str = "127.0.0.1", settings: Mapping[str, str] | None = None) -> dict[str, str]:
    own = {name: text for name, text in os.environ.items() if not name.startswith("OCTO_")}
    own |= {"OCTO_DATA_DIR": str(folder), "OCTO_MESH__LISTEN": f"/ip4/{address}/tcp/0", "OCTO_API__PORT": "0"}
    return {**own, **(settings or {})}


def octo(
    folder: Path,
    *words: str,
    machine: Machine | None = None,
    settings: Mapping[str, str] | None = None,
    ok: bool = True,
    timeout_s: float = 120,
) -> dict:
    command = [*PROGRAM, *words, "--json"]
    command = machine.command(*command) if machine else command
    address = machine.address if machine else "127.0.0.1"
    done = subprocess.run(
        command, cwd=ROOT, env=environment(folder, address, settings), capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return json.loads(done.stdout or done.stderr.splitlines()[-1])


@contextmanager
def running(
    folder: Path,
    *words: str,
    machine: Machine | None = None,
    settings: Mapping[str, str] | None = None,
    start_s: float = 150,
) -> Iterator[dict]:
    """`octo-node start`, until the end of the block; yields what --ready-file holds."""
    ready = folder.with_suffix(".json")
    command = [*PROGRAM, "start", "--ready-file", str(ready), *words]
    command = machine.command(*command) if machine else command
    address = machine.address if machine else "127.0.0.1"
    around = environment(folder, address, settings)
    with (folder.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=around, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + start_s
            while not ready.exists():
                assert process.poll() is None, folder.with_suffix(".log").read_text()[-3000:]
                assert time.monotonic() < deadline, folder.with_suffix(".log").read_text()[-3000:]
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
