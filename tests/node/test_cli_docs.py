"""docs/cli.md and the program say the same: every command, every option, every exit code, both ways."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from node.cli import main
from node.cli.exits import MEANINGS

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def options(command: click.Command) -> set[str]:
    shown = (p for p in command.params if isinstance(p, click.Option) and not p.hidden)
    return {name for option in shown for name in option.opts if name.startswith("--")}


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"(?m)^### `([^`]+)`\n", text)[1:]
    return {title: re.split(r"(?m)^## ", body)[0] for title, body in zip(parts[::2], parts[1::2], strict=True)}


PROGRAM = dict(commands(main, "octo-node"))


def test_the_docs_name_every_command_and_no_other() -> None:
    assert set(sections(DOCS)) == set(PROGRAM)


@pytest.mark.parametrize("name", PROGRAM)
def test_the_docs_name_every_option_and_no_other(name: str) -> None:
    body = sections(DOCS)[name].replace("`--json` prints the facts", "`--json`")
    assert set(re.findall(r"--[a-z][a-z-]*", body)) == options(PROGRAM[name])


def test_the_docs_name_every_exit_code_with_its_meaning() -> None:
    rows = dict(re.findall(r"(?m)^\| (\d+) \| (.+) \|$", DOCS))
    assert rows == {str(code): meaning for code, meaning in MEANINGS.items()}


@pytest.mark.parametrize("name", PROGRAM)
def test_every_command_speaks_json_and_explains_itself(name: str) -> None:
    command = PROGRAM[name]
    assert "--json" in options(command)
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option) and not option.hidden)
