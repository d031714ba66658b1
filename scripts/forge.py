"""Runs forge on the contracts. As a program: measures what each call costs and writes contracts/snapshots/gas.json.

Part of `make artifacts`; tests/contracts/test_forge.py compares a fresh measurement with the committed one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
COMMITTED = CONTRACTS / "snapshots" / "gas.json"
_FROM_NPM = CONTRACTS / "node_modules/@foundry-rs/forge-linux-amd64/bin/forge"
# npm has it for Linux on x86-64 in our lock; elsewhere Foundry 1.7 on PATH does.
FORGE = _FROM_NPM if _FROM_NPM.exists() else Path(shutil.which("forge") or _FROM_NPM)


def forge(*arguments: str, folder: Path = CONTRACTS, profile: str = "default") -> subprocess.CompletedProcess[str]:
    """Runs forge in `folder` with the `node` of `make chain-tools`."""
    if not FORGE.exists():
        raise RuntimeError("no forge: run `make chain-tools`, or install Foundry 1.7 where npm has none")
    path = os.pathsep.join([str(ROOT / ".cache/node/bin"), os.environ.get("PATH", os.defpath)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FOUNDRY_", "DAPP_"))}
    return subprocess.run(
        [str(FORGE), *arguments],
        cwd=folder,
        env={**kept, "PATH": path, "FOUNDRY_PROFILE": profile, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_results(*arguments: str, folder: Path = CONTRACTS, profile: str = "default") -> dict[str, dict[str, Any]]:
    """Runs the tests; each one's result by its signature. Raises RuntimeError if forge did not get to them."""
    ran = forge("test", "--json", *arguments, folder=folder, profile=profile)
    lines = [line for line in ran.stdout.splitlines() if line.startswith('{"test/')]
    if not lines:
        raise RuntimeError(f"forge did not run:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    return {name: test for suite in json.loads(lines[-1]).values() for name, test in suite["test_results"].items()}


def measured(folder: Path = CONTRACTS) -> dict[str, int]:
    """What each call costs, measured now by the tests in Gas.t.sol. Raises RuntimeError if they fail.

    A run of its own: with --json forge writes no snapshots, and what an older run left behind proves nothing.
    """
    snapshots = folder / "build/snapshots"
    shutil.rmtree(snapshots, ignore_errors=True)
    ran = forge("test", "--match-contract", "GasTest", folder=folder)
    if ran.returncode != 0:
        raise RuntimeError(f"forge could not measure:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    calls = json.loads((snapshots / "gas.json").read_text())
    batches = json.loads((snapshots / "batches.json").read_text())
    figures = {name: int(gas) for name, gas in calls.items()}
    figures |= {f"channel: redeem, each of a batch of {n}": round(int(gas) / int(n)) for n, gas in batches.items()}
    return dict(sorted(figures.items()))


def main() -> int:
    figures = measured()
    COMMITTED.parent.mkdir(exist_ok=True)
    COMMITTED.write_text(json.dumps(figures, indent=1) + "\n")
    print(COMMITTED.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
