"""`octo-node run`: any kind of work, handed in from the terminal, followed until it is done."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from market.errors import OctoError
from node.cli.exits import NodeAnswered
from node.cli.following import follow, tell_vectors
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from node.cli.remote import Remote

_FILE_LIMIT_BYTES = 32 << 20
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff")
_PATH = "/api/v1/inference"
_WORKS = ("chat", "embed", "rerank", "transcribe", "speak", "image", "look")


@click.command(short_help="Have any kind of work done, and follow it.")
@click.argument("text", required=False)
@click.option("--model", default="default", show_default=True, help="A model's name or manifest CID.")
@click.option("--work", type=click.Choice(_WORKS), help="The kind of work (default: what the input shows).")
@click.option("--input", "given", metavar="JSON", help="The input as an object, in place of TEXT: see docs/api.md.")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An image, or audio.")
@click.option("--what", type=click.Choice(["detect", "classify", "read"]), help="What to look for in an image.")
@click.option("--mode", type=click.Choice(["realtime", "batch", "async"]), default="realtime", show_default=True,
              help="How urgent it is; the less, the cheaper.")  # fmt: skip
@click.option("--privacy", type=click.Choice(["public", "shared", "confidential", "private"]), help="Who may see it.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--seed", type=int, help="The same seed draws the same answer or picture.")
@click.option("--key", metavar="TEXT", help="Run twice with the same key, it is one task.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the result goes: sound, pictures, JSON."
)
@click.option("--detach", is_flag=True, help="Only hand it in; `octo-node tasks` shows how it goes on.")
@data_dir_option
@json_option
def run(
    *,
    text: str | None,
    model: str,
    given: str | None,
    file: Path | None,
    what: str | None,
    key: str | None,
    out: Path | None,
    detach: bool,
    data_dir: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Have work done on TEXT (`-`: standard input), on an object of --input, or on a --file.

    The task is on the node's disk from the beginning: Ctrl-C leaves it to go on.
    """
    from node.cli.remote import find_node

    node = find_node(settings_of(data_dir).data_dir)
    body: dict[str, Any] = {"model": model, "input": _input(text, given, file, what)}
    body |= {name: said for name, said in options.items() if said is not None}
    task = _submit(node, body, file, key, detach=detach, as_json=as_json)
    if detach and not as_json:
        click.echo(task["id"])
        return
    if out is not None and task["status"] == "done":
        _write(node, task, out)
    _tell(task, out, as_json=as_json)


def _input(text: str | None, given: str | None, file: Path | None, what: str | None) -> Any:
    if (text is not None) + (given is not None) > 1 or (text is None and given is None and file is None):
        raise click.UsageError("Give TEXT, or --input, or --file.")
    if given is not None:
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            raise click.UsageError("--input is no JSON.") from None
        return {**parsed, "what": what} if what is not None and isinstance(parsed, dict) else parsed
    if text is not None:
        return sys.stdin.read() if text == "-" else text
    if what is None and file is not None and _is_image(file):
        raise click.UsageError("Say what to look for in the image: --what detect, classify or read.")
    return {} if what is None else {"what": what}


def _is_image(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(8).startswith(_IMAGES)


def _submit(
    node: Remote, body: Mapping[str, Any], file: Path | None, key: str | None, *, detach: bool, as_json: bool
) -> dict[str, Any]:
    from node.cli.remote import Form

    request = {**body, "stream": True}
    headers = {"Idempotency-Key": key} if key else {}
    if file is None:
        events = node.stream(_PATH, request, headers=headers)
    else:
        if file.stat().st_size > _FILE_LIMIT_BYTES:
            raise click.UsageError(f"{file} has more than {_FILE_LIMIT_BYTES} bytes.")
        events = node.stream(_PATH, Form("request", json.dumps(request), file.read_bytes()), headers=headers)
    return follow(events, detach=detach, as_json=as_json)


def _write(node: Remote, task: Mapping[str, Any], out: Path) -> None:
    """Pictures as files of their own, `name-2.png` and so on; anything else as it is."""
    data = node.get_bytes(task["content"]["path"])
    files = [(out, data)]
    if task["work"] == "image":
        pictures = [base64.b64decode(picture["b64_json"]) for picture in json.loads(data)["data"]]
        names = [out, *(out.with_stem(f"{out.stem}-{n}") for n in range(2, len(pictures) + 1))]
        files = list(zip(names, pictures, strict=True))
    try:
        for path, content in files:
            path.write_bytes(content)
    except OSError as error:
        raise OctoError(
            f"{out} cannot be written ({error.strerror}).",
            next_step=f"The result is kept: `octo-node tasks save {task['id']} FILE`.",
        ) from None


def _tell(task: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    from rich.text import Text

    from node.cli.show import octo, print_json, screen, size

    if as_json:
        print_json(task)
    if task["status"] in ("failed", "cancelled", "expired"):
        error = task["error"] or {}
        raise NodeAnswered(
            error.get("message") or f"the task is {task['status']}.", status=200, remote_code=error.get("code") or ""
        )
    if as_json:
        return
    err = screen(stderr=True)
    if task["work"] == "chat":
        click.echo()
    elif task["work"] == "rerank" and task["result"]:
        for ranked in task["result"]["results"]:
            click.echo(f"{ranked['relevance_score']:8.3f}  document {ranked['index']}")
    elif task["work"] == "embed" and task["result"] and out is None:
        tell_vectors(task["result"])
    if out is not None:
        err.print(f"Written to {out}.", soft_wrap=True)
    elif task["work"] in ("embed", "speak", "image"):
        told = f"The result is {size(task['content']['bytes'])}: `octo-node tasks save {task['id']} FILE`."
        err.print(told, soft_wrap=True)
    unit = "tokens" if task["work"] == "chat" else "units"
    units = task["usage"]
    told = f"{task['id']} · {units['units_in']} {unit} in, {units['units_out']} out · {octo(task['amount'])}"
    err.print(Text(told, style="dim"))
    for receipt in task["receipts"]:
        err.print(Text(f"receipt {receipt}", style="dim"))
