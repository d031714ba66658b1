"""The `speech` engines: audio into text (faster-whisper), text into audio (espeak-ng, Flite).

Lives here: how a folder with a model becomes a `market.ports.WorkEngine` in supervised children, and which meter
counts for it. The libraries, the weights and the strangers' audio never touch this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from inference.devices import NO_CARDS, CardAccess
from inference.work.engine import SupervisedEngine, open_work_engine
from inference.work.speech_meters import SpeakMeter, TranscribeMeter
from inference.work.voice import load_voice_config
from market.work import Work

_VOICE_MEMORY_BYTES: Final = 512 * 1024 * 1024
_WHISPER_MEMORY_BYTES: Final = 2 * 1024**3
"""Libraries, 32 MiB of audio, five minutes of samples and their spectrum, beside the weights: 1.1 GB were seen."""


@asynccontextmanager
async def open_transcription_engine(
    folder: Path,
    *,
    packages: Path | None = None,
    cards: CardAccess = NO_CARDS,
    workers: int = 1,
    threads: int = 1,
    compute: str = "int8",
    beam: int = 5,
    hang_s: float = 120.0,
) -> AsyncIterator[SupervisedEngine]:
    """Speech to text by a Whisper model in CTranslate2's format; pieces are `market.work.Segment`s, as they are heard.

    `folder` holds model.bin, config.json, tokenizer.json and the vocabulary. `packages` is a folder with faster-whisper
    and what it needs, if they are not installed beside the node (`pip install --target`). It runs on one of `cards` if
    CTranslate2 can use it, else on the processor. `compute` is CTranslate2's type of arithmetic, `beam` how many
    readings are followed at once. Half a minute of audio must not take `hang_s`.
    Raises ModelFileInvalid; NodeMisconfigured if faster-whisper is not installed.
    """
    size = await asyncio.to_thread(_size_bytes, folder / "model.bin")
    async with open_work_engine(
        "inference.work.transcribe_runner",
        folder,
        works=frozenset((Work.TRANSCRIBE,)),
        meter=TranscribeMeter(),
        options={
            "packages": str(packages) if packages else "",
            "cards": bool(cards.devices),
            "compute": compute,
            "beam": beam,
        },
        readable=(packages,) if packages else (),
        cards=cards,
        workers=workers,
        slots=1,
        threads=threads,
        memory_bytes=_WHISPER_MEMORY_BYTES + 3 * size,
        hang_s=hang_s,
    ) as engine:
        yield engine


@asynccontextmanager
async def open_speaking_engine(
    folder: Path, *, workers: int = 1, hang_s: float = 30.0
) -> AsyncIterator[SupervisedEngine]:
    """Text to speech by the voice.json in `folder`; pieces are half a second of 16-bit mono PCM at its rate.

    Raises ModelFileInvalid for a bad voice.json; NodeMisconfigured if its library is not installed.
    """
    meter = SpeakMeter(await asyncio.to_thread(load_voice_config, folder))
    async with open_work_engine(
        "inference.work.speak_runner",
        folder,
        works=frozenset((Work.SPEAK,)),
        meter=meter,
        workers=workers,
        slots=1,
        memory_bytes=_VOICE_MEMORY_BYTES,
        hang_s=hang_s,
    ) as engine:
        yield engine


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
