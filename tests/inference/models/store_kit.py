"""What tests of the store share: seeded bytes, putting them in, damaging a file behind the store's back."""

from __future__ import annotations

import hashlib
from pathlib import Path

from inference.models.store import Store

MIB = 1024 * 1024


def seeded(size: int, seed: str = "octo/unixfs/1") -> bytes:
    """The bytes that tests/vectors/unixfs.json speaks of."""
    start = seed.encode()
    return b"".join(hashlib.sha256(start + i.to_bytes(8, "big")).digest() for i in range((size + 31) // 32))[:size]


async def put(store: Store, folder: Path, data: bytes, **options: object) -> str:
    path = folder / f"in-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return await store.add(path, **options)  # type: ignore[arg-type]


def bend(path: Path, at: int = 5) -> None:
    """Flip one bit of a stored file."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
