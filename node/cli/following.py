"""A task's events on a terminal: text as it comes, what was heard and seen line by line, how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from node.cli.exits import NodeAnswered

Event = Mapping[str, Any]
_VECTORS_SHOWN, _NUMBERS_SHOWN = 10, 4


def follow(events: Iterable[Event], *, detach: bool = False, as_json: bool) -> dict[str, Any]:
    """Show what a task tells until its end, or until it is in the queue; how it stands then."""
    from node.cli.show import screen

    err = screen(stderr=True)
    bar = err.status("handed in") if err.is_terminal and not as_json else None
    task: dict[str, Any] = {}
    out = _Out(quiet=as_json)
    try:
        if bar is not None:
            bar.start()
        for event in events:
            task = dict(event if event["type"] == "state" else event.get("task") or task)
            if detach:
                break
            if bar is not None and event["type"] == "delta":
                bar.stop()  # text comes where the bar would be
            out.show(event)
            if bar is not None:
                bar.update(_standing(task, event))
    except KeyboardInterrupt:
        click.echo(f"\nThe task goes on; `octo-node tasks cancel {task.get('id', '')}` ends it.", err=True)
        raise
    finally:
        if bar is not None:
            bar.stop()
    if not detach:
        out.rest(task)
    if not task:
        raise NodeAnswered("the node broke off in the middle of its answer.", status=200)
    return task


class _Out:
    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said = False

    def show(self, event: Event) -> None:
        kind = event["type"]
        if self._quiet or kind not in ("begun", "delta", "segment", "finding"):
            return
        if kind != "begun":
            click.echo(_line(event), nl=kind != "delta")
        elif self._said:
            click.echo("\n[begun anew]", err=True)
        self._said = kind != "begun"

    def rest(self, task: Event) -> None:
        """A text that was whole before anybody followed it."""
        from node.cli.show import printable

        if self._quiet or self._said or task.get("work") != "chat" or not task.get("result"):
            return
        for choice in task["result"]["choices"]:
            click.echo(printable(choice["message"]["content"] or ""), nl=False)


def _line(event: Event) -> str:
    from node.cli.show import printable

    if event["type"] == "finding":
        box = event["box"]
        where = f"  {box['left']},{box['top']} {box['right']},{box['bottom']}" if box else ""
        return f"{event['score']:.2f}  {printable(event['label'])}{where}"
    if event["type"] == "segment":
        return f"{event['start']:8.2f}  {printable(event['text'].strip())}"
    return printable(event["text"])


def _standing(task: Event, event: Event) -> str:
    if event["type"] == "waiting":
        return f"failed, tried again in {event['again_in_s']:g} s"
    if task.get("position") is not None:
        return f"queued, {task['position']} before it"
    return f"{event.get('progress', 0)} %"


def tell_vectors(result: Mapping[str, Any]) -> None:
    """How embeddings begin: all of one fills a screen, and nobody reads it there."""
    vectors = [one["embedding"] for one in result["data"]]
    for vector in vectors[:_VECTORS_SHOWN]:
        first = ", ".join(f"{number:.4f}" for number in vector[:_NUMBERS_SHOWN])
        click.echo(f"[{first}, …]  {len(vector)} numbers")
    if len(vectors) > _VECTORS_SHOWN:
        click.echo(f"and {len(vectors) - _VECTORS_SHOWN} more vectors")
