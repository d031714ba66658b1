"""FLAC's length: what its head says, checked against its last frame.

The head alone could name any length, or none at all; the last frame carries its own place in the stream under two
checksums, so a cut-off file and a head that lies show without decoding.
Source: RFC 9639, sections 8.2 (streaminfo) and 9.1 (frame header).
"""

from __future__ import annotations

import re
import struct
from typing import Final

from inference.work.audio_bytes import AudioBytes, Length
from inference.work.mp3 import after_tags, before_tags

_BLOCKS_LIMIT: Final = 1024
_LAST_FRAME_LIMIT_BYTES: Final = 512 * 1024
"""A block of 65,535 samples of 16-bit stereo noise has 262 KB."""
_SYNC: Final = re.compile(rb"\xff[\xf8\xf9]")
_PLACES_LIMIT: Final = 1024
"""So much noise has 16 of them."""
_TRIES_LIMIT: Final = 4
"""Frame headers, counted from the end, whose frame is checked; one in 40,000,000 places looks like one by chance."""
_STREAMINFO: Final = struct.Struct(">HH3s3sQ16s")
_BLOCK_SIZES: Final = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)}, **{n: 256 << (n - 8) for n in range(8, 16)}}


def read_flac(audio: AudioBytes) -> Length:
    """Raises RequestInvalid."""
    data = audio.data
    at = after_tags(data) + 4
    if at + 4 > len(data) or data[at] & 0x7F:
        raise audio.refused("its stream information is missing")
    smallest, largest, _, _, packed, _ = audio.unpack(_STREAMINFO, at + 4, "its head")
    rate, channels, total = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    audio.check(rate=rate, channels=channels)
    if not 16 <= smallest <= largest:
        raise audio.refused(f"blocks of {smallest} to {largest} samples")
    start = _frames(audio, at)
    end = _end_of_last_frame(data, start, before_tags(data), largest)
    if end is None:
        raise audio.cut_off("the sound")
    if total and total != end:
        raise audio.refused(f"it says that it has {total} samples, and has {end}")
    return Length(samples=end, rate=rate)


def _frames(audio: AudioBytes, at: int) -> int:
    """Where the metadata ends."""
    for _ in range(_BLOCKS_LIMIT):
        head = audio.data[at : at + 4]
        if len(head) < 4:
            raise audio.cut_off("its metadata")
        at += 4 + int.from_bytes(head[1:], "big")
        if head[0] & 0x80:
            return at
    raise audio.refused(f"more than {_BLOCKS_LIMIT} blocks of metadata")


def _end_of_last_frame(data: bytes, start: int, end: int, block_size: int) -> int | None:
    """The number of samples up to the end of the frame that ends at `end`; None if there is none."""
    places = [match.start() for match in _SYNC.finditer(data, max(start, end - _LAST_FRAME_LIMIT_BYTES), end)]
    tries = 0
    for at in places[: -_PLACES_LIMIT - 1 : -1]:
        samples = _frame_end(data, at, end, block_size)
        if samples is None:
            continue
        if _crc16(data[at:end]) == 0:  # over the frame with its checksum
            return samples
        tries += 1
        if tries == _TRIES_LIMIT:
            break
    return None


def _frame_end(data: bytes, at: int, end: int, block_size: int) -> int | None:
    """The sample after this frame, if a frame header stands `at`."""
    head = data[at : min(at + 16, end)]
    if len(head) < 6:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15 or head[3] & 1 or head[3] >> 4 > 10:
        return None
    number, width = _coded_number(head[4:])
    tail = 4 + width
    extra = {6: 1, 7: 2}.get(size_code, 0)
    more = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if not width or tail + extra + more >= len(head) or _crc8(head[: tail + extra + more + 1]):
        return None
    samples = int.from_bytes(head[tail : tail + extra], "big") + 1 if extra else _BLOCK_SIZES[size_code]
    return number + samples if head[1] & 1 else number * block_size + samples


def _coded_number(data: bytes) -> tuple[int, int]:
    """A number as in UTF-8, of up to 36 bits, and how many bytes it takes: 0 if it is none."""
    first = data[0]
    if first < 0x80:
        return first, 1
    width = 8 - (first ^ 0xFF).bit_length()
    rest = data[1:width]
    if not 2 <= width <= 7 or len(rest) != width - 1 or any(byte & 0xC0 != 0x80 for byte in rest):
        return 0, 0
    number = first & (1 << max(0, 7 - width)) - 1
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, width


def _table(polynomial: int, bits: int) -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        crc = byte << (bits - 8)
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> (bits - 1) & 1 else 0)
        entries.append(crc & (1 << bits) - 1)
    return tuple(entries)


_CRC8: Final = _table(0x107, 8)
_CRC16: Final = _table(0x18005, 16)


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
    return crc
