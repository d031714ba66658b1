"""`make ipfs-tools`: what tests/flow/test_ipfs_interop.py needs: Helia and js-ipfs from npm, ipfshttpclient from PyPI.

600 MB for `make test-all` alone, into tests/flow/ipfs/node_modules and .cache/ipfs. Versions and hashes are those of
the lock files, and no package's install script runs. Helia wants Node.js 22: PATH's if it is new enough, else our own.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from chain_tools import LOGS, ROOT, in_turn, node_of_path, node_of_wheel, npm_ci
from pip_settings import pip_environment
from progress import run_step

FOLDER = ROOT / "tests" / "flow" / "ipfs"
STAMP = FOLDER / "node_modules" / "octo-set-up.stamp"
CACHE = ROOT / ".cache" / "ipfs"
PYTHON = CACHE / "python"
"""A folder for sys.path."""
INPUTS = ("tests/flow/ipfs/package.json", "tests/flow/ipfs/package-lock.json", "requirements/ipfs.txt")
OLDEST = 22


def wanted_stamp() -> str:
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS))
    return f"{digest.hexdigest()} in {ROOT}\n"


def is_ready() -> bool:
    return STAMP.exists() and STAMP.read_text() == wanted_stamp() and PYTHON.exists() and (CACHE / "node").exists()


def install() -> None:
    node = node_of_path(OLDEST) or node_of_wheel()
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "node").unlink(missing_ok=True)
    (CACHE / "node").symlink_to(node)
    shutil.rmtree(PYTHON, ignore_errors=True)
    run_step(
        "Fetching ipfshttpclient",
        [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:",
         "--target", PYTHON, "-r", ROOT / "requirements/ipfs.txt"],
        log=LOGS / "pip-ipfs.log",
        env=pip_environment(Path(sys.executable)),
    )  # fmt: skip
    npm_ci(
        "Installing two IPFS implementations, Helia and js-ipfs (600 MB)",
        node,
        FOLDER,
        "--legacy-peer-deps",  # peers are for phones and browsers: React Native, 550 packages
        log=LOGS / "npm-ci-ipfs.log",
        usually="1 to 3 minutes",
    )
    STAMP.write_text(wanted_stamp())


if __name__ == "__main__":
    sys.exit(in_turn(LOGS / "ipfs-tools.lock", is_ready, install))
