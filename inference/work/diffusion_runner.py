"""Text to image inside the child: a pipeline in diffusers' layout, on a card or the processor.

Images of a request are made one after the other, each from a seed of its own, so that an image does not depend on how
many were asked for. Every step is told, and is where a cancelled task ends.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inference.work.diffusers_folder import check_folder
from inference.work.runner import Desk, Task
from inference.work.ways import open_first, torch_ways
from market.errors import EngineFailed, NodeMisconfigured, OctoError, RequestInvalid
from market.task import MICRO
from market.work import ImageRequest

_PROMPT_LIMIT: Final = 4096 * 2
_WARM_UP: Final = ImageRequest(prompt="a", negative="b", width=64, height=64, steps=2)


class _Cancelled(Exception):
    """Nobody waits for the image any more."""


class DiffusionRunner:
    context = _PROMPT_LIMIT

    def __init__(self, pipeline: Any, torch: Any, *, engine: str, pixels: int) -> None:
        self.engine = engine
        self._pipeline = pipeline
        self._torch = torch
        self._pixels = pixels

    def warm_up(self) -> None:
        """What libraries load late, they load now."""
        self._draw(_WARM_UP, 0, lambda: None)

    def run(self, desk: Desk) -> None:
        while tasks := desk.take(1):
            try:
                self._make(desk, tasks[0])
            except OctoError as error:
                desk.refuse(tasks[0], error)
            except _Cancelled:
                pass

    def _make(self, desk: Desk, task: Task) -> None:
        request = task.request
        if not isinstance(request, ImageRequest):
            raise RequestInvalid("this model makes images from a text, and nothing else.")
        if request.width * request.height > self._pixels:
            raise RequestInvalid(
                f"{request.width} x {request.height} is too large here.",
                next_step=f"{self._pixels} pixels is the limit of this machine.",
                param="size",
            )
        steps = 0

        def on_step() -> None:
            nonlocal steps
            steps += 1  # a scheduler may take more than it was asked for
            desk.made(task, progress=min(99, steps * 100 // (request.count * request.steps)))
            if task.cancelled:
                raise _Cancelled

        for number in range(request.count):
            png = self._draw(request, request.seed + number, on_step)
            is_last = number == request.count - 1
            done = (number + 1) * 100 // request.count
            desk.made(task, [png], progress=done, finish="stop" if is_last else "")

    def _draw(self, request: ImageRequest, seed: int, on_step: Any) -> bytes:
        """A PNG without metadata; the same bytes for the same request and seed. Raises EngineFailed."""

        def at_step_end(_pipeline: Any, _step: int, _moment: Any, kept: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return kept

        arguments: dict[str, Any] = {"negative_prompt": request.negative} if request.negative else {}
        images = self._pipeline(
            prompt=request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_micro / MICRO,
            generator=self._torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=at_step_end,
            output_type="np",
            **arguments,
        ).images
        return _png(images[0], request)


def _png(pixels: Any, request: ImageRequest) -> bytes:
    import numpy as np

    if pixels.shape != (request.height, request.width, 3):
        raise EngineFailed("the model made an image of another size than was asked for.")
    if not np.isfinite(pixels).all():
        raise EngineFailed("the model's numbers went out of range.", next_step="Try another seed or less guidance.")
    image = importlib.import_module("PIL.Image").fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> DiffusionRunner:
    """Raises ModelFileInvalid, NodeMisconfigured."""
    left_out = check_folder(folder)
    if options["packages"]:
        sys.path.append(str(options["packages"]))
    # PyTorch's compiler, which nobody uses here, wants a folder for its results as it is imported. This one is there,
    # and nobody may write in it.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS gives other bits at each run
    # The hub's client imports trio where there is one, and trio looks for a C compiler, with temporary files.
    sys.modules["trio"] = None  # type: ignore[assignment]  # the documented way to have an import refused
    try:
        torch = importlib.import_module("torch")
        diffusers = importlib.import_module("diffusers")
        importlib.import_module("transformers")
    except ImportError as error:
        raise NodeMisconfigured(
            f"images need the package diffusers with torch ({error.name} is missing).",
            next_step="Install them: .venv/bin/pip install -e '.[diffusers]'.",
        ) from None
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)

    def open_one(device: str, dtype: str) -> DiffusionRunner:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            torch_dtype=getattr(torch, dtype),
            **dict.fromkeys(left_out),
        )
        if device != "cpu":
            pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        engine = f"diffusers/{diffusers.__version__}/torch-{torch.__version__}/{device}/{dtype}"
        runner = DiffusionRunner(pipeline, torch, engine=engine, pixels=int(options["pixels"]))
        runner.warm_up()
        return runner

    return open_first(torch_ways(torch, str(options["dtype"]), cards=bool(options["cards"])), open_one)
