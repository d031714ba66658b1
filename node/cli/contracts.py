"""`octo-node contracts`: put our contracts on a chain, and see whether they are there. Wants no running node."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market.errors import NodeMisconfigured
from node.cli.options import json_option

if TYPE_CHECKING:
    from contracts.deployments import Deployment
    from market.signing import Secp256k1Signer

_FILE = click.Path(path_type=Path, dir_okay=False)
_MODE = 0o644
_OUR_CONTRACTS = 4


@click.group("contracts", short_help="Our contracts on a chain.")
def contracts() -> None:
    """OCTO, OCTO-A, the stake registry and the payment channels, on any EVM chain."""


@contracts.command("deploy")
@click.option("--url", help="JSON-RPC endpoint of the chain (default: OCTO_CHAIN__URL, for one that holds a key).")
@click.option("--network", required=True, metavar="NAME", help="The network whose nodes will use them.")
@click.option("--key-file", type=_FILE, help="File with the deployer's key: 64 hexadecimal digits, mode 0600.")
@click.option("--keystore", type=_FILE, help="The deployer's key as an Ethereum keystore v3, instead.")
@click.option("--password-file", type=_FILE, help="Its password, mode 0600 (default: a prompt).")
@click.option("--challenge-s", type=click.IntRange(1, 30 * 24 * 3600), default=24 * 3600, show_default=True,
              help="Seconds that a payee has to answer a request to close.")  # fmt: skip
@click.option("-o", "--output", type=_FILE, required=True, help="The deployment file to write, for every node.")
@json_option
def deploy_contracts(
    *,
    url: str | None,
    network: str,
    key_file: Path | None,
    keystore: Path | None,
    password_file: Path | None,
    challenge_s: int,
    output: Path,
    as_json: bool,
) -> None:
    """Deploy all four contracts, in one transaction each, and write down where they are.

    No one can change, pause or own them afterwards. The deployer gets all OCTO and OCTO-A.
    """
    if (key_file is None) == (keystore is None):
        raise click.UsageError("Name the deployer's key: either --key-file or --keystore.")
    if password_file is not None and keystore is None:
        raise click.UsageError("--password-file opens a --keystore.")
    from contracts.deployments import deployment_to_json
    from market.signing import address_text
    from node.folder import write_whole

    url = _endpoint(url, network)
    _check_output(output)
    signer = _signer(key_file, keystore, password_file)
    with _quiet_logs():
        deployment, spent = asyncio.run(_deploy(url, network, signer, challenge_s, _tell))
    write_whole(output, deployment_to_json(deployment).encode(), mode=_MODE)
    more = {"deployer": address_text(signer.address), "gas": spent, "file": str(output)}
    _show(deployment, more, as_json=as_json)


@contracts.command("show")
@click.option("--deployment", "file", type=_FILE, required=True, help="The file that `contracts deploy` wrote.")
@click.option("--url", help="JSON-RPC endpoint: check that its chain is the file's, and holds the file's contracts.")
@json_option
def show_contracts(file: Path, url: str | None, as_json: bool) -> None:
    """Where the contracts are; with --url, whether the chain there has them. Ends with 1 if not."""
    from contracts.deployments import read_deployment

    deployment = read_deployment(file)
    more: dict[str, Any] = {"file": str(file), "checked_at": None}
    if url is not None:
        with _quiet_logs():
            more["checked_at"] = asyncio.run(_check(url, deployment))
    _show(deployment, more, as_json=as_json)


async def _deploy(
    url: str, network: str, signer: Secp256k1Signer, challenge_s: int, tell: Callable[[str], None]
) -> tuple[Deployment, int]:
    """The deployment, and the gas that it took."""
    from contracts.chain import TxReceipt, open_chain
    from contracts.contract import Call
    from contracts.deploy import deploy
    from contracts.sender import Sender, SendTerms

    class Telling(Sender):
        """Says what is under way: on a slow chain each transaction takes most of a minute."""

        done, spent = 0, 0

        async def send(self, call: Call, *, gas: int | None = None) -> TxReceipt:
            tell(f"{self.done + 1}/{_OUR_CONTRACTS} {call.what} …")
            receipt = await super().send(call, gas=gas)
            self.done, self.spent = self.done + 1, self.spent + receipt.gas_used
            tell(f"    in block {receipt.block}, {receipt.gas_used:,} gas")
            return receipt

    async with open_chain(url) as chain:
        tell(f"Chain {chain.chain_id} at {chain.host}")
        sender = Telling(chain, signer, SendTerms())
        try:
            return await deploy(chain, sender, network=network, challenge_s=challenge_s), sender.spent
        finally:
            await sender.aclose()


async def _check(url: str, deployment: Deployment) -> str:
    """The host that showed the file's first block and codes. Raises WrongChain, ChainAway."""
    from contracts.chain import open_chain
    from contracts.deployments import check_deployment

    async with open_chain(url) as chain:
        await check_deployment(chain, deployment)
        return chain.host


def _show(deployment: Deployment, more: dict[str, Any], *, as_json: bool) -> None:
    import json

    from contracts.deployments import deployment_to_json
    from node.cli.show import facts, print_json, screen, table

    if as_json:
        print_json({**json.loads(deployment_to_json(deployment)), **more})
        return
    out = screen()
    rows: list[tuple[str, object]] = [
        ("network", deployment.network),
        ("chain", f"{deployment.chain_id}, first block {deployment.genesis}"),
        ("rail", deployment.rail),
        ("file", more["file"]),
    ]
    if "deployer" in more:
        rows.append(("deployer", f"{more['deployer']}, {more['gas']:,} gas"))
    if more.get("checked_at"):
        rows.append(("checked", f"first block and all codes are as {more['checked_at']} has them"))
    out.print(facts(rows))
    out.print()
    lines = [(name, one.address, one.block) for name, one in deployment.contracts.items()]
    out.print(table("CONTRACT", "ADDRESS", "BLOCK", rows=lines, right=("BLOCK",)))


def _signer(key_file: Path | None, keystore: Path | None, password_file: Path | None) -> Secp256k1Signer:
    from node.cli.keyfiles import signer_in_key_file, signer_in_keystore

    if key_file is not None:
        return signer_in_key_file(key_file)
    assert keystore is not None

    def ask() -> str:
        answer: str = click.prompt("Password of the keystore", hide_input=True, err=True)
        return answer

    return signer_in_keystore(keystore, password_file, ask if sys.stdin.isatty() else None)


def _endpoint(url: str | None, network: str) -> str:
    """The one given, or the one set; and a network's name that nodes can be started with."""
    from node.config import load_settings

    set_url = load_settings(overrides={"network": network}).chain.url
    if url is None and set_url is None:
        raise click.UsageError("Name the chain's endpoint: --url.")
    return url or (set_url.get_secret_value() if set_url is not None else "")


def _check_output(output: Path) -> None:
    """Before anything is spent: a file that is there may be all that says where other contracts lie."""
    if output.exists():
        raise NodeMisconfigured(f"{output} is there already.", next_step="Name another file, or move it away.")
    if not output.absolute().parent.is_dir():
        raise NodeMisconfigured(f"{output.absolute().parent} is no folder.", next_step="Make it first.")


def _tell(line: str) -> None:
    click.echo(click.style(line, dim=True), err=True)


def _quiet_logs() -> Any:
    from node.logs import open_logs

    return open_logs(level="warning")
