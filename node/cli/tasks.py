"""`octo-node tasks`: what was handed in with `run` or over the API, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from market.errors import OctoError
from node.cli.groups import DefaultGroup
from node.cli.options import data_dir_option, json_option, settings_of

_PATH = "/api/v1/inference"
_STATUSES = ("queued", "running", "done", "failed", "cancelled", "expired")


@click.group(cls=DefaultGroup, default="list", short_help="Tasks in the node's queue.")
def tasks() -> None:
    """Tasks that were handed in with `octo-node run` or over the API: how far they are, and their results.

    `octo-node tasks` alone lists them.
    """


@tasks.command("list")
@click.option("--status", type=click.Choice(_STATUSES), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many.")
@data_dir_option
@json_option
def list_tasks(*, status: str | None, limit: int, data_dir: Path | None, as_json: bool) -> None:
    """Tasks, the newest first."""
    from node.cli.show import moment, print_json, screen, table

    said = _node(data_dir).get(f"{_PATH}?limit={limit}" + (f"&status={status}" if status else ""))
    if as_json:
        print_json(said)
        return
    rows = [
        (
            task["id"],
            task["work"],
            task["model"][:40],
            task["mode"],
            _standing(task),
            moment(task["created_at"] * 1000),
        )
        for task in said["data"]
    ]
    if rows:
        columns = ("TASK", "WORK", "MODEL", "MODE", "STATUS", "SINCE")
        screen().print(table(*columns, rows=rows, whole=("TASK", "WORK", "MODE")))
    else:
        screen().print("No tasks. `octo-node run` hands one in.")


def _standing(task: Mapping[str, Any]) -> str:
    if task["position"] is not None:
        return f"{task['status']}, {task['position']} before it"
    return f"{task['status']}, {task['progress']} %" if task["status"] == "running" else str(task["status"])


@tasks.command("show")
@click.argument("id")
@data_dir_option
@json_option
def show_task(*, id: str, data_dir: Path | None, as_json: bool) -> None:
    """One task, its result included."""
    from node.cli.following import tell_vectors
    from node.cli.show import facts, octo, print_json, screen, size

    task = _node(data_dir).get(f"{_PATH}/{_named(id)}")
    if as_json:
        print_json(task)
        return
    names = ("status", "work", "model", "mode", "progress", "position", "attempts")
    rows: list[tuple[str, object]] = [(name, task[name]) for name in names if task[name] is not None]
    rows += [("paid", octo(task["amount"]))] + [("receipt", receipt) for receipt in task["receipts"]]
    if task["error"]:
        rows.append(("error", task["error"]["message"]))
    if task["content"]:
        rows.append(
            ("content", f"{size(task['content']['bytes'])} of {task['content']['type']}; `tasks save` writes it")
        )
    screen().print(facts(rows))
    if task["result"] is not None and task["work"] == "embed":
        tell_vectors(task["result"])
    elif task["result"] is not None:
        print_json(task["result"])


@tasks.command("follow")
@click.argument("id")
@data_dir_option
@json_option
def follow_task(*, id: str, data_dir: Path | None, as_json: bool) -> None:
    """Follow a task until its end."""
    from node.cli.following import follow
    from node.cli.show import print_json

    task = follow(_node(data_dir).listen(f"{_PATH}/{_named(id)}/stream"), as_json=as_json)
    if as_json:
        print_json(task)
    else:
        click.echo(f"\n{task['status']}", err=True)


@tasks.command("save")
@click.argument("id")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@data_dir_option
@json_option
def save_task(*, id: str, file: Path, data_dir: Path | None, as_json: bool) -> None:
    """Write a task's result, as it came, into FILE."""
    from node.cli.show import print_json

    data = _node(data_dir).get_bytes(f"{_PATH}/{_named(id)}/content")
    try:
        file.write_bytes(data)
    except OSError as error:
        raise OctoError(f"{file} cannot be written ({error.strerror}).") from None
    if as_json:
        print_json({"file": str(file), "bytes": len(data)})
    else:
        click.echo(f"{len(data)} bytes in {file}", err=True)


@tasks.command("cancel")
@click.argument("id")
@data_dir_option
@json_option
def cancel_task(*, id: str, data_dir: Path | None, as_json: bool) -> None:
    """End a task; its record stays."""
    _told(_node(data_dir).post(f"{_PATH}/{_named(id)}/cancel", {}, timeout_s=30.0), "cancelled", as_json=as_json)


@tasks.command("remove")
@click.argument("id")
@data_dir_option
@json_option
def remove_task(*, id: str, data_dir: Path | None, as_json: bool) -> None:
    """End a task if it runs, and forget it with its result. Receipts stay."""
    _told(_node(data_dir).delete(f"{_PATH}/{_named(id)}"), "removed", as_json=as_json)


def _told(said: Any, word: str, *, as_json: bool) -> None:
    from node.cli.show import print_json

    if as_json:
        print_json(said)
    else:
        click.echo(f"{word} {said['id']}")


def _node(data_dir: Path | None) -> Any:
    from node.cli.remote import find_node

    return find_node(settings_of(data_dir).data_dir)


def _named(id: str) -> str:
    """An id as it may stand in a path."""
    from urllib.parse import quote

    return quote(id, safe="")
