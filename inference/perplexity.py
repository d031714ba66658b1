"""How well a model foretells a text: the measure by which quantisations are compared.

Lives here: the formula, the child process that runs the model, its result. Must not know: which text, formats, tables.

    perplexity = exp(-(1/N) * sum of ln p(t_i | t_0 … t_(i-1)), i = 1 … N)      for N + 1 tokens

All tokens but the first count, each given all that came before it: one window, no striding. p is the model's own
distribution, without temperature. The text is fed in the engine's canonical chunks of 64 rows, so that the figure is
the same to the last bit wherever the engine class is. `error` is the standard error of the mean of -ln p, times the
perplexity; it says how far another text of the same kind may lie, and is no bound for two formats on one text: these
are compared by their ratio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from inference.hardware import available_ram
from inference.isolation import child_command, child_environment, close_the_door, confine, die_with_parent
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid
from market.values import value

TOKENS_LIMIT: Final = 1 << 17
TIME_LIMIT_S: Final = 3600.0
_ORDERS_LIMIT_BYTES: Final = 4 << 20
_ANSWER_LIMIT_BYTES: Final = 64 * 1024
_OVERHEAD_BYTES: Final = 512 * 1024 * 1024
_ERRORS: Final[dict[str, type[OctoError]]] = {
    error.code: error for error in (ModelFileInvalid, NodeMisconfigured, RequestInvalid, EngineFailed)
}


@value
class Perplexity:
    """`tokens` are those that were foretold, N; `engine` the engine class they were foretold by."""

    perplexity: float
    error: float
    tokens: int
    engine: str


def from_surprises(surprises: Iterable[float], engine: str) -> Perplexity:
    """`surprises` are -ln p of each token. Raises EngineFailed if one is not a number."""
    listed = list(surprises)
    count, mean = len(listed), math.fsum(listed) / len(listed)
    if not math.isfinite(mean):
        raise EngineFailed("the model gives numbers that are no probabilities.", next_step="Quantise it anew.")
    spread = math.fsum((one - mean) ** 2 for one in listed) / max(1, count - 1)
    found = math.exp(min(mean, 700.0))
    return Perplexity(perplexity=found, error=found * math.sqrt(spread / count), tokens=count, engine=engine)


async def measure_perplexity(model: Path, tokens: Sequence[int], *, threads: int = 1) -> Perplexity:
    """Of a GGUF file over `tokens`, at least two, in a child process confined as an engine's worker is.

    Raises RequestInvalid, ModelFileInvalid, NodeMisconfigured (it does not fit into memory), EngineFailed.
    """
    if not 2 <= len(tokens) <= TOKENS_LIMIT:
        raise RequestInvalid(f"{len(tokens)} tokens: there should be 2 to {TOKENS_LIMIT}.")
    process = await asyncio.create_subprocess_exec(
        *child_command("inference.perplexity"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(threads),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            answer, _ = await process.communicate(_orders(model, tokens, threads))
    except TimeoutError:
        raise EngineFailed(f"measuring {model.name} took over {TIME_LIMIT_S / 3600:.0f} h and was ended.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return _read(answer, model, process.returncode)


def _orders(model: Path, tokens: Sequence[int], threads: int) -> bytes:
    orders = {
        "parent": os.getpid(),
        "model": str(model.resolve()),
        "tokens": list(tokens),
        "threads": threads,
        "memory_bytes": available_ram(),
    }
    return json.dumps(orders).encode()


def _read(answer: bytes, model: Path, status: int | None) -> Perplexity:
    """What the child says is checked: a model file may have taken it over."""
    try:
        told = json.loads(answer[:_ANSWER_LIMIT_BYTES])
        if "error" in told:
            error = told["error"]
            raise _ERRORS.get(error["code"], EngineFailed)(
                str(error["message"])[:500], next_step=str(error["next_step"])[:500]
            )
        found = told["found"]
        return Perplexity(
            perplexity=float(found["perplexity"]),
            error=float(found["error"]),
            tokens=int(found["tokens"]),
            engine=str(found["engine"])[:128],
        )
    except (ValueError, KeyError, TypeError):
        raise ModelFileInvalid(f"{model.name} cannot be measured: the engine ended with {status}.") from None


# ---- the child ---------------------------------------------------------------------------------------


def _surprises(context: Any, tokens: Sequence[int]) -> Iterable[float]:
    """-ln p of each token but the first, chunk by chunk."""
    import numpy as np

    from inference.batch import Row
    from inference.scheduler import CHUNK

    for start in range(0, len(tokens) - 1, CHUNK):
        rows = [Row(0, tokens[at], at, wanted=True) for at in range(start, min(start + CHUNK, len(tokens) - 1))]
        for at, logits in enumerate(context.decode(rows), start + 1):
            exact = logits.astype(np.float64)
            top = float(exact.max())
            yield top + math.log(float(np.exp(exact - top).sum())) - float(exact[tokens[at]])


def _measure(orders: dict[str, Any]) -> dict[str, Any]:
    from inference.llama import LlamaContext
    from inference.scheduler import CHUNK

    path, tokens = Path(orders["model"]), orders["tokens"]
    confine([path], memory_bytes=orders["memory_bytes"] + _OVERHEAD_BYTES)
    size = max(len(tokens), 2 * CHUNK)  # a context shorter than the chunk it is warmed up with crashes
    context = LlamaContext(path, slots=1, size=size, threads=orders["threads"], memory_bytes=orders["memory_bytes"])
    close_the_door()
    if not all(type(token) is int and 0 <= token < context.vocabulary for token in tokens):
        raise RequestInvalid("the text has a token that this model does not have.")
    found = from_surprises(_surprises(context, tokens), context.engine)
    return {"found": {name: getattr(found, name) for name in ("perplexity", "error", "tokens", "engine")}}


def main() -> int:
    die_with_parent()
    orders = json.loads(sys.stdin.buffer.read(_ORDERS_LIMIT_BYTES))
    if os.getppid() != orders["parent"]:  # it died before die_with_parent could see
        return 0
    try:
        told = _measure(orders)
    except OctoError as error:
        told = {"error": {"code": error.code, "message": error.message, "next_step": error.next_step}}
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
