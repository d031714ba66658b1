"""Ogg's length: the place of the last page of its one stream, Vorbis or Opus.

Sources: RFC 3533 (pages), RFC 7845 (Opus in Ogg), Vorbis I section 4.2.2 (identification header).
"""

from __future__ import annotations

import struct
from typing import Final

from inference.work.audio_bytes import AudioBytes, Length

_PAGE: Final = struct.Struct("<4sBBqIIIB")
_OPUS: Final = struct.Struct("<8sBBHI")
_VORBIS: Final = struct.Struct("<7sIBI")
_PAGES_LIMIT: Final = 300_000
"""An hour of pages of 20 ms has 180,000; 300,000 take 0.2 s."""
_CONTINUED, _FIRST = 1, 2
_NO_PACKET_ENDS: Final = -1


def read_ogg(audio: AudioBytes) -> Length:
    """Raises RequestInvalid, also for several streams in one file: whose length would count?"""
    data, end = audio.data, len(audio.data)
    at = pages = place = serial = 0
    rate = skipped = 0
    while at < end:
        magic, version, flags, granule, stream, number, _, count = audio.unpack(_PAGE, at, "a page")
        if magic != b"OggS" or version:
            raise audio.refused(f"no page of Ogg begins at byte {at}")
        sizes = at + _PAGE.size
        body = sizes + count
        following = body + sum(data[sizes:body])
        if following > end:
            raise audio.cut_off("a page")
        if not pages:
            serial = stream
            rate, skipped = _read_head(audio, body, following)
        if stream != serial or bool(flags & _FIRST) != (not pages):
            raise audio.refused("it holds more than one stream", next_step="Send one stream of sound alone.")
        if number != pages:
            raise audio.refused(f"page {pages} is missing", next_step="Send the whole file.")
        if granule != _NO_PACKET_ENDS:
            if granule < place:
                raise audio.refused("its pages run backwards")
            place = granule
        at, pages = following, pages + 1
        if pages > _PAGES_LIMIT:
            raise audio.refused(f"more than {_PAGES_LIMIT} pages", next_step="Convert it anew, with larger pages.")
    return Length(samples=max(0, place - skipped), rate=rate)


def _read_head(audio: AudioBytes, at: int, end: int) -> tuple[int, int]:
    """Places a second, and how many of them come before the sound."""
    head = audio.data[at:end]
    if head.startswith(b"OpusHead"):
        _, version, channels, skipped, rate = audio.unpack(_OPUS, at, "its head")
        if version >> 4:
            raise audio.refused("its Opus is of a later version")
        rate = 48_000  # whatever was recorded: places count at 48 kHz (RFC 7845, section 4)
    elif head.startswith(b"\x01vorbis"):
        _, _, channels, rate = audio.unpack(_VORBIS, at, "its head")
        skipped = 0
    else:
        raise audio.refused("it is Ogg without Vorbis or Opus", next_step="Convert it to Opus.")
    audio.check(rate=rate, channels=channels)
    return rate, skipped
