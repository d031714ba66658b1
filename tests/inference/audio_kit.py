"""Audio made byte by byte, so that a test says what is in it: WAV, FLAC, Ogg and MP3 that no encoder would write."""

from __future__ import annotations

import struct


def wav(samples: int, *, rate: int = 16_000, channels: int = 1, bits: int = 16, tag: int = 1, **lies: int) -> bytes:
    """Silence. `lies`: `data` for the size that the data chunk claims, `block` for the bytes of a sample."""
    block = channels * bits // 8
    format = struct.pack("<HHIIHH", tag, channels, rate, rate * block, lies.get("block", block), bits)
    if tag == 0xFFFE:
        format += struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", lies.get("subformat", 1)) + b"\0" * 14
    data = bytes(samples * block)
    chunks = [(b"fmt ", len(format), format), (b"data", lies.get("data", len(data)), data)]
    body = b"".join(name + struct.pack("<I", size) + data for name, size, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
    return crc


def _coded(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    width = next(width for width in range(2, 8) if number < 1 << (5 * width + 1))
    rest = [0x80 | number >> (6 * at) & 0x3F for at in reversed(range(width - 1))]
    return bytes([(0xFF << (8 - width)) & 0xFF | number >> (6 * (width - 1)), *rest])


def flac_frame(number: int, block: int, *, value: int = 0, head_crc: int = 0) -> bytes:
    """A frame of 16-bit mono that says "all samples are `value`": 14 bytes for up to 65,536 samples. `head_crc`
    spoils the head's checksum, not the frame's."""
    head = b"\xff\xf8" + bytes([0x70, 0x08]) + _coded(number) + struct.pack(">H", block - 1)
    head += bytes([_crc(head, 0x07, 8) ^ head_crc])
    frame = head + b"\0" + struct.pack(">h", value)
    return frame + struct.pack(">H", _crc(frame, 0x8005, 16))


def flac(blocks: int, *, block: int = 65_535, rate: int = 16_000, total: int | None = None) -> bytes:
    """Constant blocks; `total` is what the head claims."""
    total = blocks * block if total is None else total
    packed = rate << 44 | 0 << 41 | 15 << 36 | total
    info = struct.pack(">HH3s3sQ16s", block, block, b"\0" * 3, b"\0" * 3, packed, b"\0" * 16)
    frames = [flac_frame(number, block) for number in range(blocks)]
    return b"fLaC" + bytes([0x80, 0, 0, len(info)]) + info + b"".join(frames)


OPUS_HEAD = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 312, 16_000, 0, 0)
VORBIS_HEAD = b"\x01vorbis" + struct.pack("<IBI", 0, 1, 16_000) + b"\0" * 14


def ogg_page(number: int, granule: int, body: bytes = b"", *, serial: int = 7, flags: int | None = None) -> bytes:
    flags = (2 if number == 0 else 0) if flags is None else flags
    sizes = [255] * (len(body) // 255) + [len(body) % 255]
    return b"OggS" + struct.pack("<BBqIIIB", 0, flags, granule, serial, number, 0, len(sizes)) + bytes(sizes) + body


def ogg(*granules: int, head: bytes = OPUS_HEAD) -> bytes:
    pages = [ogg_page(number + 1, granule, b"sound") for number, granule in enumerate(granules)]
    return ogg_page(0, 0, head) + b"".join(pages)


def mp3_frame(*, kbits_index: int = 4, rate_index: int = 2, version: int = 2, filling: bytes = b"") -> bytes:
    """By default 32 kbit/s at 16 kHz: 144 bytes, 576 samples."""
    kbits = {3: (32, 40, 48, 56), 2: (8, 16, 24, 32)}[version][kbits_index - 1]
    rate = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000)}[version][rate_index]
    size = (1152 if version == 3 else 576) * 125 * kbits // rate
    head = bytes([0xFF, 0xE3 | version << 3, kbits_index << 4 | rate_index << 2, 0xC4])
    return (head + filling).ljust(size, b"\0")
