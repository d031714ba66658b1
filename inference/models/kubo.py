"""A Kubo node behind its RPC: a source like any other, and a place to push our models to. Plain aiohttp.

Lives here: what we ask of a Kubo (`Kubo`, which the adapter of `kubo_client` keeps as well) and the calls; all of them
are POST. Knows no store; what comes from here is verified like anyone's.
Source: https://docs.ipfs.tech/reference/kubo/rpc/
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
from pydantic_core import from_json

from inference.models.cid import BLOCK_LIMIT_BYTES, parse_cid
from inference.models.kubo_address import RpcAddress, parse_rpc
from inference.models.kubo_answers import (
    LINE_LIMIT_BYTES,
    cid_of_text,
    confirm,
    message_of,
    read_lines,
    same_cid,
    text_of,
)
from market.errors import BlockInvalid, ContentUnavailable
from market.ports import ContentSource
from market.values import value

_SILENCE_S = 30.0
"""A Kubo that has to look for a block in its network needs some seconds for the first byte."""
_WORK_SILENCE_S = 600.0
"""Pinning reads every block of a model before it answers; some versions say nothing meanwhile."""
_READ_BYTES = 256 * 1024


@value
class KuboIdentity:
    """`agent` is like `kubo/0.39.0/`; `addresses` are multiaddrs, none while it is offline."""

    peer: str
    agent: str
    addresses: tuple[str, ...]


def identity_of(said: Mapping[str, Any]) -> KuboIdentity:
    listed = said.get("Addresses")
    addresses = tuple(str(one)[:256] for one in listed[:64]) if isinstance(listed, list) else ()
    return KuboIdentity(peer=text_of(said, "ID"), agent=text_of(said, "AgentVersion"), addresses=addresses)


class Kubo(ContentSource, Protocol):
    """What we ask of a Kubo node. All of it raises ContentUnavailable, with the daemon's own words where it has any."""

    async def version(self) -> str: ...

    async def identity(self) -> KuboIdentity: ...

    async def holds(self, cid: str) -> bool:
        """Whether it has that block itself, without looking for it."""

    async def import_car(self, car: bytes) -> None:
        """Give it blocks under their own CIDs. They are not pinned; a collection may remove them until a root is."""

    async def pin(self, root: str, *, offline: bool = False) -> None:
        """Keep everything below `root`. `offline`: fail rather than look for a missing block."""

    async def unpin(self, root: str) -> None: ...

    async def pins(self) -> Sequence[str]:
        """Roots that are pinned recursively, as CIDv1; those with other hashes than sha2-256 are left out."""

    async def provide(self, root: str) -> None:
        """Tell its network who has `root`."""


class KuboSource:
    """`Kubo` over aiohttp; made by `open_kubo`. `name` holds no secret."""

    def __init__(self, address: RpcAddress, session: aiohttp.ClientSession, *, timeout_s: float = _SILENCE_S) -> None:
        self.name = address.name
        self._address = address
        self._session = session
        self._timeout_s = timeout_s

    # ---- a source --------------------------------------------------------------------------------

    async def block(self, cid: str) -> bytes:
        data, options = bytearray(), {"arg": cid, "timeout": f"{self._timeout_s:g}s"}
        async with self._blamed(), self._call("block/get", options) as answer:
            async for piece in answer.content.iter_any():
                data += piece
                if len(data) > BLOCK_LIMIT_BYTES:
                    raise BlockInvalid(f"{self.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
        return bytes(data)

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        left, options = length, {"arg": root, "offset": str(start), "length": str(length)}
        async with self._blamed(), self._call("cat", options) as answer:
            async for piece in answer.content.iter_any():
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    # ---- a node ----------------------------------------------------------------------------------

    async def version(self) -> str:
        return text_of(await self._one("version", {}), "Version")

    async def identity(self) -> KuboIdentity:
        return identity_of(await self._one("id", {}))

    async def holds(self, cid: str) -> bool:
        try:
            said = await self._one("block/stat", {"arg": cid, "offline": "true", "timeout": "2s"})
        except ContentUnavailable:
            return False
        return same_cid(said.get("Key"), parse_cid(cid))

    async def import_car(self, car: bytes) -> None:
        form = aiohttp.FormData()
        form.add_field("file", car, filename="dag.car", content_type="application/vnd.ipld.car")
        options = {"pin-roots": "false", "allow-big-block": "true"}  # "big" is over 1 MiB; ours end at 2
        await self._all("dag/import", options, form)

    async def pin(self, root: str, *, offline: bool = False) -> None:
        wanted = {"arg": root, "recursive": "true", "progress": "true", **({"offline": "true"} if offline else {})}
        confirm(self.name, "pin", root, await self._all("pin/add", wanted))

    async def unpin(self, root: str) -> None:
        confirm(self.name, "unpin", root, await self._all("pin/rm", {"arg": root, "recursive": "true"}))

    async def pins(self) -> Sequence[str]:
        listed = await self._all("pin/ls", {"type": "recursive", "stream": "true"})
        return [str(cid) for line in listed if (cid := cid_of_text(line.get("Cid"))) is not None]

    async def provide(self, root: str) -> None:
        await self._all("routing/provide", {"arg": root})

    # ---- calls -----------------------------------------------------------------------------------

    async def _one(self, command: str, options: Mapping[str, str]) -> dict[str, Any]:
        async with self._blamed(), self._call(command, options) as answer:
            async for line in read_lines(answer, self.name):
                return line
        raise ContentUnavailable(f"{self.name} answered {command} with nothing.")

    async def _all(
        self, command: str, options: Mapping[str, str], body: aiohttp.FormData | None = None
    ) -> list[dict[str, Any]]:
        """Progress lines are not kept: there may be one for every half second of an hour."""
        async with self._blamed(), self._call(command, options, body, _WORK_SILENCE_S) as answer:
            return [line async for line in read_lines(answer, self.name) if "Progress" not in line]

    @asynccontextmanager
    async def _call(
        self,
        command: str,
        options: Mapping[str, str],
        body: aiohttp.FormData | None = None,
        silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        silence_s = silence_s or self._timeout_s + 5  # the daemon, told the same limit, should speak first
        headers = {"Authorization": self._address.authorization} if self._address.authorization else {}
        async with self._session.post(
            self._address.url / "api/v0" / command,
            params=options,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout_s, 10.0), sock_read=silence_s),
        ) as answer:
            if answer.status != 200:
                raise await self._refusal(command, answer)
            yield answer

    async def _refusal(self, command: str, answer: aiohttp.ClientResponse) -> ContentUnavailable:
        if answer.status in (401, 403):
            return ContentUnavailable(
                f"{self.name} refuses us ({answer.status}).",
                next_step="Put the user and password, or the token, of its API.Authorizations before the host.",
            )
        try:
            said = message_of(from_json(await answer.content.read(LINE_LIMIT_BYTES)))
        except ValueError:
            said = ""
        return ContentUnavailable(f"{self.name} answered {answer.status} to {command}. {said}".strip())

    @asynccontextmanager
    async def _blamed(self) -> AsyncIterator[None]:
        """What aiohttp says of a failure may hold the URL; its kind is enough."""
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ContentUnavailable(
                f"{self.name} does not deliver: {type(error).__name__}.",
                next_step="Check that the daemon runs and that the setting names its RPC, not its gateway.",
            ) from None


@asynccontextmanager
async def open_kubo(rpc_url: str, *, timeout_s: float = _SILENCE_S) -> AsyncIterator[KuboSource]:
    """`rpc_url` as in `kubo_address.parse_rpc`; nothing is asked yet. Raises NodeMisconfigured for a bad address."""
    address = parse_rpc(rpc_url)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_BYTES,
        max_line_size=8192,
        max_field_size=8192,
    ) as session:
        yield KuboSource(address, session, timeout_s=timeout_s)
