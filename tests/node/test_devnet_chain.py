"""The chain of a devnet: what its nodes are told, what is kept, and what is said when it does not start."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from contracts.anvil import find_anvil
from contracts.chain import open_chain
from contracts.deployments import Deployed, Deployment, check_deployment, read_deployment
from contracts.devchain import open_devchain
from contracts.faucet import ask_faucet
from contracts.faults import ChainRefused
from contracts.tokens import Token
from market.errors import NodeMisconfigured
from market.money import OCTO
from node.config import load_settings
from node.devnet_chain import DevnetChain, kept_network, open_devnet_chain

NOWHERE = Deployment(
    network="n", chain_id=7, genesis="0x" + "00" * 32,
    contracts={"Octo": Deployed(address="0x" + "11" * 20, block=1, code="0x" + "22" * 32)},
)  # fmt: skip


def quiet(_group: int) -> None:
    """Nobody cleans up: nothing is killed here."""


def test_a_node_reads_what_it_is_told(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" folder' / "deployment.json"
    chain = DevnetChain(kind="anvil", url="http://127.0.0.1:5", deployment=NOWHERE, deployment_file=str(odd))
    file = tmp_path / "devnet.toml"
    file.write_text(chain.config())
    told = load_settings(config=file, overrides={"data_dir": tmp_path / "node"}).chain
    assert told.url is not None
    assert told.url.get_secret_value() == "http://127.0.0.1:5"
    assert (told.deployment, told.faucet, told.stake) == (odd, True, True)
    assert told.settle_after_s <= 10
    assert told.settle_dust == 0
    assert chain.facts() == {"rpc": "http://127.0.0.1:5", "chain_id": 7, "contracts": {"Octo": "0x" + "11" * 20}}


async def test_without_a_chain_there_is_none_and_no_folder(tmp_path: Path) -> None:
    async with open_devnet_chain("none", tmp_path, network="n", note=quiet) as chain:
        assert chain is None
    assert list(tmp_path.iterdir()) == []


async def test_the_embedded_chain_is_kept_with_its_network_and_noted_for_cleaning(tmp_path: Path) -> None:
    assert kept_network("embedded", tmp_path) is None
    noted: list[int] = []
    async with open_devnet_chain("embedded", tmp_path, network="octo-kept", note=noted.append) as chain:
        assert chain is not None
        async with open_chain(chain.url) as client:
            await check_deployment(client, chain.deployment)
    assert kept_network("embedded", tmp_path) == "octo-kept"
    assert kept_network("anvil", tmp_path) is kept_network("none", tmp_path) is None
    assert len(noted) == 1


async def test_a_chain_that_another_devnet_runs_is_told_with_a_way_out(tmp_path: Path) -> None:
    async with open_devchain(tmp_path / "chain", network="n"):
        with pytest.raises(NodeMisconfigured, match="another process runs the chain") as raised:
            async with open_devnet_chain("embedded", tmp_path, network="n", note=quiet):
                pass
    assert "--chain none" in raised.value.next_step


@pytest.mark.skipif(find_anvil() is None, reason="contracts/node_modules has no anvil (make chain-tools)")
async def test_on_anvil_our_contracts_lie_and_a_faucet_gives(tmp_path: Path) -> None:
    wallet = secrets.token_bytes(20)
    async with open_devnet_chain("anvil", tmp_path, network="octo-anvil", note=quiet) as made:
        assert made is not None
        assert read_deployment(Path(made.deployment_file)) == made.deployment
        async with open_chain(made.url) as chain:
            await check_deployment(chain, made.deployment)
            for draws in (1, 2, 3):
                await ask_faucet(made.url, wallet)
                assert await Token(chain, made.deployment, "Octo").balance(wallet) == draws * 1_000 * OCTO
            assert await Token(chain, made.deployment, "OctoA").balance(wallet) == 30_000 * OCTO
            assert await chain.balance(wallet) == 3 * 10**18
            with pytest.raises(ChainRefused, match="all that it gives one address"):
                await ask_faucet(made.url, wallet)
