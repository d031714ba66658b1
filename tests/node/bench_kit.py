"""What the tests of benches and of quantising share: the default model's files, a store that leaves nothing behind,
and the command as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.models.store import Store
from market.signing import Secp256k1Signer

ROOT = Path(__file__).resolve().parents[2]
Q4_0 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
Q4_1 = Q4_0.with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
OWNER = Secp256k1Signer(bytes([1] * 32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "models")
    yield opened
    opened.close()
    shutil.rmtree(tmp_path, ignore_errors=True)  # some 200 MB, and pytest keeps the folders of three runs


def octo(folder: Path, *words: str, timeout_s: float, **settings: str) -> str:
    """What `octo-node` prints; `settings` as `OCTO_…` of the environment, without that beginning."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("OCTO_")}
    own |= {"OCTO_DATA_DIR": str(folder), "OCTO_MESH__LISTEN": "/ip4/127.0.0.1/tcp/0"}
    own |= {f"OCTO_{name}": text for name, text in settings.items()}
    command = [sys.executable, "-m", "node.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
