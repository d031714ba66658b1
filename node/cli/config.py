"""`octo-node config`: every setting, its value, and where that was set."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.options import config_option, data_dir_option, json_option


@click.group("config", short_help="What is set, and where.")
def config() -> None:
    """Settings come from the command line, OCTO_* variables, one file, and defaults, in this order."""


@config.command("show")
@config_option
@click.option("--all", "everything", is_flag=True, help="Defaults, too.")
@data_dir_option
@json_option
def show_config(config: Path | None, everything: bool, data_dir: Path | None, as_json: bool) -> None:
    """What is set, and where. Secrets are hidden."""
    _explain(config, data_dir, everything=everything, as_json=as_json)


@config.command("check")
@config_option
@data_dir_option
@json_option
def check_config(config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Whether the settings hold, and all of them with where each was set."""
    _explain(config, data_dir, everything=True, as_json=as_json)


def _explain(file: Path | None, data_dir: Path | None, *, everything: bool, as_json: bool) -> None:
    from rich.text import Text

    from node.cli.show import print_json, screen, table
    from node.config import explain, load_settings

    settings = load_settings(config=file, overrides={"data_dir": data_dir})
    rows = [row for row in explain(settings) if everything or row[2] != "default"]
    if as_json:
        told = [{"key": key, "value": shown, "source": source} for key, shown, source in rows]
        print_json({"settings": told, "notes": list(settings.notes)})
        return
    out = screen()
    if rows:
        out.print(table("SETTING", "VALUE", "SET BY", rows=rows))
    else:
        out.print("Nothing is set: all defaults. `octo-node config show --all` lists them.")
    for note in settings.notes:
        out.print(Text(f"Note: {note}", style="yellow"))
