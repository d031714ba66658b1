"""`octo-node answers`: answers that are told again instead of being generated anew, and vectors not bought twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.groups import DefaultGroup
from node.cli.options import data_dir_option, json_option, settings_of


@click.group(cls=DefaultGroup, default="show", short_help="Answers that are told again, and forgetting them.")
def answers() -> None:
    """Answers from a cache: those that this node keeps for others, and those that others keep for it.

    `octo-node answers` alone shows them.
    """


@answers.command("show")
@data_dir_option
@json_option
def show_answers(data_dir: Path | None, as_json: bool) -> None:
    """What this node keeps, and how often an answer was told again."""
    from node.cli.remote import find_node
    from node.cli.show import facts, print_json, screen, size

    said = find_node(settings_of(data_dir).data_dir).get("/api/v1/answers")
    if as_json:
        print_json(said)
        return
    kept, bought = said["keeps"], said["bought"]
    rows: list[tuple[str, object]] = [
        ("bought", f"{bought['told_again']} of {bought['asked']} came from a cache"),
    ]
    if kept is None:
        rows.append(("keeps", "nothing: engine.response_cache is 0"))
    else:
        looked = kept["hits"] + kept["misses"]
        rows.append(("keeps", f"{kept['answers']} answers, {size(kept['size_bytes'])} of {size(kept['limit_bytes'])}"))
        rows.append(("told again", f"{kept['hits']} of {looked} times somebody looked"))
        if kept["damaged"]:
            rows.append(("damaged", f"{kept['damaged']} thrown away: not what was signed for"))
    rows.extend(_vectors(said["vectors"]))
    screen().print(facts(rows))


def _vectors(kept: dict[str, Any] | None) -> list[tuple[str, object]]:
    from node.cli.show import size

    if kept is None:
        return [("vectors", "none: routing.embedding_cache is 0")]
    looked = kept["hits"] + kept["misses"]
    held = f"{kept['vectors']} kept, {size(kept['size_bytes'])} of {size(kept['limit_bytes'])}"
    rows: list[tuple[str, object]] = [("vectors", held), ("not bought again", f"{kept['hits']} of {looked} texts")]
    if kept["damaged"]:
        rows.append(("vectors damaged", f"{kept['damaged']} thrown away: not what was written"))
    return rows


@answers.command("forget", short_help="Throw away what is kept, here and by others.")
@click.option("--vectors", "vectors_only", is_flag=True, help="Only the vectors that this node bought and keeps.")
@data_dir_option
@json_option
def forget_answers(vectors_only: bool, data_dir: Path | None, as_json: bool) -> None:
    """Throw away what this node keeps, and have others throw away what they keep because it asked.

    Who cannot be reached keeps it until it is too old, but this node will not find it: it takes a new key.
    """
    from node.cli.remote import find_node
    from node.cli.show import print_json, printable, screen

    only = "?only=vectors" if vectors_only else ""
    said = find_node(settings_of(data_dir).data_dir).post(f"/api/v1/answers/forget{only}", {}, timeout_s=60.0)
    if as_json:
        print_json(said)
        return
    for who, count in said["forgotten"].items():
        what = {"here": "forgotten here", "vectors": "vectors forgotten"}.get(who, f"forgotten by {who}")
        screen().print(f"{count} {what}", soft_wrap=True)
    for who, why in said["not_reached"].items():
        screen().print(printable(f"not reached: {who}: {why}"), soft_wrap=True)
    if not said["forgotten"] and not said["not_reached"]:
        screen().print("Nobody keeps any.")
