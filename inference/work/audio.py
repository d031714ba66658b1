"""How long a piece of audio is, from its bytes alone: buyer and seller count it alike before anything is decoded.

Lives here: which of WAV, FLAC, Ogg (Vorbis, Opus) and MP3 it is, and the limits. Decodes nothing, trusts nothing: a
header that does not fit the bytes is refused here, and what still lies shows when the engine's child decodes it.
32 MiB take 0.2 s at the worst (many tiny pages or frames): call it in a thread for more than a few KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from inference.work import flac, mp3, ogg, wav
from inference.work.audio_bytes import AudioBytes, Length
from market.errors import RequestInvalid
from market.values import value
from market.work import BLOB_LIMIT_BYTES

DURATION_LIMIT_MS: Final = 4 * 60 * 60 * 1000
SUPPORTED: Final = "Send WAV (PCM or float), FLAC, Ogg with Vorbis or Opus, or MP3."

AudioKind = Literal["wav", "flac", "ogg", "mp3"]

_READERS: Mapping[AudioKind, Callable[[AudioBytes], Length]] = {
    "wav": wav.read_wav,
    "flac": flac.read_flac,
    "ogg": ogg.read_ogg,
    "mp3": mp3.read_mp3,
}
_OTHERS: Mapping[bytes, str] = {
    b"\x1aE\xdf\xa3": "WebM or Matroska",
    b"RIFX": "big-endian WAV",
    b"RF64": "RF64",
    b"FORM": "AIFF",
    b"MThd": "MIDI",
    b"#!AMR": "AMR",
    b".snd": "AU",
    b"0&\xb2u": "Windows Media",
}


@value
class AudioFacts:
    """`duration_ms` is rounded up, at least 1."""

    kind: AudioKind
    duration_ms: int


def read_audio(blob: bytes) -> AudioFacts:
    """Raises RequestInvalid for what is none of the four, is cut off, says of itself what is not so, or is too long."""
    if len(blob) > BLOB_LIMIT_BYTES:
        raise RequestInvalid(
            f"the audio has {len(blob)} bytes; {BLOB_LIMIT_BYTES} is the limit.",
            next_step="Send it in parts, or as Ogg with Opus: an hour of speech takes 10 MB.",
            param="file",
        )
    kind = _kind(blob)
    audio = AudioBytes(blob)
    length = _READERS[kind](audio)
    duration_ms = -(-length.samples * 1000 // length.rate)
    if duration_ms < 1:
        raise audio.refused("it holds no sound")
    if duration_ms > DURATION_LIMIT_MS:
        raise RequestInvalid(
            f"the audio lasts {duration_ms // 1000} s; {DURATION_LIMIT_MS // 1000} s is the limit.",
            next_step="Send it in parts.",
            param="file",
        )
    return AudioFacts(kind=kind, duration_ms=duration_ms)


def _kind(blob: bytes) -> AudioKind:
    """By the first bytes: a file's name proves nothing."""
    if blob[:4] == b"RIFF" and blob[8:12] == b"WAVE":
        return "wav"
    if blob[:4] == b"OggS":
        return "ogg"
    after = mp3.after_tags(blob)
    if blob[after : after + 4] == b"fLaC":
        return "flac"
    if mp3.starts_frame(blob, after):
        return "mp3"
    names = [name for magic, name in _OTHERS.items() if blob.startswith(magic)]
    if blob[4:8] == b"ftyp":
        names.append("MP4 or M4A")
    what = f"the audio is {names[0]}, which is not read here" if names else "the bytes are no audio that is read here"
    raise RequestInvalid(f"{what}.", next_step=SUPPORTED, param="file")
