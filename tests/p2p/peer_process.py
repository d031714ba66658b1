"""A peer that echoes, as a program: prints its address, then runs until it is killed."""

import asyncio
import hashlib
import sys
import time

from market.ports import Conversation
from p2p.keys import PeerKey
from p2p.network import open_network


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


async def echo(conversation: Conversation) -> None:
    while True:
        await conversation.send((await conversation.receive(60)).body)


async def main(name: str, listen: str) -> None:
    key = PeerKey(hashlib.sha256(name.encode()).digest())
    async with open_network(
        key=key, network="octo-test", listen=[listen], bootstrap=[], serve=echo, clock=SystemClock()
    ) as network:
        sys.stdout.write(network.addresses()[0] + "\n")
        sys.stdout.flush()
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
