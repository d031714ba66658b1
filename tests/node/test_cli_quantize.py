"""`octo-node models quantize` as a user runs it while no node runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.model]

ROOT = Path(__file__).resolve().parents[2]
WHEEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def octo(folder, *words, as_json=True):
    own = {name: text for name, text in os.environ.items() if not name.startswith("OCTO_")}
    environment = {**own, "OCTO_DATA_DIR": str(folder), "OCTO_MESH__LISTEN": "/ip4/127.0.0.1/tcp/0"}
    command = [sys.executable, "-m", "node.cli", *words, *(["--json"] if as_json else [])]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_is_quantised_shown_and_refused(tmp_path):
    folder = tmp_path / "a"
    added = json.loads(octo(folder, "models", "add", str(WHEEL), "--name", "Otter").stdout)
    refused = octo(folder, "models", "quantize", "otter", "--to", "Q8_0")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], "--again" in error["next_step"]) == ("invalid_request", True)
    done = octo(folder, "models", "quantize", "otter", "--to", "q8_0", "--again", as_json=False)
    assert done.returncode == 0, done.stderr
    assert "Otter-Q8_0 1.0.0 is here: Q8_0, 1" in done.stdout
    assert "Warning: the source is Q4_1 already" in done.stderr
    assert added["model"] not in done.stdout
    shutil.rmtree(folder)  # pytest keeps the folders of three runs
