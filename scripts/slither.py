"""`make slither`: static analysis of the contracts, in a virtual environment of its own (it wants web3<8).

Exits with 1 on a finding that docs/decisions/003-slither.md does not answer: `contracts/slither.config.json` names
those that it does.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from pip_settings import pip_environment
from progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "slither"
STAMP = VENV / "octo-set-up.stamp"
LOCK = ROOT / "requirements/slither.txt"
FOUNDRY = ROOT / "contracts/node_modules/@foundry-rs/forge-linux-amd64/bin"


def set_up() -> None:
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    venv.create(VENV, with_pip=True, clear=True, symlinks=True)
    run_step(
        "Installing slither",
        [VENV / "bin/python", "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", LOCK],
        log=ROOT / ".cache/logs/pip-slither.log",
        env=pip_environment(VENV / "bin/python"),
        usually="1 minute",
    )
    STAMP.write_text(wanted)


def main() -> int:
    try:
        set_up()
    except StepFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    path = os.pathsep.join([str(FOUNDRY), str(ROOT / ".cache/node/bin"), os.environ.get("PATH", os.defpath)])
    command = [VENV / "bin/slither", ".", "--config-file", "slither.config.json", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT / "contracts", env={**os.environ, "PATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
