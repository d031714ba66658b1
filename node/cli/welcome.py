"""What a person sees of `octo-node start`: progress, then one screen with all that matters.

A program that starts us (no terminal, or --ready-file) gets the log on stderr and no secrets on stdout.
"""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from node.cli.on_chain import money_rows
from node.cli.served import abilities, price
from node.cli.show import facts, print_json, printable, screen, size
from node.logs import open_logs

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from inference.models.progress import Progress
    from node.running import RunningNode
    from node.settings import Settings


class Welcome:
    def __init__(self, settings: Settings, *, as_json: bool, keep_key_secret: bool) -> None:
        self._settings = settings
        self._as_json = as_json
        self._keep_key_secret = keep_key_secret
        self._err = screen(stderr=True)
        self._out = screen()
        self._person = sys.stdout.isatty() and not as_json and not keep_key_secret
        self._bars: Bars | None = None
        self._log_file = settings.data_dir / "node.log" if self._logs_to_file() else None

    def _logs_to_file(self) -> bool:
        """A terminal belongs to its person: unless told otherwise, the log goes to a file then."""
        if self._settings.source_of("log.to") == "default":
            return self._person
        return self._settings.log.to == "file"

    @contextmanager
    def logs(self) -> Iterator[None]:
        log, file = self._settings.log, self._log_file
        if file is not None:
            with suppress(OSError):  # a folder that cannot be made: opening the node says why
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = file if file.parent.is_dir() else None
        with open_logs(level=log.level, format=log.format, file=file):
            yield

    @contextmanager
    def starting(self) -> Iterator[Callable[[Progress], None]]:
        """A line that moves while the node comes up; yields where model bytes are counted."""
        if not (self._person and self._err.is_terminal):
            yield lambda _progress: None
            return
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[done]}"))
        with Bars(*columns, console=self._err, transient=True) as bars:
            self._bars = bars
            task = bars.add_task("Starting", total=None, done="")

            def count(progress: Progress) -> None:
                what = f"{'Pulling' if progress.sources else 'Reading'} {printable(progress.what)[:24]}…"
                done, total = progress.done_bytes, progress.total_bytes or None
                told = f"{size(done)} of {size(total)}" if total else size(done)
                bars.update(task, description=what, completed=done, total=total, done=told)

            follower = _Follower(lambda text: bars.update(task, description=text, total=None, done=""))
            logging.getLogger().addHandler(follower)
            try:
                yield count
            finally:
                logging.getLogger().removeHandler(follower)
                self._bars = None

    def ask_password(self) -> Callable[[], str] | None:
        """A prompt for the wallet's password, where there is somebody to ask."""
        if not (self._person and sys.stdin.isatty()):
            return None

        def ask() -> str:
            if self._bars is not None:
                self._bars.stop()
            answer: str = click.prompt("Password of the wallet", hide_input=True, err=True)
            return answer

        return ask

    def show(self, node: RunningNode, *, stake: Mapping[str, Any] | None = None) -> None:
        """`stake` as the API gives it, on a chain."""
        status = {**node.status(), "stake": stake}
        key = None if self._keep_key_secret else node.first_api_key
        if self._as_json:
            told = {**status, "data_dir": str(self._settings.data_dir)}
            print_json(told | ({"api_key": key} if key else {}))
            return
        out = self._out
        out.print()
        out.print(Text.assemble(("octo-node", "bold"), " is up: peer ", (node.peer, "cyan")))
        out.print()
        out.print(facts(self._rows(status)))
        if key:
            out.print()
            out.print(Text.assemble(("API key", "bold"), " (shown this once; stored as a hash only)"))
            out.print(Text(f"  {key}", style="green"), soft_wrap=True)
        for warning in status["warnings"]:
            out.print(Text(f"Note: {warning}", style="yellow"))
        join = best_address(status["addresses"])
        if join:
            out.print()
            out.print(Text("Another machine joins with", style="bold"))
            out.print(Text(f"  octo-node start --join {join}", style="green"), soft_wrap=True)
        if self._person:
            out.print()
            out.print(Text("Ctrl-C ends it, after settling what runs.", style="dim"))

    def ending(self) -> None:
        if self._person:
            self._err.print("Ending: settling what runs. Ctrl-C again ends at once.")

    def _rows(self, status: Any) -> list[tuple[str, object]]:
        keys = self._settings.data_dir / "keys"
        rows: list[tuple[str, object]] = []
        for model in status["models"]:
            rows.append(("model", model["name"]))
            rows.append(("", model["model"]))
            rows.append(("", f"{abilities(model)}{'' if model['warm'] else '; loaded when it is asked for'}"))
            rows.append(("", model["engine"]))
            rows.append(("prices", price(model)))
        if not status["models"]:
            rows.append(("model", "none: this node only buys"))
        gpus = ", ".join(status["gpus"]) or "no GPU"
        rows.append(("tier", f"{status['tier']}: {status['cores']} cores, {size(status['ram_bytes'])} RAM, {gpus}"))
        if status["engine"]:
            rows.append(("engine", f"confined by {status['engine']['isolation']}"))
        rows.extend(money_rows(status))
        rows.append(("wallet", status["wallet"]))
        rows.append(("", f"keystore {keys / 'wallet.json'}"))
        if (keys / "wallet.password").exists():
            rows.append(("", f"password {keys / 'wallet.password'}: keep both, apart from each other"))
        rows.append(("API", f"{node_url(status)}/v1 (any OpenAI client)"))
        if self._log_file is not None:
            rows.append(("log", str(self._log_file)))
        return rows


def node_url(status: Any) -> str:
    return str(status["url"]).rstrip("/")


def best_address(addresses: Sequence[str]) -> str | None:
    """The one that most other machines can reach: public, then local network, then this machine."""

    def reach(address: str) -> int:
        parts = address.split("/")
        try:
            ip = ipaddress.ip_address(parts[2])
        except (IndexError, ValueError):
            return 1
        if ip.is_loopback or ip.is_link_local:
            return 3
        return 2 if ip.is_private else 0

    return min(addresses, key=reach, default=None)


_STEPS = {
    "wallet_made": "Keys and a wallet are made",
    "api_open": "Preparing the model",
    "default_model_published": "Loading the model",
    "model_pulled": "Loading the model",
    "models_shared": "Loading the model",
    "worker_ready": "Measuring the model",
    "model_loaded": "A model is loaded",
}


class _Follower(logging.Handler):
    """Turns those of the log's events that are steps of a start into words."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        event = record.msg.get("event") if isinstance(record.msg, dict) else None
        if isinstance(event, str) and (told := _STEPS.get(event)):
            self._tell(told)
