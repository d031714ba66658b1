"""The contracts' tests are tested: one change at a time to a copy of the sources (mutants.toml) must turn them red."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text())["mutant"]
INVARIANTS = {
    line.split("function ")[1].split(" ")[0]
    for path in (ROOT / "contracts/test").glob("*.invariants.t.sol")
    for line in path.read_text().splitlines()
    if "function invariant_" in line
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["what"] for mutant in MUTANTS])
def test_mutant_changes_one_place_that_exists(mutant: dict[str, str]) -> None:
    assert (ROOT / "contracts" / mutant["source"]).read_text().count(mutant["old"]) == 1


def test_each_invariant_has_a_mutant() -> None:
    assert len(INVARIANTS) == 7
    assert {mutant["red"] for mutant in MUTANTS} >= INVARIANTS


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout of the contracts that may be spoiled; compiled tests are kept from mutant to mutant."""
    folder = tmp_path_factory.mktemp("mutants") / "contracts"
    shutil.copytree(ROOT / "contracts", folder, ignore=shutil.ignore_patterns("node_modules", "build", "*.py", "__py*"))
    (folder / "node_modules").symlink_to(ROOT / "contracts/node_modules")
    settings = folder / "foundry.toml"  # a failing sequence need not be made short: that takes longer than to find it
    settings.write_text(settings.read_text().replace("show_metrics", "shrink_run_limit = 0\nshow_metrics"))
    shutil.copytree(ROOT / "tests/vectors", folder.parent / "tests/vectors")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["what"] for mutant in MUTANTS])
def test_mutant_is_found(mutant: dict[str, str], copy: Path, forge_tool: ModuleType) -> None:
    source = copy / mutant["source"]
    sound = source.read_text()
    source.write_text(sound.replace(mutant["old"], mutant.get("new", "")))
    try:
        rebuild(copy)
        found = forge_tool.test_results("--match-test", f"^{re.escape(mutant['red'])}$", folder=copy)
    finally:
        source.write_text(sound)
    assert found[mutant["red"]]["status"] == "Failure", "forge did not see it"


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_copy_without_a_mutation_is_green(copy: Path, forge_tool: ModuleType) -> None:
    rebuild(copy)
    found = forge_tool.test_results("--no-match-contract", "GasTest", folder=copy)
    assert {name for name, test in found.items() if test["status"] != "Success"} == set()


def rebuild(folder: Path) -> None:
    """Artefacts of the copy, which its tests deploy; failures that forge remembers from the mutant before go."""
    shutil.rmtree(folder / "build/failures", ignore_errors=True)
    path = os.pathsep.join([str(ROOT / ".cache/node/bin"), os.environ.get("PATH", os.defpath)])
    subprocess.run(
        ["node", str(folder / "build.mjs"), "--allow-warnings"], check=True, capture_output=True, env={"PATH": path}
    )
