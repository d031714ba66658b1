"""The embedded devnet chain: a process of its own that holds one chain, for whoever needs no real one.

    async with open_devchain(folder, network="octo") as devchain: …     # or: python -m contracts.devchain --folder …

All of it lies in `folder`: the chain, a random deployer's key, where the contracts are. A kill at any time loses
nothing that was answered; the next start goes on from the last block. It ends with the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from contracts.child import open_child
from contracts.deploy import CHALLENGE_S
from contracts.deployments import Deployment, read_deployment
from market.errors import NodeMisconfigured, OctoError
from market.values import value

CHAIN_ID = 31337
START_S = 60.0
DEPLOYMENT_FILE = "deployment.json"
_ROOT = Path(__file__).resolve().parent.parent
_READY_LIMIT_BYTES = 4096


@value
class EvmTerms:
    """What the process is started with; see `open_devchain`."""

    folder: Path
    network: str = "octo"
    port: int = 0
    chain_id: int = CHAIN_ID
    challenge_s: int = CHALLENGE_S
    controls: bool = False


@value
class Devchain:
    """`deployment` says where the contracts are; `pid` is the process's."""

    url: str
    chain_id: int
    deployment: Deployment
    deployment_file: Path
    pid: int


@asynccontextmanager
async def open_devchain(
    folder: Path,
    *,
    network: str = "octo",
    port: int = 0,
    chain_id: int = CHAIN_ID,
    challenge_s: int = CHALLENGE_S,
    controls: bool = False,
) -> AsyncIterator[Devchain]:
    """Start the chain in `folder`, or start one there; with our contracts deployed for `network`.

    `port` 0 takes the one of last time, or any. `controls` is for tests: blocks at once, evm_mine and
    evm_increaseTime. Raises NodeMisconfigured, with what the process said, if it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # noqa: ASYNC240 - once, before anything runs
    errors = folder / "chain.log"
    command = [
        sys.executable, "-P", "-m", "contracts.devchain", "--folder", str(folder), "--network", network, "--port",
        str(port), "--chain-id", str(chain_id), "--challenge-s", str(challenge_s),
        *(["--controls"] if controls else []),
    ]  # fmt: skip
    environment = {"LANG": "C.UTF-8", "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    async with open_child(command, environment=environment, errors=errors) as process:
        assert process.stdout is not None
        line = b""
        with suppress(TimeoutError, ValueError):
            line = await asyncio.wait_for(process.stdout.readline(), START_S)
        try:
            ready = json.loads(line[:_READY_LIMIT_BYTES])
            found = Devchain(
                url=ready["url"], chain_id=ready["chain_id"], deployment=read_deployment(folder / DEPLOYMENT_FILE),
                deployment_file=folder / DEPLOYMENT_FILE, pid=process.pid,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            raise NodeMisconfigured(
                f"the devnet chain in {folder} did not start: {_last_words(errors)}",
                next_step=f"See {errors}.",
            ) from None
        yield found


def _last_words(errors: Path) -> str:
    with suppress(OSError):
        lines = errors.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:300]
    return "it said nothing."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m contracts.devchain")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--network", default="octo")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chain-id", type=int, default=CHAIN_ID)
    parser.add_argument("--challenge-s", type=int, default=CHALLENGE_S)
    parser.add_argument("--controls", action="store_true")
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is the parent's
    try:
        from contracts.evm_process import run  # py-evm: for this process only

        asyncio.run(run(EvmTerms(**vars(parser.parse_args()))))
    except OctoError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except ImportError as error:
        print(f"py-evm is not installed ({error.name}): .venv/bin/pip install -e '.[devnet]'", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
