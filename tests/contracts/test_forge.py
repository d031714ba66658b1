"""forge's tests of the contracts, their gas, and that forge and build.mjs make the same bytes.

forge runs once for the whole file; contracts/test holds what it claims.
"""

import json
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = ROOT / "contracts"
SHIPPED = ("Octo", "OctoA", "PaymentChannels", "StakeRegistry")
GOALS = {
    "channel: open": 70_000,
    "channel: redeem": 56_000,
    "channel: redeem, each of a batch of 100": 17_500,
    "stake: slash for equivocation": 125_000,
    "stake: slash for equivocation, reporter without OCTO-A": 125_000,
}
INVARIANTS = {
    "invariant_solvency()", "invariant_neverMoreThanSigned()", "invariant_payerGetsTheRest()",
    "invariant_stakeIsConserved()", "invariant_whatIsLostIsBurnedOrTheReporters()",
    "invariant_eachSignerAnswersForOneStaker()", "invariant_activeMeansEnoughAtStake()",
}  # fmt: skip
REGRESSION = 1.01

Tests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tests(forge_tool: ModuleType) -> Tests:
    found: Tests = forge_tool.test_results()
    return found


@pytest.mark.timeout(900)
def test_every_forge_test_passes(tests: Tests) -> None:
    assert {name: test["reason"] for name, test in tests.items() if test["status"] != "Success"} == {}
    assert len(tests) > 90


def test_the_attack_on_the_sketch_is_among_them(tests: Tests) -> None:
    assert tests["test_armThenFundFails()"]["status"] == "Success"


def test_invariants_were_tried_many_times_and_no_call_reverted(tests: Tests) -> None:
    assert {name for name in tests if name.startswith("invariant_")} == INVARIANTS
    for name in INVARIANTS:
        assert tests[name]["kind"]["Invariant"]["calls"] >= 4_000
        assert tests[name]["kind"]["Invariant"]["reverts"] == 0


@pytest.fixture(scope="module")
def gas(forge_tool: ModuleType) -> dict[str, int]:
    found: dict[str, int] = forge_tool.measured()
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("call", GOALS)
def test_gas_is_within_its_goal(gas: dict[str, int], call: str) -> None:
    assert gas[call] <= GOALS[call]


def test_gas_is_no_more_than_a_hundredth_above_the_committed(gas: dict[str, int], forge_tool: ModuleType) -> None:
    committed = json.loads(forge_tool.COMMITTED.read_text())
    assert gas_faults(committed, gas) == []


def gas_faults(committed: dict[str, int], now: dict[str, int]) -> list[str]:
    missing = [f"{call}: not in both" for call in sorted(committed.keys() ^ now.keys())]
    return missing + [
        f"{call}: {now[call]} gas, committed {committed[call]}"
        for call in sorted(committed.keys() & now.keys())
        if now[call] > REGRESSION * committed[call]
    ]


@pytest.mark.parametrize(
    ("now", "faults"), [({"a": 10_101}, 1), ({"a": 10_100}, 0), ({"a": 9_000}, 0), ({}, 1), ({"a": 1, "b": 1}, 1)]
)
def test_gas_that_rose_or_was_not_measured_is_a_fault(now: dict[str, int], faults: int) -> None:
    assert len(gas_faults({"a": 10_000}, now)) == faults


@pytest.mark.timeout(900)
def test_forge_makes_the_bytes_of_the_artefacts(forge_tool: ModuleType) -> None:
    built = forge_tool.forge("build", "--skip", "test", profile="shipped")
    assert built.returncode == 0, built.stdout + built.stderr
    for name in SHIPPED:
        ours = json.loads((CONTRACTS / f"artifacts/{name}.json").read_text())
        forges = json.loads((CONTRACTS / f"build/shipped/{name}.sol/{name}.json").read_text())
        assert forges["bytecode"]["object"] == ours["bytecode"]
        assert forges["deployedBytecode"]["object"] == ours["deployedBytecode"]
        assert sorted(map(str, map(parts, forges["abi"]))) == sorted(map(str, map(parts, ours["abi"])))


def test_sources_are_formatted(forge_tool: ModuleType) -> None:
    assert forge_tool.forge("fmt", "--check").stdout == ""


def parts(entry: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Kind, name, types: forge lists an ABI in another order."""
    return entry["type"], entry.get("name", ""), [argument["type"] for argument in entry.get("inputs", [])]


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_long_campaigns_with_a_fresh_seed_pass(forge_tool: ModuleType) -> None:
    long = forge_tool.test_results("--fuzz-seed", "0x" + secrets.token_hex(32), profile="heavy")
    assert {name: test["reason"] for name, test in long.items() if test["status"] != "Success"} == {}
