"""What this machine was measured to do, kept in the data folder: by hardware, model and engine version.

Lives here: the file, its key, and what a start makes of it. Another machine, another model or another version of the
engine finds nothing: a figure never outlives what it was measured on. Reads and writes one JSON file; measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import structlog
from pydantic import Field

from inference.hardware import Hardware, cpu_name
from inference.measuring import Measured
from inference.speed import PROMPT_TOKENS, Speed
from inference.tuning import Setup
from market.errors import EncodingInvalid
from market.values import from_plain, to_plain, value
from node.folder import write_whole
from node.settings import EngineSettings

FILE: Final = "measurements.json"
_LIMIT_BYTES: Final = 1 << 20
_ENTRIES_LIMIT: Final = 256
_ENGINE_PACKAGE: Final = "llama-cpp-python"
_GIB: Final = 1 << 30
SLOTS_A_THREAD: Final = 8

log = structlog.get_logger()


@value
class Entry:
    """`hardware` and `engine` say in words what `key` says in a hash. `tuned` is None until somebody tuned."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    model: Annotated[str, Field(max_length=128)]
    hardware: Annotated[str, Field(max_length=1024)]
    engine: Annotated[str, Field(max_length=128)]
    measured_ms: Annotated[int, Field(ge=0)]
    setup: Setup
    measured: Measured | None = None
    tuned: Setup | None = None


@value
class _Book:
    version: Annotated[int, Field(ge=1, le=1)] = 1
    entries: Annotated[tuple[Entry, ...], Field(max_length=_ENTRIES_LIMIT)] = ()


def hardware_words(hardware: Hardware, cpu: str | None = None) -> str:
    """What decides how fast this machine is, in a line; memory in whole GiB, since a kernel update moves some MiB."""
    cards = [f"{gpu.name} {gpu.vram_bytes // _GIB} GiB" for gpu in hardware.gpus]
    name = re.sub(r"\s+", " ", cpu_name() if cpu is None else cpu)
    parts = [f"{name or hardware.isa}, {hardware.isa}", f"{hardware.cores} cores", f"{hardware.ram_bytes // _GIB} GiB"]
    return "; ".join([*parts, *cards])[:1024]


def engine_version() -> str:
    return f"llama.cpp/{metadata.version(_ENGINE_PACKAGE)}"


def key_of(hardware: str, model: str, engine: str) -> str:
    return hashlib.sha256("\n".join((hardware, model, engine)).encode()).hexdigest()[:32]


def load_entries(data_dir: Path) -> dict[str, Entry]:
    """By key, oldest first. Blocking. A file that is torn, or of a later version, counts as none."""
    try:
        with (data_dir / FILE).open("rb") as file:
            plain = json.loads(file.read(_LIMIT_BYTES))
        book = from_plain(_Book, plain)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, EncodingInvalid) as error:
        log.warning("measurements_unreadable", file=FILE, why=type(error).__name__)
        return {}
    return {entry.key: entry for entry in book.entries}


def save_entry(data_dir: Path, entry: Entry) -> None:
    """Blocking. Beside what is known of other machines and models; the oldest go first. Raises DiskFull,
    NodeMisconfigured."""
    entries = {key: known for key, known in load_entries(data_dir).items() if key != entry.key} | {entry.key: entry}
    book = _Book(entries=tuple(entries.values())[-_ENTRIES_LIMIT:])
    write_whole(data_dir / FILE, (json.dumps(to_plain(_Book, book), indent=2) + "\n").encode())


def remembered(data_dir: Path, *, hardware: Hardware, model: str) -> Entry | None:
    """What was measured here, of this model, with this version of the engine. Blocking."""
    return load_entries(data_dir).get(key_of(hardware_words(hardware), model, engine_version()))


def setup_for(settings: EngineSettings, entry: Entry | None, *, model: str, cores: int) -> Setup:
    """What the settings name, or else what the tuner found, or else all cores by twos: on two, one worker of two
    threads made 954 tokens/s of 16 streams where two of one thread made 716, and a lone one is as fast."""
    if (
        entry is not None
        and entry.tuned is not None
        and not settings.model_fields_set & {"workers", "threads", "slots"}
    ):
        return replace(entry.tuned, model=model)
    threads = settings.threads or max(1, min(2, cores // (settings.workers or 1)))
    return Setup(
        model=model,
        workers=settings.workers or max(1, cores // threads),
        threads=threads,
        slots=settings.slots or SLOTS_A_THREAD * threads,
    )


def known_speed(setup: Setup, entry: Entry | None) -> Speed | None:
    """Of a lone stream, if it was measured with this very setup; None: measure it."""
    if entry is None or entry.measured is None or replace(entry.setup, model=setup.model) != setup:
        return None
    rate, wait = entry.measured.tokens_per_s.get("1"), entry.measured.first_token_ms.get(str(PROMPT_TOKENS))
    return None if rate is None or wait is None else Speed(tokens_per_s=rate, first_token_ms=wait)
