"""`octo-node contracts`, and `start` on what it deployed: programs of their own against a real chain."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contracts.deployments import read_deployment
from contracts.devchain import Devchain, open_devchain
from contracts.faucet import ask_faucet
from contracts.wallet import seal_keystore
from market.signing import Secp256k1Signer
from node.cli import main
from node.cli.exits import FAILED, OK, USAGE
from node.cli.remote import find_node

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"Octo", "OctoA", "StakeRegistry", "PaymentChannels"}


@pytest.fixture(scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devchain]:
    folder = tmp_path_factory.mktemp("chain")
    async with open_devchain(folder, network="test", controls=True) as running:
        yield running


@pytest.fixture
def secret() -> bytes:
    return secrets.token_bytes(32)


@pytest.fixture
def key_file(tmp_path: Path, secret: bytes) -> Path:
    return kept(tmp_path / "deployer.key", secret.hex() + "\n")


def kept(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


async def run(*arguments: str, code: int = OK) -> Result:
    """`octo-node contracts`, in a thread: it has an event loop of its own."""
    done = await asyncio.to_thread(CliRunner().invoke, main, ["contracts", *arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def deploying(*arguments: str) -> list[str]:
    return ["contracts", "deploy", "--url", "http://127.0.0.1:9", "--network", "test", *arguments]


async def test_contracts_are_deployed_and_found_again(chain: Devchain, key_file: Path, secret: bytes, tmp_path: Path):
    await ask_faucet(chain.url, Secp256k1Signer(secret).address)
    file = tmp_path / "mine.json"
    where = ["--url", chain.url, "--network", "mine", "--key-file", str(key_file), "-o", str(file)]
    done = await run("deploy", *where, "--json")
    assert secret.hex() not in done.output
    assert "4/4 creation of PaymentChannels" in done.stderr
    said = json.loads(done.stdout)
    deployment = read_deployment(file)
    assert said["contracts"].keys() == deployment.contracts.keys() == NAMES
    assert said["gas"] > 4_000_000
    assert deployment.contracts["Octo"] != chain.deployment.contracts["Octo"]

    again = await run("deploy", *where, code=FAILED)  # it may be all that says where they lie
    assert "is there already" in again.stderr
    shown = await run("show", "--deployment", str(file), "--url", chain.url)
    assert deployment.contracts["PaymentChannels"].address in shown.stdout
    assert "first block and all codes" in shown.stdout


async def test_a_keystore_and_its_password_file_do_too(chain: Devchain, secret: bytes, tmp_path: Path) -> None:
    keystore = kept(tmp_path / "wallet.json", seal_keystore(secret, "correct horse", random_password=True), 0o644)
    password = kept(tmp_path / "password", "correct horse\n")
    arguments = ["--url", chain.url, "--network", "mine", "--keystore", str(keystore), "-o", str(tmp_path / "d.json")]
    assert "--password-file" in (await run("deploy", *arguments, code=FAILED)).stderr
    done = await run("deploy", *arguments, "--password-file", str(password), code=FAILED)
    assert "cannot pay for gas" in done.stderr  # so it was opened
    assert Secp256k1Signer(secret).address.hex() in done.stderr.lower()
    assert not (tmp_path / "d.json").exists()


async def test_a_file_of_another_chain_or_other_code_is_found_out(chain: Devchain, tmp_path: Path) -> None:
    plain = json.loads(chain.deployment_file.read_text())
    octo = plain["contracts"]["Octo"]
    for name, change in (
        ("genesis", {"genesis": "0x" + "ab" * 32}),
        ("chain", {"chain_id": 1}),
        ("code", {"contracts": plain["contracts"] | {"Octo": octo | {"code": "0x" + "1" * 64}}}),
        ("place", {"contracts": plain["contracts"] | {"Octo": octo | {"address": "0x" + "1" * 40}}}),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(plain | change))
        done = await run("show", "--deployment", str(file), "--url", chain.url, "--json", code=FAILED)
        assert json.loads(done.stdout)["error"]["code"] == "wrong_chain", name


async def test_show_without_an_endpoint_reads_the_file_only(chain: Devchain) -> None:
    said = json.loads((await run("show", "--deployment", str(chain.deployment_file), "--json")).stdout)
    assert (said["contracts"].keys(), said["checked_at"]) == (NAMES, None)


@pytest.mark.parametrize("content", ["", "{}", "[" * 10_000, '{"network": "x"}', "\x00\xff"])
def test_a_file_that_is_no_deployment_is_said_so(content: str, tmp_path: Path) -> None:
    file = kept(tmp_path / "odd.json", content)
    shown = CliRunner().invoke(main, ["contracts", "show", "--deployment", str(file)])
    assert shown.exit_code == FAILED
    assert "deployments file" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [("ab" * 32, 0o644, "may read"), ("ab" * 31, 0o600, "holds no key"), ("0" * 64, 0o600, "holds no key"),
     ("f" * 64, 0o600, "holds no key"), ("\x00\xff" * 40, 0o600, "holds no key")],
)  # fmt: skip
def test_a_key_that_others_may_read_or_that_is_none_is_refused(content: str, mode: int, words: str, tmp_path: Path):
    key = kept(tmp_path / "key", content, mode)
    done = CliRunner().invoke(main, deploying("--key-file", str(key), "-o", str(tmp_path / "d.json")))
    assert done.exit_code == FAILED
    assert words in done.stderr
    assert content not in done.output


def test_a_deployment_wants_one_key_a_place_to_be_written_and_a_name_that_nodes_can_have(key_file, tmp_path) -> None:
    there, key = ["-o", str(tmp_path / "d.json")], ["--key-file", str(key_file)]
    for arguments, code in (
        (deploying(*there), USAGE),
        (deploying(*there, *key, "--keystore", str(key_file)), USAGE),
        (deploying(*there, *key, "--password-file", str(key_file)), USAGE),
        (deploying(*key), USAGE),
        (["contracts", "deploy", "--network", "test", *key, *there], USAGE),
        (deploying(*key, "-o", str(tmp_path / "none" / "d.json")), FAILED),
        (["contracts", "deploy", "--url", "http://127.0.0.1:9", "--network", "No Name", *key, *there], FAILED),
        (deploying(*key, *there), FAILED),  # and a chain that answers
    ):
        assert CliRunner().invoke(main, arguments).exit_code == code, arguments


async def test_half_of_what_names_a_chain_is_no_setting(chain: Devchain, tmp_path: Path) -> None:
    """Without the check the node would quietly stay on its ledger."""
    for arguments in (["--deployment", str(chain.deployment_file)], ["--faucet"]):
        done = CliRunner().invoke(main, ["start", "--data-dir", str(tmp_path), *arguments])
        assert done.exit_code == FAILED
        assert "--chain-url" in done.stderr


@pytest.mark.processes
async def test_start_takes_the_chain_from_its_options(chain: Devchain, tmp_path: Path) -> None:
    folder, ready = tmp_path / "node", tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli", "start", "--chain-url", chain.url, "--deployment", str(chain.deployment_file),
        "--faucet", "--network", "test", "--model", "none", "--port", "0", "--listen", "/ip4/127.0.0.1/tcp/0",
        "--data-dir", str(folder), "--ready-file", str(ready), cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "OCTO_CONTENT__HOST": "127.0.0.1"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        said = await asyncio.to_thread(lambda: find_node(folder).get("/api/v1/wallet"))
        assert said["rail"] == chain.deployment.rail
        assert said["chain"]["octo"] == 1_000 * 10**18
    finally:
        process.send_signal(signal.SIGTERM)
        shown = (await process.communicate())[0].decode()
    assert process.returncode == OK
    assert f"on chain {chain.chain_id} at " in shown
