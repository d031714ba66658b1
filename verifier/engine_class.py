"""What the engine that a receipt names lets its reader conclude about the weights, beyond the file itself.

Lives here: one sentence for each class of engine, pure. Knows no receipt.
"""

from __future__ import annotations


def weights_unknown(engine: str, *, pieces: bool = False) -> str:
    """Why a file alone cannot show that these weights drew these tokens, or made these pieces, and what could."""
    if pieces:
        return "that the named weights made these pieces: needs a replay of the task"
    if engine.startswith("openai_http/attached/"):
        return "which model drew these tokens: a server that the provider names did, and no replay can show what it ran"
    drew = "that the named weights, and these sampling settings, drew these tokens"
    if engine.startswith("openai_http/vllm/"):
        return f"{drew}: needs a replay of the task, within a tolerance, since vLLM's last bits change with its batch"
    return f"{drew}: needs a replay of the task"
