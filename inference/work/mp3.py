"""MP3's length: every frame is counted. A Xing or VBRI head would be faster and could say anything.

Tags around the frames (ID3, APE, Lyrics) are skipped; FLAC files have them too.
Sources: ISO/IEC 11172-3 section 2.4.2.3, ISO/IEC 13818-3; ID3v2.4 structure section 3.1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from inference.work.audio_bytes import AudioBytes, Length

_TAGS_LIMIT: Final = 16
_FRAMES_LIMIT: Final = 700_000
"""Four hours of 1,152 samples at 48 kHz are 600,000; they take 0.2 s."""
_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS: Final = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_TRAILERS: Final = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"\0")
_SPURIOUS: Final = (b"Xing", b"Info", b"VBRI")


def read_mp3(audio: AudioBytes) -> Length:
    """Raises RequestInvalid for anything between two frames, and for a rate that changes."""
    data, end = audio.data, before_tags(audio.data)
    first = at = after_tags(data)
    _, samples, rate = _frame(data[at : at + 3])
    frames = 0
    while at < end:
        size, block, now = _frame(data[at : at + 3])
        if not size:
            if frames and data.startswith(_TRAILERS, at):
                break
            raise audio.refused(f"no frame of MP3 begins at byte {at}")
        if now != rate or block != samples:
            raise audio.refused(f"its rate changes at byte {at}")
        at += size
        frames += 1
        if frames > _FRAMES_LIMIT:
            break  # over every limit of duration already
    if at > end:
        frames -= 1  # the last one is cut off, and no decoder plays it
    if any(word in data[first : first + 64] for word in _SPURIOUS):
        frames -= 1  # it holds facts on the others and no sound
    return Length(samples=frames * samples, rate=rate)


def starts_frame(data: bytes, at: int) -> bool:
    """Whether a frame stands there and another, or the end, behind it: eleven bits alone are soon found."""
    size, _, _ = _frame(data[at : at + 3])
    return bool(size) and (at + size >= len(data) or bool(_frame(data[at + size : at + size + 3])[0]))


@lru_cache(maxsize=2048)
def _frame(head: bytes) -> tuple[int, int, int]:
    """Bytes, samples and rate of the frame with these first 3 bytes; zeros if it is none. About 1,000 are valid."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync, layer III
        return 0, 0, 0
    version, index, code = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or not 1 <= index <= 14 or code == 3:
        return 0, 0, 0
    rate = _RATES[version][code]
    samples = 1152 if version == 3 else 576
    kbits = _KBITS[3 if version == 3 else 2][index - 1]
    return samples * 125 * kbits // rate + (head[2] >> 1 & 1), samples, rate


def after_tags(data: bytes) -> int:
    """Where the sound begins: behind ID3v2 tags."""
    at = 0
    for _ in range(_TAGS_LIMIT):
        if data[at : at + 3] != b"ID3" or len(data) < at + 10:
            break
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    return at


def before_tags(data: bytes) -> int:
    """Where the sound ends: before an ID3v1 tag."""
    return len(data) - 128 if len(data) >= 128 and data[-128:-125] == b"TAG" else len(data)
