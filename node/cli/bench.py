"""`octo-node bench`: what this machine does with a model, measured and remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.bench_quantisation import quantisation
from node.cli.options import config_option, data_dir_option, json_option, open_node_to_ask, reference_here
from node.cli.transfer import follow

if TYPE_CHECKING:
    from inference.tuning import Tuning
    from node.measurements import Entry
    from node.settings import Settings

_LONG_S = 60.0


@click.group(short_help="Measure this machine.")
def bench() -> None:
    """Measure what this machine does, and remember it."""


bench.add_command(quantisation)


@bench.command("hardware", short_help="Tokens per second, time to first token, memory.")
@click.option("--model", metavar="REF", help="What to run: a name, a CID, anything that `models pull` takes.")
@click.option("--tune", is_flag=True, help="Look for better workers, threads and slots first, and remember them.")
@click.option("--budget", type=click.FloatRange(5, 3600), default=60.0, show_default=True, metavar="SECONDS",
              help="How long to look for them.")  # fmt: skip
@config_option
@data_dir_option
@json_option
def hardware(
    *, model: str | None, tune: bool, budget: float, config: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Measure the node's model on this machine: tokens per second at 1, 4, 8 and 16 requests, time to first token
    and prefill for prompts of 64 and 512 tokens, memory.

    The figures are kept for this hardware, model and engine version, and a start uses them.
    """
    from node.cli.show import print_json, screen
    from node.config import load_settings
    from node.logs import open_logs

    settings = load_settings(config=config, overrides={"data_dir": data_dir})
    wanted = model or (settings.model if settings.model != "none" else "default")
    with open_node_to_ask(data_dir) as node:
        events = node.stream("/api/v1/models/pull", {"reference": reference_here(wanted)}, timeout_s=_LONG_S)
        cid = follow(events, doing="Pulling", as_json=as_json)["model"]
    if not as_json and _is_running(settings):
        screen(stderr=True).print("A node runs in this folder: what it does now makes these figures smaller.")
    log = open_logs(level=settings.log.level, format=settings.log.format, file=settings.data_dir / "node.log")
    with log:
        entry, tuning = asyncio.run(_measure(settings, cid, tune_s=budget if tune else None, as_json=as_json))
    facts = _facts(entry, tuning)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


async def _measure(settings: Settings, cid: str, *, tune_s: float | None, as_json: bool) -> tuple[Entry, Tuning | None]:
    from inference.models.store import Store
    from node.benching import bench_hardware, unheard
    from node.cli.show import screen

    store = await asyncio.to_thread(Store, settings.models_folder(), quota_bytes=settings.models.quota)
    err = screen(stderr=True)
    try:
        if as_json or not err.is_terminal:
            return await bench_hardware(settings, store, cid, tune_s=tune_s, told=unheard)
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(28))
        with Progress(*columns, console=err, transient=True) as bars:
            task = bars.add_task("starting", total=1.0)
            return await bench_hardware(
                settings,
                store,
                cid,
                tune_s=tune_s,
                told=lambda what, share: bars.update(task, description=what, completed=share),
            )
    finally:
        store.close()


def _is_running(settings: Settings) -> bool:
    from node.folder import find_running

    return find_running(settings.data_dir) is not None


def _facts(entry: Entry, tuning: Tuning | None) -> dict[str, Any]:
    told = {
        **asdict(entry),
        "tuning": None,
    }
    if tuning is not None:
        told["tuning"] = {
            "best": asdict(tuning.best),
            "gain": round(tuning.gain, 3),
            "needed": round(tuning.needed, 3),
            "trials": [
                {
                    **asdict(trial.setup),
                    "ratio": round(trial.ratio, 3),
                    "pairs": len(trial.pairs),
                    "failed": trial.failed,
                }
                for trial in tuning.trials
            ],
            "untried": [asdict(setup) for setup in tuning.untried],
        }
    return told


def _print(told: Mapping[str, Any]) -> None:
    from node.cli.show import facts, printable, screen, size

    measured, setup = told["measured"], told["setup"]
    rows: list[tuple[str, object]] = [
        ("machine", printable(told["hardware"])),
        ("engine", printable(told["engine"])),
        ("settings", _setup_text(setup)),
    ]
    rows += [(f"{count} at once", f"{rate:.0f} tokens/s") for count, rate in measured["tokens_per_s"].items()]
    for length, wait in measured["first_token_ms"].items():
        prefill = measured["prefill_tokens_per_s"][length]
        rows.append((f"{length}-token prompt", f"first token after {wait:.0f} ms, {prefill:.0f} tokens/s prefilled"))
    rows.append(("memory", size(measured["memory_bytes"])))
    screen().print(facts(rows))
    if told["tuning"] is not None:
        screen().print(_verdict(told))


def _setup_text(setup: Mapping[str, Any]) -> str:
    from node.cli.show import counted

    workers, threads, slots = (counted(setup[f"{noun}s"], noun) for noun in ("worker", "thread", "slot"))
    return f"{workers} of {threads} and {slots}{'' if setup['workers'] == 1 else ' each'}"


def _verdict(told: Mapping[str, Any]) -> str:
    tuning = told["tuning"]
    best, tried = tuning["best"], len(tuning["trials"])
    left = f", {len(tuning['untried'])} more had no time" if tuning["untried"] else ""
    if tuning["gain"] <= 1:
        return f"The default stays: none of {tried} others was clearly better{left}."
    if best["model"] != told["model"]:
        return (
            f"{tuning['gain']:.2f} times as fast in another format that is here{left}: octo-node start --model "
            f"{best['model']}"
        )
    return (
        f"{tuning['gain']:.2f} times as fast as the default, of {tried} that were tried{left}; `octo-node start` uses"
        " it from now on."
    )
