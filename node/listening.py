"""Serving an aiohttp application on a port, with errors that name the port and the setting to change."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from market.errors import NodeMisconfigured

_SHUTDOWN_TIMEOUT_S = 2.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - names, to be replaced


@asynccontextmanager
async def open_site(
    app: web.Application | web.ServerRunner, *, host: str, ports: Sequence[int], setting: str
) -> AsyncIterator[str]:
    """Serve `app` on the first free one of `ports` (0: any) until the end of the block; yields the base URL.

    `app` may be a server of the caller's own making, which then decides how strict it is.
    A reader that hangs up ends its handler. `setting` is where the port is set (`api`). Raises
    NodeMisconfigured if no port is free or the address is not ours.
    """
    runner: web.BaseRunner = (
        app
        if isinstance(app, web.ServerRunner)
        else web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    )
    await runner.setup()
    try:
        for port in ports:
            try:
                await web.TCPSite(runner, host, port).start()
            except (OSError, OverflowError) as error:
                if port == ports[-1] or getattr(error, "errno", 0) != errno.EADDRINUSE:
                    raise _cannot_listen(error, host, port, setting) from None
            else:
                break
        bound_host, bound_port = runner.addresses[0][:2]
        yield url_of(str(bound_host), int(bound_port))
    finally:
        await runner.cleanup()


def url_of(host: str, port: int) -> str:
    """A URL that reaches a listener from this machine, wildcards included."""
    host = _WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_wildcard(host: str) -> bool:
    return host in _WILDCARDS


def beside(addresses: Sequence[str], port: int) -> tuple[str, ...]:
    """The content listener's multiaddrs: the mesh's IP addresses, the content port."""
    found = []
    for address in addresses:
        _, kind, host, *_ = (*address.split("/"), "", "", "")
        if kind in ("ip4", "ip6"):
            found.append(f"/{kind}/{host}/tcp/{port}/http")
    return tuple(dict.fromkeys(found))


def _cannot_listen(error: OSError | OverflowError, host: str, port: int, setting: str) -> NodeMisconfigured:
    where = f"port {port} on {host}"
    variable = f"OCTO_{setting.upper()}__"
    if isinstance(error, OverflowError):
        return NodeMisconfigured(f"{port} is not a port.", next_step=f"Choose one from 0 to 65535 as {setting}.port.")
    if error.errno == errno.EADDRINUSE:
        return NodeMisconfigured(
            f"{where} is in use by another program.",
            next_step=f"Stop it, or choose another port as {setting}.port ({variable}PORT); 0 takes any free one.",
        )
    if error.errno == errno.EACCES:
        return NodeMisconfigured(
            f"{where} is not allowed to us.", next_step=f"Choose a port above 1023 as {setting}.port."
        )
    return NodeMisconfigured(
        f"cannot listen on {where}: {error.strerror or error}.",
        next_step=f"{setting}.host ({variable}HOST) should be an address of this machine.",
    )
