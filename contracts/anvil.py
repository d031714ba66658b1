"""anvil, Foundry's test chain, as a program that we start and own. For tests and development: everyone who reaches
its port may set balances and take blocks back.

The program itself is started, not npm's wrapper: signals would reach the wrapper only.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from contracts.chain import Chain, open_chain
from contracts.child import free_port, open_child
from contracts.faults import ChainError
from contracts.rpc import open_rpc
from market.errors import NodeMisconfigured
from market.signing import address_text
from market.values import value

CHAIN_ID = 31337
START_S = 20.0
RICH_WEI = 10**24
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@value
class Anvil:
    url: str
    chain_id: int
    pid: int


def find_anvil(root: Path | None = None) -> Path | None:
    """The program that `npm ci` put into contracts/node_modules; None where it is not installed."""
    folder = root or Path(__file__).resolve().parent
    machine = _MACHINES.get(platform.machine(), platform.machine())
    found = folder / f"node_modules/@foundry-rs/anvil-{platform.system().lower()}-{machine}/bin/anvil"
    return found if found.is_file() else None


@asynccontextmanager
async def open_anvil(
    program: Path | None = None,
    *,
    chain_id: int = CHAIN_ID,
    block_s: int | None = None,
    rich: bytes | None = None,
    state: Path | None = None,
    port: int | None = None,
) -> AsyncIterator[Anvil]:
    """Start anvil on a free port of this machine. A block for each transaction, or one every `block_s` seconds.

    No account is unlocked or known; `rich` gets 10^6 ether. `state` is a file that it starts from and writes when it
    ends. Raises NodeMisconfigured if there is no anvil or it does not come up.
    """
    program = program or find_anvil()
    if program is None:
        raise NodeMisconfigured(
            "anvil is not installed.", next_step="Run `npm ci` in contracts/, or use chain embedded."
        )
    for attempt in range(3):  # the free port may be taken before anvil gets it
        chosen = port or free_port()
        command = [
            str(program), "--silent", "--host", "127.0.0.1", "--port", str(chosen), "--chain-id", str(chain_id),
            "--hardfork", "cancun", "--accounts", "0", "--no-cors",
            *(["--block-time", str(block_s)] if block_s else []), *(["--state", str(state)] if state else []),
        ]  # fmt: skip
        environment = {"HOME": str(program.parent), "LANG": "C.UTF-8"}
        async with open_child(command, environment=environment) as process:
            url = f"http://127.0.0.1:{chosen}"
            if not await _answers(process, url, chain_id):
                if attempt < 2 and port is None:
                    continue
                raise NodeMisconfigured(f"anvil did not come up on port {chosen}.")
            if rich is not None:
                await give(url, rich, RICH_WEI)
            yield Anvil(url=url, chain_id=chain_id, pid=process.pid)
            return


async def give(url: str, address: bytes, wei: int) -> None:
    """Set an account's balance: anvil's own method."""
    async with open_rpc(url) as rpc:
        await rpc.call("anvil_setBalance", address_text(address), hex(wei))


async def _answers(process: asyncio.subprocess.Process, url: str, chain_id: int) -> bool:
    until = time.monotonic() + START_S
    async with open_chain(url, chain_id=chain_id, timeout_s=2.0) as chain:
        while time.monotonic() < until and process.returncode is None:
            if await _is_up(chain):
                return process.returncode is None
            await asyncio.sleep(0.02)
    return False


async def _is_up(chain: Chain) -> bool:
    with suppress(ChainError):
        await chain.check()
        return True
    return False
