"""`octo-node doctor`: what it looks at, and that each thing that is missing comes with what brings it."""

import json
import socket
from pathlib import Path

from click.testing import CliRunner, Result

from node.cli.doctor import doctor
from node.cli.exits import FAILED


def examined(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(doctor, ["--data-dir", str(folder), *options], env={"OCTO_API__PORT": "0"})


def test_every_engine_is_looked_for_and_what_is_missing_comes_with_its_cure(tmp_path: Path) -> None:
    found = examined(tmp_path / "new", "--json")
    told = {finding["what"]: finding for finding in json.loads(found.output)["findings"]}
    assert found.exit_code == 0
    assert {"engine", "ONNX", "hearing", "images", "speaking", "vLLM", "hardware"} <= set(told)
    assert (told["engine"]["verdict"], told["ONNX"]["verdict"]) == ("ok", "ok")
    for finding in told.values():
        if finding["verdict"] == "note":
            assert "install" in finding["detail"] or "docs/" in finding["detail"], finding


def test_settings_that_do_not_hold_end_with_a_failure(tmp_path: Path) -> None:
    found = CliRunner().invoke(doctor, ["--data-dir", str(tmp_path)], env={"OCTO_ENGINE__WORKERS": "many"})
    assert found.exit_code == FAILED
    assert "OCTO_ENGINE__WORKERS" in found.output or "engine.workers" in found.output


def test_a_port_in_use_is_told_before_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = CliRunner().invoke(
            doctor, ["--data-dir", str(tmp_path / "new"), "--json"], env={"OCTO_API__PORT": str(port)}
        )
    (told,) = (f for f in json.loads(found.output)["findings"] if f["what"] == "API port")
    assert (found.exit_code, told["verdict"]) == (FAILED, "bad")
    assert f"127.0.0.1:{port} cannot be used" in told["detail"]
