"""`octo-node bench quantisation`: what each format of a model costs and gives, beside F16."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import config_option, data_dir_option, json_option, open_node_to_ask, reference_here
from node.cli.transfer import follow

if TYPE_CHECKING:
    from inference.quantization.comparing import Compared, Whole
    from node.settings import Settings

_LONG_S = 60.0


@click.command("quantisation", short_help="Size, speed and perplexity of a model's formats.")
@click.option("--model", metavar="REF", help="Which: a name, a CID, anything that `models pull` takes.")
@click.option("--to", "formats", multiple=True, metavar="FORMAT", help="A format; may be given again (default: nine).")
@config_option
@data_dir_option
@json_option
def quantisation(
    *, model: str | None, formats: tuple[str, ...], config: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Make each format of the node's model in turn and measure it beside F16, in the same minutes: size, tokens per
    second of one stream and of 16, perplexity over a fixed text. Nothing is kept: `models quantize` makes one to keep.

    A model that is quantised already is compared with an F16 made from it: what it lost stays lost in both.
    """
    from node.cli.show import print_json, screen, size, table
    from node.config import load_settings
    from node.logs import open_logs

    settings = load_settings(config=config, overrides={"data_dir": data_dir})
    wanted = model or (settings.model if settings.model != "none" else "default")
    with open_node_to_ask(data_dir) as node:
        events = node.stream("/api/v1/models/pull", {"reference": reference_here(wanted)}, timeout_s=_LONG_S)
        cid = follow(events, doing="Pulling", as_json=as_json)["model"]
    log = open_logs(level=settings.log.level, format=settings.log.format, file=settings.data_dir / "node.log")
    with log:
        whole, compared = asyncio.run(_compared(settings, cid, formats, as_json=as_json))
    facts = [_facts(one, whole) for one in compared]
    if as_json:
        print_json({"model": cid, "f16_bytes": whole.size_bytes, "f16_perplexity": whole.perplexity, "formats": facts})
        return
    loads = list(facts[0]["tokens_per_s"]) if facts else []
    rows = [("F16", size(whole.size_bytes), "", *("" for _ in loads), f"{whole.perplexity:.3f}", "")]
    rows += [
        (
            fact["format"],
            size(fact["size_bytes"]),
            f"{fact['size_ratio']:.0%}",
            *(f"{rate:.0f} ({fact['speed_ratio'][load]:.2f} x)" for load, rate in fact["tokens_per_s"].items()),
            f"{fact['perplexity']:.3f}",
            f"{fact['perplexity_ratio'] - 1:+.1%}",
        )
        for fact in facts
    ]
    columns = ("FORMAT", "SIZE", "OF F16", *(f"TOK/S AT {load}" for load in loads), "PERPLEXITY", "TO F16")
    screen().print(table(*columns, rows=rows, right=columns[1:]))


async def _compared(
    settings: Settings, cid: str, formats: tuple[str, ...], *, as_json: bool
) -> tuple[Whole, list[Compared]]:
    from inference.models.store import Store
    from node.cli.show import screen
    from node.comparing import compare_quantisations

    store = await asyncio.to_thread(Store, settings.models_folder(), quota_bytes=settings.models.quota)
    err = screen(stderr=True)
    try:
        if as_json or not err.is_terminal:
            return await compare_quantisations(store, cid, formats)
        with err.status("starting") as status:
            return await compare_quantisations(store, cid, formats, told=status.update)
    finally:
        store.close()


def _facts(one: Compared, whole: Whole) -> dict[str, Any]:
    """Speeds are medians of runs, their ratios medians of the runs' ratios."""
    return {
        "format": one.word,
        "size_bytes": one.size_bytes,
        "size_ratio": round(one.size_bytes / whole.size_bytes, 4),
        "tokens_per_s": {
            str(load): round(statistics.median(ours for ours, _ in pairs), 1)
            for load, pairs in one.tokens_per_s.items()
        },
        "speed_ratio": {
            str(load): round(statistics.median(ours / base for ours, base in pairs), 3)
            for load, pairs in one.tokens_per_s.items()
        },
        "perplexity": round(one.perplexity, 4),
        "perplexity_error": round(one.error, 4),
        "perplexity_ratio": round(one.perplexity / whole.perplexity, 4),
    }
