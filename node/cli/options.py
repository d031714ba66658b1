"""Options that many commands share, and the settings behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from node.cli.remote import Remote
    from node.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_JSON = "octo.json"


def json_option(command: F) -> F:
    """`--json`: the same facts for programs. An error then is JSON too: `{"error": {…}}`."""

    def keep(ctx: click.Context, _option: click.Parameter, given: bool) -> bool:
        ctx.meta[_JSON] = given
        return given

    return click.option("--json", "as_json", is_flag=True, callback=keep, help="Print JSON, for programs.")(command)


def wants_json(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_JSON))


def data_dir_option(command: F) -> F:
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="The node's folder (default: OCTO_DATA_DIR, else ~/.octo).",
    )(command)


def config_option(command: F) -> F:
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A TOML, YAML or JSON file (default: OCTO_CONFIG, else config.* in the data folder).",
    )(command)


def settings_of(data_dir: Path | None) -> Settings:
    """The settings that a node in this folder would have; raises NodeMisconfigured."""
    from node.config import load_settings

    return load_settings(overrides={"data_dir": data_dir})


def reference_here(reference: str) -> str:
    """A model's reference, for a node that may stand in another folder: a path that is there becomes a whole one."""
    from node.settings import whole_reference

    if "/" in reference and ":" not in reference and Path(reference).exists():
        return str(Path(reference).absolute())
    return whole_reference(reference)


def open_node_to_ask(data_dir: Path | None, *, join: Sequence[str] = ()) -> AbstractContextManager[Remote]:
    """The running node, or one for the length of a command; see `node.cli.own_node`, which is loaded only now."""
    from node.cli import own_node

    return own_node.open_node_to_ask(data_dir, join=join)
