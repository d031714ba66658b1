"""The committed artefacts are what the sources give, and the lock file that they were built with is a lock."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = ROOT / "contracts"
SHIPPED = ("Octo", "OctoA", "PaymentChannels", "StakeRegistry")
EIP_170_LIMIT_BYTES = 24_576


def artifact(name: str, folder: Path = CONTRACTS / "artifacts") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs build.mjs with the `node` of `make chain-tools`."""
    node = ROOT / ".cache/node/bin/node"
    assert node.exists(), "run `make chain-tools` first"
    return subprocess.run(
        [str(node), str(CONTRACTS / "build.mjs"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )


def test_each_contract_has_its_artefact_and_nothing_else_has_one() -> None:
    assert tuple(sorted(path.stem for path in (CONTRACTS / "src").glob("*.sol"))) == SHIPPED
    assert tuple(sorted(path.stem for path in (CONTRACTS / "artifacts").glob("*.json"))) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_artefact_was_built_from_these_sources(name: str) -> None:
    """Without a compiler: whoever changes a source and forgets the artefact sees it at once."""
    sources = artifact(name)["sources"]
    ours = {source: digest for source, digest in sources.items() if not source.startswith("@")}
    assert f"src/{name}.sol" in ours
    assert {source: hashlib.sha256((CONTRACTS / source).read_bytes()).hexdigest() for source in ours} == ours
    assert {source.split("/")[0] for source in sources} <= {"src", "@openzeppelin"}


@pytest.mark.parametrize("name", SHIPPED)
def test_artefact_names_its_compiler_and_settings(name: str) -> None:
    found = artifact(name)
    assert found["compiler"].startswith("0.8.37+")
    assert found["settings"] == json.loads((CONTRACTS / "settings.json").read_text())
    assert found["settings"]["metadata"]["appendCBOR"] is False
    assert found["settings"]["evmVersion"] == "cancun"  # py-evm and many chains know no newer fork


@pytest.mark.parametrize("name", SHIPPED)
def test_contract_fits_every_chain(name: str) -> None:
    assert len(bytes.fromhex(artifact(name)["deployedBytecode"][2:])) <= EIP_170_LIMIT_BYTES


@pytest.mark.timeout(900)
def test_building_again_gives_the_same_bytes() -> None:
    built = build("--check")
    assert built.returncode == 0, built.stderr


@pytest.mark.timeout(900)
def test_artefact_that_differs_by_a_bit_or_is_too_many_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    shutil.copytree(CONTRACTS / "artifacts", folder)
    text = (folder / "OctoA.json").read_text()
    at = text.index('"bytecode": "0x') + 40
    (folder / "OctoA.json").write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    (folder / "Stranger.json").write_text("{}")
    built = build("--check", "--out", folder)
    assert built.returncode == 1
    assert "OctoA.json, Stranger.json" in built.stderr


def test_lock_pins_and_hashes_every_package_and_has_no_address() -> None:
    lock = (CONTRACTS / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "://" not in re.sub(r'"(funding|url)": .*', "", lock)
    packages = json.loads(lock)["packages"]
    assert len(packages) > 5
    for name, package in packages.items():
        if name:
            assert package["integrity"].startswith("sha512-"), name
    wanted = json.loads((CONTRACTS / "package.json").read_text())
    for name, version in (wanted["dependencies"] | wanted["optionalDependencies"]).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
        assert packages[f"node_modules/{name}"]["version"] == version
