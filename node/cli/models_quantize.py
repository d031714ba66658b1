"""`octo-node models quantize`: a smaller model of one that is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.options import data_dir_option, json_option, open_node_to_ask
from node.cli.transfer import follow

_LONG_S = 60.0
"""Between two events of a stream; the node says something every 15 s."""


@click.command("quantize", short_help="Make a smaller model of one that is here.")
@click.argument("name")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="GGUF: F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0 …; ONNX: INT8, INT4; safetensors: F16, BF16, FP8.",
)
@click.option("--name", "new_name", help="What to call the result (default: the model's name and the format).")
@click.option("--version", metavar="SEMVER", help="Its version (default: the model's).")
@click.option("--again", is_flag=True, help="Though the model is quantised already.")
@click.option("--private", is_flag=True, help="Do not serve it on to others (default: as the model is).")
@data_dir_option
@json_option
def quantize(
    *,
    name: str,
    to: str,
    new_name: str | None,
    version: str | None,
    again: bool,
    private: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a model whose weights take fewer bits, signed by this node's wallet; it names NAME as its parent.

    Tokenizer and template are shared with it: nothing is stored twice.
    """
    from node.cli.show import print_json, printable, screen, size

    body: dict[str, Any] = {"model": name, "to": to, "again": again}
    body |= {"name": new_name} if new_name else {}
    body |= {"version": version} if version else {}
    body |= {"public": False} if private else {}
    with open_node_to_ask(data_dir) as node:
        events = node.stream("/api/v1/models/quantize", body, timeout_s=_LONG_S)
        done = follow(events, doing="Quantising", as_json=as_json)
    if as_json:
        print_json(done)
        return
    told = f"{printable(done['name'])} {printable(done['version'])} is here: {printable(done['quantisation'])}"
    screen().print(f"{told}, {size(done['size_bytes'])}.")
    screen().print(done["model"])
    if done["warning"]:
        screen(stderr=True).print(f"Warning: {printable(done['warning'])}")
