"""`octo-node chat`: talk to a model through this machine's node, and see what it cost and who answered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market.errors import OctoError
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from node.cli.remote import Remote


@click.command(short_help="Talk to a model through this node.")
@click.argument("prompt", required=False)
@click.option("--model", default="default", show_default=True, help="A model's name or manifest CID.")
@click.option("--system", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.6, show_default=True,
              help="0 always takes the likeliest token.")  # fmt: skip
@click.option("--seed", type=int, help="The same seed draws the same answer.")
@click.option("--privacy", type=click.Choice(["public", "shared", "confidential", "private"]), help="Who may see it.")
@data_dir_option
@json_option
def chat(
    *,
    prompt: str | None,
    model: str,
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    privacy: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask PROMPT, or talk line by line without one. `-` reads the prompt from standard input.

    After each answer: who gave it, what it cost, and its receipt.
    """
    from node.cli.remote import find_node

    node = find_node(settings_of(data_dir).data_dir)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    request: dict[str, Any] = {"model": model, **{name: given for name, given in options.items() if given is not None}}
    if privacy is not None:
        request["octo"] = {"privacy": privacy}
    messages = [{"role": "system", "content": system}] if system else []
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is not None:
        _turn(node, request, [*messages, {"role": "user", "content": prompt}], as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--json wants a PROMPT.")
    _talk(node, request, messages)


def _talk(node: Remote, request: Mapping[str, Any], messages: list[dict[str, str]]) -> None:
    import readline  # noqa: F401 - arrow keys and history at the prompt

    click.echo(click.style("An empty line or Ctrl-D ends the conversation.", dim=True), err=True)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        try:
            answer = _turn(node, request, messages, as_json=False)
        except OctoError as error:  # one bad turn does not end a conversation
            click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})


def _turn(node: Remote, request: Mapping[str, Any], messages: list[dict[str, str]], *, as_json: bool) -> str:
    from rich.text import Text

    from node.cli.show import octo, print_json, printable, screen
    from node.cli.streaming import Wrapped

    out = screen()
    wrapped = Wrapped(out) if out.is_terminal else None
    text, finish = "", ""
    facts: dict[str, Any] = {}
    body = {**request, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    for event in node.stream("/v1/chat/completions", body):
        for choice in event.get("choices", ()):
            piece = choice.get("delta", {}).get("content") or ""
            text += piece
            finish = choice.get("finish_reason") or finish
            if wrapped is not None and not as_json:
                wrapped.write(piece)
            elif not as_json:
                click.echo(printable(piece), nl=False)
        facts = event.get("octo") or facts
    if as_json:
        print_json({"answer": text, "finish": finish, **facts})
        return text
    if wrapped is not None:
        wrapped.end()
    else:
        click.echo()
    err = screen(stderr=True)
    tokens = f"{facts['tokens_in']} tokens in, {facts['tokens_out']} out"
    told = f"{facts['provider'][-8:]} · {tokens} · {octo(facts['amount'])} · {printable(facts['because'])}"
    err.print(Text(told, style="dim"))
    err.print(Text(f"receipt {facts['receipt']}", style="dim"))
    return text
