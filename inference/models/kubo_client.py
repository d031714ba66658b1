"""`Kubo` through the package `ipfshttpclient` (extra `[kubo]`), for those who ask for it in the settings.

Lives here: the package's blocking calls, each in a thread, and its errors. It is imported when it is asked for and
never before. Prefer `kubo`: the package is of 2021, refuses today's daemons where its own version check is not gone
around (as here), reads proxies from the environment, and a call that is cancelled ends only with its timeout.
Source: https://ipfshttpclient.readthedocs.io/en/latest/
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from inference.models.cid import BLOCK_LIMIT_BYTES, parse_cid
from inference.models.kubo import KuboIdentity, identity_of
from inference.models.kubo_address import RpcAddress, parse_rpc
from inference.models.kubo_answers import cid_of_text, confirm, same_cid, text_of
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured

_SILENCE_S = 30.0
_WORK_SILENCE_S = 600.0

T = TypeVar("T")


class KuboClientSource:
    """`Kubo` over ipfshttpclient; made by `open_kubo_client`."""

    def __init__(self, address: RpcAddress, library: Any, timeout_s: float) -> None:
        self.name = f"{address.name} (ipfshttpclient)"
        self._errors: type[Exception] = library.exceptions.Error
        self._timeout_s = timeout_s
        headers = {"Authorization": address.authorization} if address.authorization else {}
        # No session: one connection for each call, so that calls in several threads share nothing.
        self._client = library.Client(_multiaddr(address), timeout=timeout_s + 5, headers=headers)

    # ---- a source --------------------------------------------------------------------------------

    async def block(self, cid: str) -> bytes:
        options = {"timeout": f"{self._timeout_s:g}s"}
        data = bytearray()
        async with aclosing(self._stream(lambda: self._client.block.get(cid, stream=True, opts=options))) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > BLOCK_LIMIT_BYTES:
                    raise BlockInvalid(f"{self.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
        return bytes(data)

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        left = length
        options = {"offset": str(start), "length": str(length)}
        async with aclosing(self._stream(lambda: self._client.cat(root, stream=True, opts=options))) as pieces:
            async for piece in pieces:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    # ---- a node ----------------------------------------------------------------------------------

    async def version(self) -> str:
        return text_of(await self._call(lambda: self._client.version().as_json()), "Version")

    async def identity(self) -> KuboIdentity:
        return identity_of(await self._call(lambda: self._client.id().as_json()))

    async def holds(self, cid: str) -> bool:
        options = {"offline": "true", "timeout": "2s"}
        try:
            key = await self._call(lambda: self._client.block.stat(cid, opts=options)["Key"])
        except ContentUnavailable:
            return False
        return same_cid(key, parse_cid(cid))

    async def import_car(self, car: bytes) -> None:
        options = {"pin-roots": "false", "allow-big-block": "true"}
        await self._lines(lambda: self._client.dag.imprt(io.BytesIO(car), opts=options, **self._patient))

    async def pin(self, root: str, *, offline: bool = False) -> None:
        options = {"recursive": "true", **({"offline": "true"} if offline else {})}
        lines = await self._lines(lambda: self._client.pin.add(root, opts=options, **self._patient))
        confirm(self.name, "pin", root, lines)

    async def unpin(self, root: str) -> None:
        confirm(self.name, "unpin", root, await self._lines(lambda: self._client.pin.rm(root, **self._patient)))

    async def pins(self) -> Sequence[str]:
        listed = await self._call(lambda: list(self._client.pin.ls(type="recursive")["Keys"]))
        cids = [cid_of_text(text) for text in listed]
        return [str(cid) for cid in cids if cid is not None]

    async def provide(self, root: str) -> None:
        raise ContentUnavailable(
            f"ipfshttpclient knows no routing/provide, so {root} was not announced.",
            next_step="Choose the client 'aiohttp' in the settings, or run `ipfs routing provide` yourself.",
        )

    # ---- threads ---------------------------------------------------------------------------------

    @property
    def _patient(self) -> Mapping[str, Any]:
        return {"stream": True, "timeout": _WORK_SILENCE_S}

    async def _lines(self, call: Callable[[], Any]) -> list[Mapping[str, Any]]:
        """As a stream, because the package insists on exactly one line otherwise, and daemons differ."""
        return await self._call(lambda: [line.as_json() for line in call()])

    async def _stream(self, call: Callable[[], Any]) -> AsyncGenerator[bytes]:
        pieces = await self._call(call)
        try:
            while (piece := await self._call(lambda: next(pieces, b""))) != b"":
                yield piece
        finally:
            with contextlib.suppress(ValueError):  # cancelled while a thread still reads: it ends with its timeout
                await asyncio.to_thread(pieces.close)

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except self._errors as error:
            said = str(error)[:300] if type(error).__name__.endswith("ErrorResponse") else type(error).__name__
            raise ContentUnavailable(f"{self.name} does not deliver. {said}") from None
        except (OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            # requests' own errors are OSErrors; the rest is how the package meets an answer that it does not expect
            raise ContentUnavailable(f"{self.name} does not deliver: {type(error).__name__}.") from None


@asynccontextmanager
async def open_kubo_client(rpc_url: str, *, timeout_s: float = _SILENCE_S) -> AsyncIterator[KuboClientSource]:
    """As `kubo.open_kubo`. Raises NodeMisconfigured also if the package is not installed."""
    address = parse_rpc(rpc_url)
    library = await asyncio.to_thread(_library)
    yield KuboClientSource(address, library, timeout_s)


def _library() -> Any:
    try:
        return importlib.import_module("ipfshttpclient")
    except ImportError as error:
        raise NodeMisconfigured(
            f"The settings ask for ipfshttpclient, which cannot be imported ({error}).",
            next_step="Run: .venv/bin/pip install -e '.[kubo]', or choose the client 'aiohttp'.",
        ) from None


def _multiaddr(address: RpcAddress) -> str:
    """The package takes no URL."""
    host = address.url.host or ""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{address.url.port}/{address.url.scheme}"
