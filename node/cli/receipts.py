"""`octo-node receipts`: what was bought and served, and whether a receipt holds.

`verify` needs no node, no network and no data folder: all it knows is in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from node.cli.exits import BROKEN
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from market.ports import Tokenizer
    from verifier.examination import Examination
    from verifier.receipt_file import ReceiptFile

_LIST_LIMIT = 500  # what the API gives at once
_ROOM_FOR_A_CID = 140
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(short_help="List, show, save and verify receipts.")
def receipts() -> None:
    """Receipts: a provider's signed statement of what it ran, how many tokens, and what it cost."""


@receipts.command("list")
@click.option(
    "--limit", type=click.IntRange(1, _LIST_LIMIT), default=20, show_default=True, help="How many, newest first."
)
@click.option("--all", "every_step", is_flag=True, help="Every payment step, not the last one of each task only.")
@data_dir_option
@json_option
def list_receipts(limit: int, every_step: bool, data_dir: Path | None, as_json: bool) -> None:
    """The newest receipts of this node, bought and served."""
    from node.cli.remote import find_node
    from node.cli.show import bare, moment, print_json, screen, table

    wanted = limit if every_step else _LIST_LIMIT
    found = find_node(settings_of(data_dir).data_dir).get(f"/api/v1/receipts?limit={wanted}")["receipts"]
    if not every_step:
        newest = {(receipt["task"], receipt["role"]): receipt for receipt in reversed(found)}
        found = [receipt for receipt in found if newest[receipt["task"], receipt["role"]] is receipt][:limit]
    if as_json:
        print_json({"receipts": found})
        return
    rows = [
        (
            moment(r["ended_ms"]),
            *(("bought from", r["provider"][-8:]) if r["role"] == "client" else ("served to", r["client"][-8:])),
            r["tokens_in"],
            r["tokens_out"],
            r["unit"],
            bare(r["amount"]),
            r["finish"] or "not final",
            r["receipt"],
        )
        for r in found
    ]
    if not rows:
        screen().print("No receipts yet. `octo-node chat` buys an answer.")
        return
    out = screen()
    if out.width < _ROOM_FOR_A_CID:  # a CID in two pieces cannot be copied
        for when, way, peer, units_in, units_out, unit, price, end, cid in rows:
            out.print(cid)
            out.print(f"  {when}  {way} {peer}: {units_in} {unit} in, {units_out} out, {price} OCTO, {end}")
        return
    columns = ("WHEN", "", "PEER", "IN", "OUT", "OF", "OCTO", "END", "RECEIPT")
    out.print(table(*columns, rows=rows, right=("IN", "OUT")))


@receipts.command("show")
@click.argument("cid")
@data_dir_option
@json_option
def show_receipt(cid: str, data_dir: Path | None, as_json: bool) -> None:
    """What a receipt says, and whether it holds."""
    from verifier.examination import examine
    from verifier.receipt_file import parse

    file = parse(_download(cid, data_dir))
    examination = examine(file)
    _show(file, examination, as_json=as_json)
    _end(examination)


@receipts.command("save")
@click.argument("cid")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
@data_dir_option
@json_option
def save_receipt(cid: str, output: Path, data_dir: Path | None, as_json: bool) -> None:
    """Save a receipt as a file that anybody can verify offline."""
    from node.cli.show import print_json
    from node.folder import write_whole

    data = _download(cid, data_dir)
    write_whole(output, data, mode=0o644)
    if as_json:
        print_json({"cid": cid, "file": str(output), "bytes": len(data)})
    else:
        click.echo(f"{output}: {len(data)} bytes. Check it anywhere: octo-node receipts verify {output}")


@receipts.command()
@click.argument("file", type=_FILE)
@click.option("--answer", help="The answer as it was shown, to compare with the hashes in the receipt.")
@click.option("--answer-file", type=_FILE, help="The same, in a file (compared to the last byte).")
@click.option("--stop", multiple=True, help="A stop string of the request; may be given again.")
@click.option("--prompt-file", type=_FILE,
              help="JSON of the request with its messages and tools, or plain text of one user message.")  # fmt: skip
@click.option("--model-dir", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A data folder with the model's tokenizer: checks token ids and the prompt.")  # fmt: skip
@click.option("--network", help="The network that it should be about.")
@click.option("--provider", help="The peer id that should have signed it.")
@click.option("--client", help="The peer id that should have bought it.")
@json_option
def verify(
    *,
    file: Path,
    answer: str | None,
    answer_file: Path | None,
    stop: tuple[str, ...],
    prompt_file: Path | None,
    model_dir: Path | None,
    network: str | None,
    provider: str | None,
    client: str | None,
    as_json: bool,
) -> None:
    """Check a receipt file, offline: no node, no network, no data folder.

    Prints what holds, what is broken and what the file alone cannot tell. Ends with 0 if nothing is
    broken, 4 if something is.
    """
    if answer is not None and answer_file is not None:
        raise click.UsageError("--answer and --answer-file: give one of them.")
    if prompt_file is not None and model_dir is None:
        raise click.UsageError("--prompt-file needs --model-dir: the model's tokenizer turns a prompt into token ids.")
    from market.errors import EncodingInvalid
    from node.cli.show import print_json
    from verifier.examination import examine
    from verifier.receipt_file import parse

    if answer_file is not None:
        answer = answer_file.read_bytes().decode("utf-8", "replace")
    try:
        parsed = parse(_read(file))
        receipt = parsed.receipt.read()
    except EncodingInvalid as error:
        if as_json:
            print_json({"ok": False, "findings": [{"what": "file", "verdict": "broken", "detail": error.message}]})
        else:
            click.echo(f"BROKEN: {file} is no receipt file, or a damaged one: {error.message}")
        click.get_current_context().exit(BROKEN)
    extra: dict[str, Any] = {}
    if model_dir is not None:
        from node.cli.tokenizing import tokenizer_in

        tokenizer = tokenizer_in(model_dir, receipt.model)
        extra["token_bytes"] = tokenizer.token_bytes
        if prompt_file is not None:
            extra["prompt_ids"] = _prompt_ids(tokenizer, prompt_file)
    examination = examine(parsed, network=network, provider=provider, client=client, answer=answer, stop=stop, **extra)
    _show(parsed, examination, as_json=as_json)
    _end(examination)


def _show(file: ReceiptFile, examination: Examination, *, as_json: bool) -> None:
    from market.record import unit_of
    from node.cli import examination as shown
    from node.cli.show import facts, moment, octo, print_json, screen

    cid = file.receipt.cid()
    try:
        receipt = file.receipt.read()
    except Exception:  # noqa: BLE001 - the findings say what is wrong with it
        receipt = None
    if as_json:
        said = {} if receipt is None else {
            "network": receipt.network, "provider": receipt.provider, "client": receipt.client,
            "model": receipt.model, "weights": receipt.weights, "engine": receipt.engine, "final": receipt.final,
            "finish": receipt.finish, "tokens_in": receipt.tokens_in, "tokens_out": receipt.tokens_out,
            "unit": unit_of(file.pieces),
            "amount": str(receipt.amount), "started_ms": receipt.started_ms, "ended_ms": receipt.ended_ms,
        }  # fmt: skip
        print_json({"cid": cid, "receipt": said, **shown.facts(examination)})
        return
    out = screen()
    if receipt is not None:
        out.print(
            facts(
                [
                    ("receipt", cid),
                    ("provider", receipt.provider),
                    ("client", receipt.client),
                    ("model", receipt.model),
                    (unit_of(file.pieces), f"{receipt.tokens_in} in, {receipt.tokens_out} out"),
                    ("price", octo(receipt.amount)),
                    ("ended", f"{moment(receipt.ended_ms)} ({receipt.finish or 'not final'})"),
                ]
            )
        )
        out.print()
    out.print(shown.findings_table(examination))
    out.print()
    out.print(shown.summary(examination))


def _end(examination: Examination) -> None:
    if not examination.ok:
        click.get_current_context().exit(BROKEN)


def _download(cid: str, data_dir: Path | None) -> bytes:
    from node.cli.remote import find_node

    return find_node(settings_of(data_dir).data_dir).get_bytes(f"/api/v1/receipts/{quote(cid, safe='')}")


def _read(file: Path) -> bytes:
    from verifier.receipt_file import FILE_LIMIT_BYTES

    with file.open("rb") as opened:
        return opened.read(FILE_LIMIT_BYTES + 1)


def _prompt_ids(tokenizer: Tokenizer, file: Path) -> tuple[int, ...]:
    """Of `{"messages": […], "tools": […], …}` or `[…]`, made a prompt of as the API does; or of plain text, which is
    one user message."""
    import json

    from market.task import ChatMessage
    from node.api.openai_shapes import parse_chat
    from node.api.tool_forms import FORMS

    text = file.read_bytes().decode("utf-8", "replace")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        plain = None
    said = plain if isinstance(plain, dict) else {"messages": plain}
    if not isinstance(said.get("messages"), list):
        return tokenizer.render([ChatMessage(role="user", content=text)])
    asked = parse_chat(json.dumps({"model": "any", **{key: said[key] for key in _OF_A_PROMPT if key in said}}).encode())
    messages, tools = asked.told(FORMS[tokenizer.call_form])
    return tokenizer.render(messages, tools)


_OF_A_PROMPT = ("messages", "tools", "tool_choice", "parallel_tool_calls")
