"""The program's entry: which commands there are, where they live, and how every error ends.

Commands are imported when they are called, so that `octo-node --help` answers at once.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
import textwrap
from typing import Any

import click

from market.errors import OctoError
from node.cli.exits import INTERRUPTED, MEANINGS, code_of
from node.cli.options import wants_json

_COMMANDS = {
    "start": "node.cli.start",
    "devnet": "node.cli.devnet",
    "demo": "node.cli.devnet",
    "status": "node.cli.status",
    "doctor": "node.cli.doctor",
    "chat": "node.cli.chat",
    "run": "node.cli.run",
    "tasks": "node.cli.tasks",
    "models": "node.cli.models",
    "offers": "node.cli.offers",
    "peers": "node.cli.offers",
    "receipts": "node.cli.receipts",
    "wallet": "node.cli.wallet",
    "stake": "node.cli.stake",
    "channels": "node.cli.channels",
    "settle": "node.cli.channels",
    "contracts": "node.cli.contracts",
    "answers": "node.cli.answers",
    "bench": "node.cli.bench",
    "config": "node.cli.config",
}


class Program(click.Group):
    """A group whose commands are imported on call, and whose errors are answered in one place."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's shape
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OctoError as error:
            _answer(error, as_json=wants_json(ctx))
            ctx.exit(code_of(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nInterrupted." if sys.stderr.isatty() else "Interrupted.", err=True)  # after the ^C
            ctx.exit(INTERRUPTED)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="octo-node", prog_name="octo-node")
def main() -> None:
    """A member of a decentralized market for AI compute: serve models, or buy answers from those who do.

    `octo-node start` is all it takes to join. The other commands talk to the node that runs in the data
    folder (~/.octo; --data-dir or OCTO_DATA_DIR name another).
    """


def _answer(error: OctoError, *, as_json: bool) -> None:
    reasons: dict[str, str] = getattr(error, "reasons", {})
    if as_json:
        from node.cli.show import print_json

        told: dict[str, Any] = {"code": getattr(error, "remote_code", "") or error.code, "message": error.message}
        print_json({"error": told | {"next_step": error.next_step, "reasons": reasons}})
        return
    click.echo(
        _wrapped(f"Error: {error.message}").replace("Error:", click.style("Error:", fg="red", bold=True), 1), err=True
    )
    for peer, reason in reasons.items():
        click.echo(_wrapped(f"  {peer}  {reason}"), err=True)
    if error.next_step:
        click.echo(_wrapped(error.next_step), err=True)


def _wrapped(text: str) -> str:
    """Broken between words on a terminal, never within one: what is long there is to be copied."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    wrap = functools.partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap(line) for line in text.splitlines())
