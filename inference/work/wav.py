"""WAV, read and written: RIFF chunks around linear PCM or IEEE float.

Source: Microsoft and IBM, Multimedia Programming Interface and Data Specifications 1.0; WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import struct
from typing import Final

from inference.work.audio_bytes import AudioBytes, Length

_CHUNK: Final = struct.Struct("<4sI")
_FORMAT: Final = struct.Struct("<HHIIHH")
_TAG: Final = struct.Struct("<H")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BITS: Final = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_CHUNKS_LIMIT: Final = 1024
_STREAMED: Final = 0x7FFF_0000
"""Who writes before he knows the length puts -1 there, or (espeak-ng) nearly 2^31; then all that follows is sound."""


def read_wav(audio: AudioBytes) -> Length:
    """Raises RequestInvalid. A data chunk of length 0 at the end counts as streamed too, if bytes follow it."""
    at, block, rate = 12, 0, 0
    for _ in range(_CHUNKS_LIMIT):
        name, size = audio.unpack(_CHUNK, at, "its chunks")
        at += _CHUNK.size
        if name == b"fmt ":
            block, rate = _read_format(audio, at, size)
        elif name == b"data":
            if not block:
                raise audio.refused("the sound comes before its format")
            left = len(audio.data) - at
            if size >= _STREAMED or (size == 0 and left >= block):
                size = left
            if size > left:
                raise audio.cut_off("the sound")
            return Length(samples=size // block, rate=rate)
        at += size + size % 2
    raise audio.refused(f"no sound within {_CHUNKS_LIMIT} chunks")


def _read_format(audio: AudioBytes, at: int, size: int) -> tuple[int, int]:
    """Bytes of a sample over all channels; samples a second."""
    if size < _FORMAT.size:
        raise audio.cut_off("its format")
    tag, channels, rate, _, block, bits = audio.unpack(_FORMAT, at, "its format")
    if tag == _EXTENSIBLE and size >= 40:
        (tag,) = audio.unpack(_TAG, at + 24, "its format")
    if bits not in _BITS.get(tag, ()):
        raise audio.refused(f"its coding {tag:#06x} of {bits} bits is neither PCM nor float")
    audio.check(rate=rate, channels=channels)
    if block != channels * bits // 8:
        raise audio.refused(f"{channels} channels of {bits} bits do not take {block} bytes")
    return block, rate


def wav_header(rate: int, data_bytes: int | None) -> bytes:
    """44 bytes before 16-bit mono PCM. `data_bytes` is None if the length is not known yet."""
    size = 0xFFFF_FFFF if data_bytes is None else data_bytes
    riff = 0xFFFF_FFFF if data_bytes is None else 36 + data_bytes + data_bytes % 2
    format = _FORMAT.pack(_PCM, 1, rate, 2 * rate, 2, 16)
    return b"".join(
        (_CHUNK.pack(b"RIFF", riff), b"WAVE", _CHUNK.pack(b"fmt ", len(format)), format, _CHUNK.pack(b"data", size))
    )
