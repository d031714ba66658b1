"""`octo-node doctor`: what would keep a node from starting here, and what to do about it."""

from __future__ import annotations

import ctypes
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from market.errors import OctoError
from node.cli.exits import FAILED
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from node.settings import Settings

Verdict = Literal["ok", "note", "bad"]
_MODEL_BYTES = 300 << 20  # the default model, its source, and room for books and logs

_VOICE_LIBRARIES = {"espeak-ng": "libespeak-ng.so.1", "Flite": "libflite.so.1"}


@click.command(short_help="Check that a node can run here.")
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Check settings, folder, disk, ports, engines and hardware, and say what to do about what is wrong."""
    from rich.text import Text

    from node.cli.show import facts, print_json, screen

    found = list(_findings(data_dir))
    healthy = all(verdict != "bad" for _, verdict, _ in found)
    if as_json:
        print_json({"ok": healthy, "findings": [{"what": w, "verdict": v, "detail": d} for w, v, d in found]})
    else:
        styles = {"ok": "green", "note": "yellow", "bad": "bold red"}
        screen().print(facts((what, Text(detail, style=styles[verdict])) for what, verdict, detail in found))
    if not healthy:
        click.get_current_context().exit(FAILED)


def _findings(data_dir: Path | None) -> Iterator[tuple[str, Verdict, str]]:
    try:
        settings = settings_of(data_dir)
    except OctoError as error:
        yield "settings", "bad", str(error)
        return
    yield from (("settings", "note", note) for note in settings.notes)
    yield "settings", "ok", "they hold"
    yield from _folder(settings)
    yield _checked("engine", _engine)
    yield from _other_engines(settings)
    yield _checked("hardware", _hardware)


def _folder(settings: Settings) -> Iterator[tuple[str, Verdict, str]]:
    from node.cli.show import size
    from node.folder import find_running, open_folder

    running = find_running(settings.data_dir)
    if running is not None:
        yield "node", "ok", f"one is running in {settings.data_dir}, process {running.pid}, API {running.api}"
        return
    if settings.data_dir.exists():
        try:
            with open_folder(settings.data_dir):
                yield "folder", "ok", f"{settings.data_dir} is free and yours"
        except OctoError as error:
            yield "folder", "bad", str(error)
    else:
        yield "folder", "ok", f"{settings.data_dir} will be made at the first start"
    place = next(p for p in (settings.data_dir, *settings.data_dir.parents) if p.exists())
    free = shutil.disk_usage(place).free
    enough = free >= _MODEL_BYTES
    yield "disk", "ok" if enough else "bad", f"{size(free)} free{'' if enough else ': the default model needs 300 MB'}"
    yield _port(settings)


def _port(settings: Settings) -> tuple[str, Verdict, str]:
    host, port = settings.api.host, settings.api.port
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return "API port", "ok", f"{host}:{port} is free"
    except OSError as error:
        if 0 in settings.api_ports():
            return "API port", "note", f"{host}:{port} is taken ({error.strerror}); another one will be used"
        return "API port", "bad", f"{host}:{port} cannot be used ({error.strerror}). Choose another with --port."


def _engine() -> str:
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__} loads"


def _other_engines(settings: Settings) -> Iterator[tuple[str, Verdict, str]]:
    """Nobody needs them all, so what is missing is a note. Looked for, not loaded: PyTorch alone takes seconds."""
    for what, modules, install in (
        ("ONNX", ("onnxruntime",), "onnxruntime"),
        ("hearing", ("faster_whisper",), "-e '.[speech]'"),
        ("images", ("diffusers", "torch"), "-e '.[diffusers]'"),
    ):
        named = " and ".join(modules).replace("_", "-")
        if all(find_spec(module) is not None or _is_in(settings.engine.packages, module) for module in modules):
            yield what, "ok", f"{named} {'is' if len(modules) == 1 else 'are'} here"
        else:
            yield what, "note", f"not here: .venv/bin/pip install {install}"
    voices = [name for name, library in _VOICE_LIBRARIES.items() if _is_here(library)]
    if voices:
        yield "speaking", "ok", f"{' and '.join(voices)} can be loaded"
    else:
        yield "speaking", "note", "not here: apt-get install libespeak-ng1, or libflite1"
    vllm = settings.vllm.python is not None
    yield "vLLM", "ok" if vllm else "note", "vllm.python names it" if vllm else "vllm.python names none: docs/vllm.md"


def _is_in(packages: Path | None, module: str) -> bool:
    return packages is not None and (packages / module).is_dir()


def _is_here(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _hardware() -> str:
    from inference.hardware import detect_hardware
    from node.cli.show import size

    found = detect_hardware()
    gpus = ", ".join(gpu.name for gpu in found.gpus) or "no GPU"
    return f"tier {found.tier}: {found.cores} cores, {size(found.ram_bytes)} RAM, {gpus}"


def _checked(what: str, check: Callable[[], str]) -> tuple[str, Verdict, str]:
    try:
        return what, "ok", check()
    except Exception as error:  # noqa: BLE001 - a broken native library fails in its own ways
        return what, "bad", f"{type(error).__name__}: {error}"
