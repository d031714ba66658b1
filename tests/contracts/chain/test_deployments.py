"""The deployments file, and that nothing is believed that the chain does not show."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NETWORK, QUICK

from contracts.channels import Channels
from contracts.deploy import deploy
from contracts.deployments import (
    Deployed,
    Deployment,
    check_deployment,
    deployment_from_json,
    deployment_to_json,
    read_deployment,
)
from contracts.faults import WrongChain
from contracts.keeping import MemoryKeeper
from contracts.rail import RailTerms
from contracts.rails import open_chain_rail
from contracts.sender import open_sender
from contracts.staking import Staking
from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer
from market.testing import FixedClock, MemoryBooks

HASH = "0x" + "ab" * 32
ONE = Deployed(address="0x" + "Cd" * 20, block=3, code=HASH)
PLAIN = Deployment(
    network="octo", chain_id=31337, genesis=HASH,
    contracts=dict.fromkeys(("Octo", "OctoA", "StakeRegistry", "PaymentChannels"), ONE),
)  # fmt: skip


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(deployment_to_json(PLAIN))
    assert read_deployment(path) == PLAIN
    assert PLAIN.rail == "eip155:31337:0x" + "cd" * 20


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "7", "{}", "[" * 100_000, "{" * 10, '{"network": 1}', "\x00", " " * 100_000,
     deployment_to_json(PLAIN).replace("PaymentChannels", "Other"), deployment_to_json(PLAIN).replace("Cd", "xy"),
     deployment_to_json(PLAIN).replace("31337", "0"), deployment_to_json(PLAIN).replace("31337", '"31337x"'),
     deployment_to_json(PLAIN)[:-3] + ', "more": 1}'],
)  # fmt: skip
def test_what_is_no_deployments_file_is_refused_with_a_next_step(text):
    with pytest.raises(NodeMisconfigured, match="contracts deploy"):
        deployment_from_json(text)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)


@given(ANY_JSON)
def test_no_json_raises_anything_else(plain):
    with pytest.raises(NodeMisconfigured):
        deployment_from_json(json.dumps(plain))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NodeMisconfigured, match=r"absent\.json"):
        read_deployment(tmp_path / "absent.json")


async def test_what_was_deployed_is_found(world):
    await check_deployment(world.chain, world.deployment)
    assert await Channels(world.chain, world.deployment).challenge_s() == 3600
    assert await Channels(world.chain, world.deployment).contract.read("token") == world.octo.address


async def test_another_chain_another_code_and_no_code_are_told_apart(world):
    deployment = world.deployment
    octo = deployment.contracts["Octo"]
    for changed, why in (
        (replace(deployment, genesis=HASH), r"for chain \d+ .*serves chain"),
        (replace(deployment, contracts=deployment.contracts | {"Octo": replace(octo, code=HASH)}), "other code is"),
        (replace(deployment, contracts=deployment.contracts | {"Octo": replace(octo, address="0x" + "99" * 20)}),
         "nothing is"),
    ):  # fmt: skip
        with pytest.raises(WrongChain, match=why):
            await check_deployment(world.chain, changed)


async def test_a_rail_does_not_open_on_other_contracts_or_for_another_network(world):
    def rail(**changes):
        options = {
            "deployment": world.deployment, "network": NETWORK, "wallet": Secp256k1Signer(b"\1" * 32),
            "books": MemoryBooks(), "clock": FixedClock(), "keepers": lambda _: MemoryKeeper(),
            "terms": RailTerms(deposit_cap=1, away_limit=1),
        }  # fmt: skip
        return open_chain_rail(world.url, **(options | changes))

    octo = world.deployment.contracts["Octo"]
    other = replace(world.deployment, contracts=world.deployment.contracts | {"Octo": replace(octo, code=HASH)})
    for changes, why in (
        ({"network": "other"}, "for network"),
        ({"deployment": other}, "other code"),
        ({"deployment": replace(world.deployment, chain_id=5)}, "serves chain"),
    ):
        with pytest.raises(WrongChain, match=why):
            async with rail(**changes):
                pass


async def test_two_deployments_on_one_chain_are_two_rails(anvil):
    async with open_sender(anvil.chain, await anvil.wallet(), QUICK) as sender:
        other = await deploy(anvil.chain, sender, network=NETWORK)
    assert other.rail != anvil.deployment.rail
    await check_deployment(anvil.chain, other)
    assert await Staking(anvil.chain, other).contract.read("token") == other.address("OctoA")
