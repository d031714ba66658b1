"""`octo-node start`: this machine's node, from its first start to a clean end.

Lives here: the command, signals, and the order of things. What a person sees is in `node.cli.welcome`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market.errors import NodeMisconfigured, OctoError
from node.cli.exits import FAILED, INTERRUPTED, OK
from node.cli.options import config_option, data_dir_option, json_option, reference_here
from node.cli.signals import Signals

if TYPE_CHECKING:
    from node.running import RunningNode
    from node.settings import Settings

_PR_SET_PDEATHSIG = 1
_STAKE_S = 5.0


@click.command(short_help="Run this machine's node.")
@click.option("--join", multiple=True, metavar="MULTIADDR", help="A peer to join by; may be given again.")
@click.option("--model", multiple=True, metavar="REFERENCE|none",
              help="What to serve: whatever `models pull` takes; may be given again. none: only buy.")  # fmt: skip
@click.option("--share", metavar="URL", help="Offer a model of a server that runs already: its OpenAI API's base URL.")
@click.option("--share-model", metavar="NAME", help="The model's name at that server.")
@click.option("--price-in", metavar="OCTO", help="What a million prompt tokens cost here.")
@click.option("--price-out", metavar="OCTO", help="What a million generated tokens cost here.")
@click.option("--workers", type=int, help="Engine processes (default: one for every two cores).")
@click.option("--port", type=int, help="Port of the private API on this machine (default 8080; 0 takes any).")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where the mesh listens; may be given again.")
@click.option("--network", metavar="NAME", help="The network to be on; others are ignored.")
@click.option("--chain-url", metavar="URL", help="Settle on the chain behind this JSON-RPC endpoint.")
@click.option("--deployment", type=click.Path(dir_okay=False, path_type=Path),
              help="The file that says where the contracts are on it.")  # fmt: skip
@click.option("--faucet", is_flag=True, help="Draw play money from the chain's faucet when the wallet is empty.")
@config_option
@click.option("--ready-file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write JSON here once usable: peer_id, multiaddrs, url, data_dir, pid, model, api_key.")  # fmt: skip
@click.option("--parent", type=int, hidden=True, help="End when this process ends.")
@data_dir_option
@json_option
def start(
    *,
    join: tuple[str, ...],
    model: tuple[str, ...],
    share: str | None,
    share_model: str | None,
    price_in: str | None,
    price_out: str | None,
    workers: int | None,
    port: int | None,
    listen: tuple[str, ...],
    network: str | None,
    chain_url: str | None,
    deployment: Path | None,
    faucet: bool,
    config: Path | None,
    ready_file: Path | None,
    parent: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Run this machine's node until Ctrl-C.

    Needs no configuration: the first start makes keys and a wallet, loads the default model and serves
    it, shows the API key once, and prints the line that lets another machine join. Payments stay on a
    local ledger unless a chain is named; an endpoint whose URL holds a key belongs into OCTO_CHAIN__URL.
    """
    if parent is not None:
        _end_with(parent)
    from node.config import load_settings

    buys_only = [name.lower() for name in model] == ["none"]
    model = tuple(map(reference_here, model))
    settings = load_settings(
        config=config,
        overrides={
            "data_dir": data_dir,
            "join": join or None,
            "provide": False if buys_only else (True if model else None),
            "model": model[0] if model and not buys_only else None,
            "serve": model[1:] or None,
            "share.url": share,
            "share.model": share_model,
            "prices.input": price_in,
            "prices.output": price_out,
            "engine.workers": workers,
            "api.port": port,
            "mesh.listen": listen or None,
            "network": network,
            "chain.url": chain_url,
            "chain.deployment": deployment,
            "chain.faucet": faucet or None,
        },
    )
    _check_chain(settings)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_serve(settings, ready_file, as_json=as_json))
    click.get_current_context().exit(code)


async def _serve(settings: Settings, ready_file: Path | None, *, as_json: bool) -> int:
    from node.cli.welcome import Welcome
    from node.wiring import open_node

    welcome = Welcome(settings, as_json=as_json, keep_key_secret=ready_file is not None)
    with Signals() as signals, welcome.logs():
        try:
            with welcome.starting() as progress:
                context = open_node(
                    settings, prepared=prepared_models(), progress=progress, ask_password=welcome.ask_password()
                )
                node = await context.__aenter__()
        except asyncio.CancelledError:
            return INTERRUPTED
        signals.started()
        code = FAILED
        try:
            node.keys.keep()  # its first key is about to be seen
            with _ready_note(ready_file, node, settings):
                welcome.show(node, stake=await _stake(node))
                await signals.wait()
                welcome.ending()
                code = OK
        finally:
            await context.__aexit__(None, None, None)
    return code


def _check_chain(settings: Settings) -> None:
    """Half of what names a chain is a mistake: without the other the node would quietly stay on its ledger."""
    if settings.chain.url is None and (settings.chain.deployment is not None or settings.chain.faucet):
        raise NodeMisconfigured(
            "chain.deployment or chain.faucet is set, but no chain.url.", next_step="Name it with --chain-url."
        )


async def _stake(node: RunningNode) -> dict[str, Any] | None:
    """None on the ledger, and while the chain does not answer."""
    if node.chain is None:
        return None
    try:
        async with asyncio.timeout(_STAKE_S):
            return await node.chain.stake_facts()
    except (OctoError, TimeoutError):
        return None


def prepared_models() -> Sequence[Path]:
    """What `make model` left in the checkout: it saves the default model's download."""
    return sorted((Path(__file__).resolve().parents[2] / ".cache" / "models").glob("*.gguf"))


@contextmanager
def _ready_note(path: Path | None, node: RunningNode, settings: Settings) -> Iterator[None]:
    """Whole or not there at all, for the owner alone (it may hold the API key), and gone with the node."""
    if path is None:
        yield
        return
    from node.folder import write_whole

    write_whole(path, json.dumps(ready_facts(node, settings)).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def ready_facts(node: RunningNode, settings: Settings) -> dict[str, Any]:
    """What `--ready-file` holds."""
    offered = node.providing.offers()
    facts: dict[str, Any] = {
        "peer_id": node.peer,
        "multiaddrs": list(node.addresses()),
        "url": node.url,
        "data_dir": str(settings.data_dir),
        "pid": os.getpid(),
        "model": offered[0].model if offered else None,
    }
    if node.first_api_key is not None:
        facts["api_key"] = node.first_api_key
    return facts


def _end_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when the process that started us is gone (prctl(2), Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it went before we could ask
        click.get_current_context().exit(FAILED)
