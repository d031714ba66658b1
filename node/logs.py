"""One log line per event, key=value or JSON, to stderr or a file; secrets are struck out on the way.

Set up once, by the program's entry. Standard-library logging (libp2p, aiohttp) takes the same road.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

HIDDEN = "(hidden)"
_FILE_LIMIT_BYTES = 20 << 20
_FILES_KEPT = 3
_TEXT_LIMIT = 2_000  # a peer's message in a log line must not be a way to fill our disk
_SECRET_NAMES = re.compile(
    r"secret|passw|passphrase|private_?key|api_?key|authori[sz]ation|cookie|mnemonic"
    r"|(^|_)(seed|token|prompt|messages|content|answer|bearer|credentials?)$",
    re.IGNORECASE,
)
_SECRET_TEXTS = re.compile(r"octo-[A-Za-z0-9_-]{32,}|(?i:bearer)\s+\S+")
_NOISY = {
    "libp2p": "warning", "multiaddr": "warning", "asyncio": "warning", "aiohttp.access": "warning",
    "aiohttp.server": "error", "httpx": "warning", "huggingface_hub": "warning", "urllib3": "warning",
}  # fmt: skip

Event = MutableMapping[str, Any]


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """structlog processor: values under secret names, and API keys inside any text, are struck out."""
    for name, content in event.items():
        if _SECRET_NAMES.search(name) and not isinstance(content, (bool, int, float, type(None))):
            event[name] = HIDDEN
        elif isinstance(content, bytes):
            event[name] = content.hex()[:_TEXT_LIMIT]
        elif isinstance(content, str):
            event[name] = _SECRET_TEXTS.sub(HIDDEN, content[:_TEXT_LIMIT] if name != "exception" else content)
        elif isinstance(content, (dict, list, tuple)):
            event[name] = _SECRET_TEXTS.sub(HIDDEN, str(content)[:_TEXT_LIMIT])
    return event


@contextmanager
def open_logs(*, level: Level = "info", format: Format = "text", file: Path | None = None) -> Iterator[None]:
    """Send every log line to `file` (rotated, 0600) or, without one, to stderr, until the end of the block."""
    handler = _file_handler(file) if file is not None else logging.StreamHandler(sys.stderr)
    shared: list[Callable[..., Any]] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: Any = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                last,
            ],
        )
    )
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in _NOISY.items():
        logging.getLogger(name).setLevel(quiet.upper() if level != "debug" else "INFO")
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
        root.handlers[:], level_before = before
        root.setLevel(level_before)
        handler.close()


def _file_handler(file: Path) -> RotatingFileHandler:
    file.touch(mode=0o600)
    return RotatingFileHandler(file, maxBytes=_FILE_LIMIT_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
