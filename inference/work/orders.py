"""What a node and a child that works for it say to each other (`inference.frames`).

Lives here: the settings and facts they open with. Must not know: asyncio, engines, what the work is.

Node to child, after the settings: ["run", number, max_units, priority] with the request and the blob as parts,
["cancel", number]. Child to node, once it is ready: ["made", number, progress, finish] with pieces as parts,
["refused", number, code, message, next step].
"""

from __future__ import annotations

from typing import Any, Final

from inference.frames import Dialect, Limits
from market.values import value
from market.work import BLOB_LIMIT_BYTES, INPUTS_LIMIT, PIECE_LIMIT_BYTES, REQUEST_LIMIT_BYTES

_HEAD_LIMIT_BYTES: Final = 64 * 1024
"""The sizes of 2,048 parts take 10 KiB."""
TO_CHILD: Final = Limits(_HEAD_LIMIT_BYTES, REQUEST_LIMIT_BYTES + BLOB_LIMIT_BYTES, INPUTS_LIMIT)
TO_NODE: Final = Limits(_HEAD_LIMIT_BYTES, PIECE_LIMIT_BYTES, INPUTS_LIMIT)


@value
class ChildSettings:
    """`runner` is the module whose `open_runner` loads the model in `folder`; `options` are for it alone.
    `readable` are further paths that it may read, `devices` a card's; `memory_bytes` bounds its private memory (see
    `inference.isolation.confine`)."""

    parent: int
    runner: str
    folder: str
    readable: tuple[str, ...]
    options: dict[str, Any]
    threads: int
    memory_bytes: int
    devices: tuple[str, ...] = ()


@value
class ChildFacts:
    """What a child reports once its model is loaded. `engine` is the engine class; `context` the longest input."""

    engine: str
    context: int
    isolation: str


DIALECT: Final = Dialect(settings=ChildSettings, facts=ChildFacts, to_child=TO_CHILD, to_node=TO_NODE)
