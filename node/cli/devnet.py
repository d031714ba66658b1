"""`octo-node devnet` and `octo-node demo`: a whole market on this machine, to try and to see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.exits import INTERRUPTED, OK
from node.cli.options import json_option
from node.cli.signals import Signals

if TYPE_CHECKING:
    from node.devnet import Devnet, Plan
    from node.devnet_chain import Kind

_FIRST_PRICE = (10, 30)  # hundredths of an OCTO per million tokens, in and out
_DEMO_PRICES = (("0.10", "0.30"), ("0.08", "0.24"))  # the one that pulls the model is cheaper, so it serves


_chain_option = click.option(
    "--chain", type=click.Choice(["embedded", "anvil", "none"]), default="embedded", show_default=True,
    help="What the nodes settle on: our own devnet chain, Foundry's, or a local ledger."
)  # fmt: skip


@click.command(short_help="Run a market on this machine: a chain, providers and a gateway.")
@click.option("--providers", type=click.IntRange(1, 16), default=2, show_default=True, help="How many providers.")
@click.option("--prices", metavar="IN:OUT,…", help="OCTO per million tokens, for each provider in turn.")
@click.option("--model", default="default", show_default=True, help="What the first provider serves, and all others.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Engines a provider.")
@_chain_option
@click.option("--ready-file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write JSON here once all is usable: gateway, api_key, model, nodes, chain.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False),
              help="Keep the nodes' folders here (default: temporary, removed at the end).")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the temporary folder behind.")
@json_option
def devnet(
    *,
    providers: int,
    prices: str | None,
    model: str,
    workers: int,
    chain: Kind,
    ready_file: Path | None,
    data_dir: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Run a chain, providers and one client gateway, each a process of its own on loopback, until Ctrl-C.

    The first provider has the model; the others pull it from the first by its content id. Ctrl-C ends
    every process and leaves nothing behind.
    """
    from node.devnet import Plan

    plan = Plan(
        prices=_prices(prices, providers), data_dir=data_dir, keep=keep, model=model, workers=workers, chain=chain
    )
    code = asyncio.run(_run(plan, lambda made, signals: _stay(made, signals, ready_file, as_json=as_json)))
    click.get_current_context().exit(code)


@click.command(short_help="See the main job once: offer, negotiation, answer, receipt, payment.")
@_chain_option
@json_option
def demo(*, chain: Kind, as_json: bool) -> None:
    """Bring up a chain, two providers and a gateway, hold one conversation, check receipts and money, and end.

    Ends with 0 only if every receipt holds and the balances add up.
    """
    from node.demo import Demo
    from node.devnet import Plan

    async def story(made: Devnet, _signals: Signals) -> int:
        return await asyncio.to_thread(lambda: Demo(made, as_json=as_json).run())

    plan = Plan(prices=_DEMO_PRICES, chain=chain)
    click.get_current_context().exit(asyncio.run(_run(plan, story)))


async def _run(plan: Plan, story: Callable[[Devnet, Signals], Awaitable[int]]) -> int:
    from node.devnet import open_devnet
    from node.logs import open_logs

    with Signals() as signals, open_logs(level="warning"), _Teller() as teller:
        try:
            async with open_devnet(plan, tell=teller.tell) as made:
                teller.started()
                code = await story(made, signals)
                teller.tell("Ending all processes")
                return code
        except asyncio.CancelledError:
            return INTERRUPTED


class _Teller:
    """What goes on, on stderr: a line that moves while a terminal waits for the start, else plain lines."""

    def __enter__(self) -> _Teller:
        from node.cli.show import screen

        console = screen(stderr=True)
        self._status = console.status("") if console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.started()

    def started(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def tell(self, line: str) -> None:
        if self._status is not None:
            self._status.update(line)
        else:
            click.echo(click.style(line, dim=True), err=True)


async def _stay(made: Devnet, signals: Signals, ready_file: Path | None, *, as_json: bool) -> int:
    signals.started()
    with _ready_note(ready_file, made):
        _show(made, ready_file, as_json=as_json)
        await signals.wait()
    return OK


@contextmanager
def _ready_note(path: Path | None, made: Devnet) -> Iterator[None]:
    """For the owner alone, since it holds the API key; gone with the devnet."""
    if path is None:
        yield
        return
    from node.folder import write_whole

    write_whole(path, json.dumps(made.facts(), indent=2).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _show(made: Devnet, ready_file: Path | None, *, as_json: bool) -> None:
    from rich.text import Text

    from node.cli.show import facts, print_json, screen, table

    if as_json:
        print_json(made.facts())
        return
    out = screen()
    rows = [(member.name, member.peer_id[-8:], member.url, member.pid) for member in (*made.providers, made.client)]
    out.print()
    out.print(table("NODE", "PEER", "API", "PID", rows=rows, right=("PID",)))
    out.print()
    key = f"in {ready_file}" if ready_file else Text(made.api_key, style="green")
    chain = made.chain
    rows_below = [
        ("gateway", f"{made.client.url}/v1"),
        ("API key", key),
        ("model", made.model),
        ("chain", f"{chain.url} ({chain.kind}, id {chain.deployment.chain_id})" if chain else "none: a local ledger"),
        ("folders", str(made.root)),
    ]
    out.print(facts(rows_below))
    out.print()
    out.print(Text(f"Talk to it: octo-node chat --data-dir {made.client.data_dir}", style="green"), soft_wrap=True)
    out.print(Text("Ctrl-C ends every process.", style="dim"))


def _prices(text: str | None, providers: int) -> tuple[tuple[str, str], ...]:
    """`0.10:0.30,0.08:0.24`, or a ladder on which each provider asks a fifth more than the first."""
    if text is None:
        first_in, first_out = _FIRST_PRICE
        return tuple(
            (f"{(first_in + first_in * n // 5) / 100:.2f}", f"{(first_out + first_out * n // 5) / 100:.2f}")
            for n in range(providers)
        )
    from market.errors import RequestInvalid
    from market.money import parse_octo

    pairs = [tuple(pair.split(":")) for pair in text.split(",")]
    if len(pairs) != providers or any(len(pair) != 2 for pair in pairs):
        raise click.BadParameter(f"{providers} providers need {providers} pairs IN:OUT.", param_hint="--prices")
    try:
        for price_in, price_out in pairs:
            parse_octo(price_in), parse_octo(price_out)
    except RequestInvalid as error:
        raise click.BadParameter(str(error), param_hint="--prices") from None
    return tuple((pair[0].strip(), pair[1].strip()) for pair in pairs)
