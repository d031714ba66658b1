"""Audio files into samples, inside the child: some at a time, never more than the file's headers promise.

Lives here: PyAV (FFmpeg's libraries), held to the four formats that `audio` reads. A file whose frames decode to more
than was counted is refused where it passes that mark, before the rest is decoded.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.work.audio import AudioFacts
from market.errors import RequestInvalid

av: Final[Any] = importlib.import_module("av")  # the extra [speech]
for _module in pkgutil.walk_packages(av.__path__, "av."):
    importlib.import_module(_module.name)  # it imports its parts when a file needs them, and then it is too late

RATE: Final = 16_000
TOLERANCE: Final = 0.02
_SLACK_SAMPLES: Final = RATE // 10
"""A frame more at the end, and what resampling adds."""
_CODECS: Final = ("pcm_", "flac", "vorbis", "opus", "mp3")


class Decoder:
    """Samples at 16 kHz, mono, float32 in -1 to 1."""

    def __init__(self, blob: bytes, facts: AudioFacts) -> None:
        """Raises RequestInvalid."""
        self._limit = round(facts.duration_ms * RATE / 1000 * (1 + TOLERANCE)) + _SLACK_SAMPLES
        self._frames = self._open(blob, facts.kind)
        self._decoded = 0
        self._left = np.zeros(0, np.int16)

    def read(self, count: int) -> NDArray[np.float32]:
        """`count` samples, fewer only at the end. Raises RequestInvalid."""
        parts, have = [self._left], len(self._left)
        while have < count and (samples := self._next()) is not None:
            parts.append(samples)
            have += len(samples)
        whole = np.concatenate(parts)
        self._left = whole[count:].copy()
        return whole[:count].astype(np.float32) / np.float32(32768)

    def _next(self) -> NDArray[np.int16] | None:
        try:
            samples = next(self._frames, None)
        except av.error.FFmpegError:
            raise RequestInvalid("the audio cannot be decoded: it is damaged.", param="file") from None
        if samples is not None:
            self._decoded += len(samples)
        if self._decoded > self._limit:
            raise RequestInvalid(
                "the audio is longer than its headers say.", next_step="Convert it anew.", param="file"
            )
        return samples

    def _open(self, blob: bytes, kind: str) -> Iterator[NDArray[np.int16]]:
        try:
            container = av.open(io.BytesIO(blob), format=kind, metadata_errors="ignore")
        except av.error.FFmpegError:
            raise RequestInvalid("the audio cannot be decoded.", param="file") from None
        streams = container.streams.audio
        if len(streams) != 1 or not streams[0].codec_context.name.startswith(_CODECS):
            raise RequestInvalid("the audio is coded in a way that is not read here.", param="file")
        return _samples(container)


def _samples(container: Any) -> Iterator[NDArray[np.int16]]:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    for frame in container.decode(audio=0):
        frame.pts = None  # gaps in its clock are no samples
        for done in resampler.resample(frame):
            yield done.to_ndarray().reshape(-1)
    for done in resampler.resample(None):
        yield done.to_ndarray().reshape(-1)
