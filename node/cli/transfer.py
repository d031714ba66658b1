"""A bar for what moves bytes, where there is a terminal to draw it on; the result, where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from node.cli.exits import NodeAnswered


def follow(events: Iterable[Mapping[str, Any]], *, doing: str, as_json: bool) -> dict[str, Any]:
    """Read a stream of `{"progress": …}` until `{"done": …}` and return what was done."""
    from node.cli.show import printable, screen

    err = screen(stderr=True)
    if as_json or not err.is_terminal:
        for event in events:
            if "done" in event:
                return dict(event["done"])
        raise _broke_off()
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(28), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(doing, total=None, told="")
        for event in events:
            if "done" in event:
                return dict(event["done"])
            progress = event["progress"]
            total = progress["total_bytes"] or None
            what = f"{doing} {printable(progress['what'])[-20:]}"
            bars.update(task, description=what, completed=progress["done_bytes"], total=total, told=_told(progress))
    raise _broke_off()


def _told(progress: Mapping[str, Any]) -> str:
    """`54.1 MB of 92.0 MB, 120.4 MB/s, 2 sources, 1 s left`"""
    from node.cli.show import size, span

    done, total = progress["done_bytes"], progress["total_bytes"]
    parts = [f"{size(done)} of {size(total)}" if total else size(done)]
    if progress["rate_bytes_per_s"]:
        parts.append(f"{size(int(progress['rate_bytes_per_s']))}/s")
    sources = len(progress["sources"])
    if sources:
        parts.append(f"{sources} source{'s' if sources > 1 else ''}")
    if progress["eta_s"] is not None:
        parts.append(f"{span(progress['eta_s'])} left")
    return ", ".join(parts)


def _broke_off() -> NodeAnswered:
    return NodeAnswered("the node broke off in the middle of its answer.", status=200)
