"""`make slither`: static analysis of the contracts, in a virtual environment of its own (it wants web3<8).

Every finding is answered in docs/decisions/005-slither.md, in a row that begins with the detector and the place. Exits
with 1 on a finding without an answer, and on an answer without a finding.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from pip_settings import pip_environment
from progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "slither"
STAMP = VENV / "octo-set-up.stamp"
LOCK = ROOT / "requirements/slither.txt"
FOUNDRY = ROOT / "contracts/node_modules/@foundry-rs/forge-linux-amd64/bin"
ANSWERS = ROOT / "docs/decisions/005-slither.md"


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


def analysed() -> list[dict[str, Any]]:
    """slither's findings in src/. It cleans and builds a folder of its own."""
    path = os.pathsep.join([str(FOUNDRY), str(ROOT / ".cache/node/bin"), os.environ.get("PATH", os.defpath)])
    ran = subprocess.run(
        [str(VENV / "bin/slither"), ".", "--foundry-out-directory", "build/slither", "--json", "-",
         "--filter-paths", "node_modules|test/"],
        cwd=ROOT / "contracts",
        env={**os.environ, "PATH": path, "FOUNDRY_OUT": "build/slither", "FOUNDRY_CACHE_PATH": "build/slither-cache"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(ran.stdout) if ran.stdout.startswith("{") else {"success": False}
    if not said["success"]:
        raise StepFailed(f"[octo] slither did not get to the end:\n{ran.stderr[-3000:]}")
    found: list[dict[str, Any]] = said["results"].get("detectors", [])
    return found


def place(finding: dict[str, Any]) -> str:
    """`detector` `Contract.function`, as a row of the page begins."""
    first = finding["elements"][0]
    parent = first["type_specific_fields"].get("parent", {}).get("name", "")
    return f"`{finding['check']}` `{parent}.{first['name']}`"


def main() -> int:
    try:
        set_up()
        found = {place(finding): finding["description"] for finding in analysed()}
    except StepFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    answered = set(re.findall(r"(?m)^\| (`[^`]+` `[^`]+`) \|", ANSWERS.read_text(encoding="utf-8")))
    for where in sorted(found.keys() - answered):
        print(f"without an answer: {where}\n{found[where]}")
    for where in sorted(answered - found.keys()):
        print(f"answered, but not found any more: {where}")
    print(f"{len(found)} findings, {len(answered)} answers in {ANSWERS.relative_to(ROOT)}")
    return 0 if found.keys() == answered else 1


if __name__ == "__main__":
    sys.exit(main())
