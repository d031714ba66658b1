"""Makes inference/models/default_manifest.cbor anew: for a release that changes the default model.

Signs with a key made here and thrown away: nobody can ever sign another manifest in its name, so its
address stands for exactly this one. Run it as `.venv/bin/python scripts/sign_default_manifest.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inference.models.default_model import Q4_0_SHA256, default_manifest  # noqa: E402 - after the path
from inference.models.manifest import manifest_cid, sign_manifest  # noqa: E402
from inference.models.store import Store  # noqa: E402
from inference.models.wheel import sha256_of  # noqa: E402
from market.signing import Secp256k1Signer  # noqa: E402

WEIGHTS = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
TARGET = ROOT / "inference" / "models" / "default_manifest.cbor"


async def main() -> None:
    if sha256_of(WEIGHTS) != Q4_0_SHA256:
        sys.exit("The prepared model is not the pinned one: run this where `make model` gives the pinned bytes.")
    creator = Secp256k1Signer(os.urandom(32))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        try:
            manifest = await default_manifest(store, WEIGHTS, Path(folder), creator=creator.address)
        finally:
            store.close()
    signed = sign_manifest(manifest, creator)
    TARGET.write_bytes(signed.encoded())
    print(f"{TARGET.name}: {manifest_cid(signed)}")


asyncio.run(main())
