"""Binding an aiohttp application to a port, with an error that says which and what to do."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from market.errors import NodeMisconfigured


@asynccontextmanager
async def open_site(app: web.Application, *, host: str, ports: Sequence[int], what: str) -> AsyncIterator[int]:
    """Serve `app` on the first free one of `ports` (0: any) until the end of the block; yields the port.

    Handlers are cancelled when their client hangs up. Raises NodeMisconfigured if no port is free.
    """
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        for port in ports:
            site = web.TCPSite(runner, host, port, reuse_address=True)
            try:
                await site.start()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port != ports[-1]:
                    continue
                raise _cannot_listen(host, port, what, error) from None
            break
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _cannot_listen(host: str, port: int, what: str, error: OSError) -> NodeMisconfigured:
    if error.errno == errno.EADDRINUSE:
        return NodeMisconfigured(
            f"{what} cannot listen on {host}:{port}: another program has that port.",
            next_step="Stop that program, or choose another port (0 takes any free one).",
        )
    return NodeMisconfigured(
        f"{what} cannot listen on {host}:{port}: {error.strerror}.", next_step="Choose another address or port."
    )
