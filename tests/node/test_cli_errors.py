"""Errors name the cause and the next step, end with the documented code, and never show a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from market.errors import NodeMisconfigured, NoProvider, OctoError
from node.cli import main
from node.cli.exits import FAILED, NOBODY, NOT_RUNNING, USAGE, NodeAnswered, NodeNotRunning, code_of

ROOT = Path(__file__).resolve().parents[2]
ASKING = ["status", "offers", "peers", "wallet", "receipts list", "chat hello"]


@pytest.mark.parametrize("command", ASKING)
def test_without_a_running_node_the_code_is_3_and_the_next_step_is_named(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*command.split(), "--data-dir", str(tmp_path)])
    assert done.exit_code == NOT_RUNNING
    assert f"no node is running in {tmp_path}" in done.stderr
    assert "octo-node start" in done.stderr
    assert "Traceback" not in done.output


def test_with_json_the_error_is_json_on_stdout(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", "--json", "--data-dir", str(tmp_path)])
    assert done.exit_code == NOT_RUNNING
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["next_step"] != "") == ("node_not_running", True)


def test_a_bad_setting_is_named_with_its_origin(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["start", "--data-dir", str(tmp_path), "--price-in", "a lot"])
    assert done.exit_code == FAILED
    assert "prices.input" in done.stderr
    assert "command line" in done.stderr


@pytest.mark.parametrize("arguments", [["fly"], ["status", "--fast"], ["devnet", "--providers", "0"],
                                       ["devnet", "--providers", "2", "--prices", "1:2"],
                                       ["devnet", "--providers", "1", "--prices", "one:two"]])  # fmt: skip
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NodeNotRunning("x"), NOT_RUNNING),
        (NoProvider("x", reasons={}), NOBODY),
        (NodeAnswered("x", status=503, remote_code="no_provider"), NOBODY),
        (NodeAnswered("x", status=404, remote_code="model_not_found"), NOBODY),
        (NodeAnswered("x", status=500), FAILED),
        (NodeMisconfigured("x"), FAILED),
        (OctoError("x"), FAILED),
    ],
)
def test_each_error_has_its_exit_code(error: OctoError, code: int) -> None:
    assert code_of(error) == code


def test_help_loads_nothing_heavy() -> None:
    """What keeps `octo-node --help` at a tenth of a second."""
    script = """
import sys
from node.cli import main
try:
    main(["--help"], prog_name="octo-node")
finally:
    heavy = {"pydantic", "rich", "aiohttp", "web3", "libp2p", "numpy", "llama_cpp", "uvloop"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes:" in done.stdout


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", "config", "show", "--all", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(setting["key"] == "api.port" for setting in json.loads(done.stdout)["settings"])
