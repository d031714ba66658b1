"""A folder in diffusers' layout, looked at before the library sees it: which pipeline it is, and that it holds no code.

Lives here: the list of what may be loaded. `model_index.json` names Python classes, and diffusers would import whatever
it names; weights may be pickles, which run code when they are read. Knows no diffusers. Blocking.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from market.errors import ModelFileInvalid

INDEX: Final = "model_index.json"
PIPELINES: Final = frozenset(
    (
        "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
        "LatentConsistencyModelPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "SanaPipeline",
        "AuraFlowPipeline", "HunyuanDiTPipeline", "LuminaPipeline",
    )
)  # fmt: skip
"""Text to image, with a callback at the end of each step."""
_LIBRARIES: Final = (None, "diffusers", "transformers")
_LEFT_OUT: Final = frozenset(("safety_checker", "feature_extractor", "image_encoder"))
"""Parts that text to image does without; the checker's classes are of another module, "stable_diffusion"."""
_CODE: Final = frozenset((".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5"))
_JSON_LIMIT_BYTES: Final = 1024 * 1024
_FILES_LIMIT: Final = 2048


def check_folder(folder: Path) -> frozenset[str]:
    """The parts that are not to be loaded. Raises ModelFileInvalid."""
    index = _read_json(folder / INDEX)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise ModelFileInvalid(
            f"{INDEX} names the pipeline {str(pipeline)[:80]!r}.",
            next_step=f"These are run: {', '.join(sorted(PIPELINES))}.",
        )
    for part, kind in index.items():
        if part.startswith("_") or part in _LEFT_OUT or not isinstance(kind, list):
            continue
        if len(kind) != 2 or kind[0] not in _LIBRARIES:
            raise ModelFileInvalid(f"{INDEX}: its part {part[:40]!r} is of a library that is not loaded.")
    files = sorted(folder.rglob("*"))
    if len(files) > _FILES_LIMIT:
        raise ModelFileInvalid(f"the model has more than {_FILES_LIMIT} files.")
    for path in files:
        if path.suffix.lower() in _CODE:
            raise ModelFileInvalid(
                f"the model holds {path.name}, which is code or may run some.",
                next_step="Use a model whose weights are .safetensors files alone.",
            )
        if path.name.endswith(".json") and "auto_map" in _read_json(path, must=False):
            raise ModelFileInvalid(f"{path.name} asks for code of the model's own.")
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelFileInvalid("the model has no .safetensors file.")
    return frozenset(part for part in _LEFT_OUT if part in index)


def _read_json(path: Path, *, must: bool = True) -> dict[str, Any]:
    """An object, empty for another JSON if it need not be one."""
    try:
        if path.stat().st_size > _JSON_LIMIT_BYTES:
            if must:
                raise ModelFileInvalid(f"{path.name} is over {_JSON_LIMIT_BYTES} bytes.")
            return {}  # a vocabulary
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileInvalid(f"the model has no {path.name}.") from None
    except (ValueError, RecursionError):
        raise ModelFileInvalid(f"{path.name} is no JSON.") from None
    if must and not isinstance(found, dict):
        raise ModelFileInvalid(f"{path.name} is no JSON object.")
    return found if isinstance(found, dict) else {}
