"""A peer that echoes and shares, as a program: prints its address and a root CID, then runs until it is killed."""

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncGenerator

from market.errors import ContentUnavailable
from market.identity import PeerId
from market.ports import Conversation
from market.values import cid_text
from p2p.keys import PeerKey
from p2p.network import open_network

ROOT = cid_text(b"\x01\x55\x12\x20" + hashlib.sha256(b"endless").digest())


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class EndlessShelf:
    """Zeroes without end under ROOT."""

    async def block(self, peer: PeerId, cid: str) -> bytes:
        if cid != ROOT:
            raise ContentUnavailable("not here.")
        return b"endless"

    async def read_range(self, peer: PeerId, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        while True:
            yield bytes(256 * 1024)

    async def ticket(self, peer: PeerId) -> str:
        return "ticket"

    async def catalog(self, creator: bytes, name: str) -> bytes:
        return b""

    async def pin(self, peer: PeerId, manifest: str) -> None: ...


async def echo(conversation: Conversation) -> None:
    while True:
        await conversation.send((await conversation.receive(60)).body)


async def main(name: str, listen: str) -> None:
    key = PeerKey(hashlib.sha256(name.encode()).digest())
    async with open_network(
        key=key,
        network="octo-test",
        listen=[listen],
        bootstrap=[],
        serve=echo,
        clock=SystemClock(),
        shelf=EndlessShelf(),
    ) as network:
        sys.stdout.write(f"{network.addresses()[0]} {ROOT}\n")
        sys.stdout.flush()
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
