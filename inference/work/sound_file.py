"""Speech on its way out to a listener: pieces of PCM into the file format that he asked for, as they come.

WAV and bare PCM need nothing. MP3, Opus, AAC and FLAC are written by PyAV (FFmpeg's libraries), where the extra
[speech] is installed; encoding raw samples is safe in the node's own process. A player begins with the first piece.
"""

from __future__ import annotations

import importlib
import io
from typing import Any, Final, Protocol

from inference.work.wav import wav_header
from market.errors import RequestInvalid

CONTENT_TYPES: Final = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
}
_CODECS: Final = {
    "mp3": ("mp3", "libmp3lame", "s16p", 0),
    "opus": ("ogg", "libopus", "s16", 48_000),
    "aac": ("adts", "aac", "fltp", 0),
    "flac": ("flac", "flac", "s16", 0),
}
"""Container, encoder, layout of samples, and the rate that it insists on."""
_BITS_PER_S: Final = 64_000
_OGG_PAGE_US: Final = "200000"  # of a second, where FFmpeg would wait for a whole one


class SoundWriter(Protocol):
    def feed(self, pcm: bytes) -> bytes:
        """What can be sent now; maybe nothing yet."""

    def end(self) -> bytes:
        """The rest."""


def open_writer(format: str, rate: int) -> SoundWriter:
    """For 16-bit mono PCM of `rate`. Raises RequestInvalid for a format that this node cannot write."""
    if format in ("wav", "pcm"):
        return _Plain(wav_header(rate, None) if format == "wav" else b"")
    if format not in _CODECS:
        raise RequestInvalid(
            f"there is no audio format {format[:20]!r}.",
            next_step=f"Ask for one of {', '.join(CONTENT_TYPES)}.",
            param="response_format",
        )
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise RequestInvalid(
            f"this node cannot write {format}.",
            next_step="Ask for wav or pcm; the node's owner adds the others: .venv/bin/pip install -e '.[speech]'.",
            param="response_format",
        ) from None
    return _Encoder(av, format, rate)


class _Plain:
    def __init__(self, head: bytes) -> None:
        self._head = head

    def feed(self, pcm: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + pcm

    def end(self) -> bytes:
        return self.feed(b"")


class _Encoder:
    def __init__(self, av: Any, format: str, rate: int) -> None:
        container, codec, layout, fixed = _CODECS[format]
        self._av, self._rate = av, rate
        self._file = _Outbox()
        options = {"page_duration": _OGG_PAGE_US} if container == "ogg" else {}
        self._container = av.open(self._file, "w", format=container, options=options)
        self._stream = self._container.add_stream(codec, rate=fixed or rate, layout="mono", format=layout)
        if format != "flac":
            self._stream.bit_rate = _BITS_PER_S
        self._resampler = av.AudioResampler(format=layout, layout="mono", rate=fixed or rate)

    def feed(self, pcm: bytes) -> bytes:
        frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
        frame.sample_rate = self._rate
        frame.planes[0].update(pcm.ljust(frame.planes[0].buffer_size, b"\0"))
        self._encode(frame)
        return self._file.take()

    def end(self) -> bytes:
        self._encode(None)
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.take()

    def _encode(self, frame: Any) -> None:
        for samples in self._resampler.resample(frame):
            self._container.mux(self._stream.encode(samples))


class _Outbox(io.RawIOBase):
    """A file that goes on the wire as it is written: no muxer can go back to fill in a length."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
