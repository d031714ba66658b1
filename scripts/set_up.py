"""Makes the checkout ready: system packages, `.venv`, locked dependencies, this project. `make` calls it every time.

Nothing to do takes well under a second: a stamp in `.venv` remembers what it was built from. Standard library only,
and started by any Python >= 3.11; everything it installs is pinned by version and sha256 in requirements/.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import venv
from pathlib import Path

import system_packages
from pip_settings import pip_environment
from progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "octo-set-up.stamp"
LOGS = ROOT / ".cache" / "logs"
INPUTS = ("pyproject.toml", "requirements/build.txt", "requirements/lock.txt")


def wanted_stamp() -> str:
    """What the virtual environment was built from; a moved checkout or another Python counts as another one."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return f"{digest.hexdigest()} python {sys.version_info.major}.{sys.version_info.minor} in {ROOT}\n"


def set_up() -> None:
    if missing := system_packages.missing_packages():
        system_packages.install(missing, LOGS)
        if still := system_packages.missing_packages():
            raise StepFailed(f"[octo] apt-get ran, but these are still missing: {' '.join(still)}")
    _make_venv()
    env = pip_environment(PYTHON)
    pip: list[str | Path] = [PYTHON, "-m", "pip", "install", "--require-hashes", "--no-deps"]
    run_step(
        "Installing the build tools",
        [*pip, "--only-binary", ":all:", "-r", ROOT / "requirements/build.txt"],
        log=LOGS / "pip-build-tools.log",
        env=env,
        usually="20 s",
    )
    total = len(re.findall(r"(?m)^[a-z0-9][^\s=]*==", (ROOT / "requirements/lock.txt").read_text()))
    run_step(
        "Installing the locked dependencies; llama.cpp is compiled for this machine",
        [*pip, "--no-build-isolation", "-v", "-r", ROOT / "requirements/lock.txt"],
        log=LOGS / "pip-lock.log",
        env={**env, "PATH": f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"},
        usually="4 to 10 minutes on 2 cores, the first time",
        detail=_Lines(total),
    )
    run_step(
        "Installing octo-node itself",
        [PYTHON, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", ROOT],
        log=LOGS / "pip-octo-node.log",
        env=env,
    )
    run_step(
        "Checking that all versions fit together",
        [PYTHON, "-m", "pip", "check"],
        log=LOGS / "pip-check.log",
        env=env,
    )


class _Lines:
    """Turns pip's verbose output into "package 12 of 159" and "compiling, step 12 of 193"."""

    def __init__(self, total: int) -> None:
        self._total, self._seen = total, 0

    def __call__(self, line: str) -> str | None:
        if found := re.match(r"\s*\[(\d+)/(\d+)\]", line):
            return f"compiling llama.cpp, step {found[1]} of {found[2]}"
        if found := re.match(r"Collecting (\S+?)==", line):
            self._seen += 1
            return f"fetching {found[1]}, package {self._seen} of about {self._total}"
        if found := re.match(r"\s*Building wheel for (\S+)", line):
            return f"building {found[1]}"
        return "unpacking" if line.startswith("Installing collected packages") else None


def _make_venv() -> None:
    """A venv that belongs to another Python or another folder is made anew; one that fits is kept."""
    if VENV.exists():
        before = STAMP.read_text() if STAMP.exists() else wanted_stamp()
        same_home = before.split(" ", 1)[-1] == wanted_stamp().split(" ", 1)[-1]
        if same_home and PYTHON.exists() and (VENV / "bin" / "pip").exists():
            STAMP.unlink(missing_ok=True)
            return
        shutil.rmtree(VENV)
    print("[octo] Making the virtual environment .venv", flush=True)
    venv.create(VENV, with_pip=True, symlinks=True)


def main() -> int:
    if STAMP.exists() and STAMP.read_text() == wanted_stamp() and PYTHON.exists():
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "set-up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == wanted_stamp():
            return 0
        try:
            set_up()
        except StepFailed as failed:
            print(failed, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\n[octo] stopped; the same command goes on from here", file=sys.stderr)
            return 130
        STAMP.write_text(wanted_stamp())
    return 0


if __name__ == "__main__":
    sys.exit(main())
