"""Events, each at least once: through restarts, limits of the endpoint, and blocks that are taken back."""

import secrets

import pytest
from worlds import QUICK

from contracts.chain import Block, Log
from contracts.cursor import Cursor
from contracts.faults import ChainRefused
from contracts.keeping import FileKeeper, MemoryKeeper
from contracts.sender import open_sender


class ScriptedChain:
    """Blocks that a test writes and takes back; refuses spans over `span`."""

    host = "scripted"

    def __init__(self, *, span: int = 10_000) -> None:
        self.number, self.held, self.asked, self.span = 0, [], [], span

    async def head(self) -> Block:
        return Block(number=self.number, hash=bytes(32), timestamp=0, base_fee=0)

    async def logs(self, first: int, last: int, *, addresses: object, topics: object) -> list[Log]:
        self.asked.append((first, last))
        if last - first >= self.span:
            raise ChainRefused("query returned more than 10000 results")
        return [log for log in self.held if first <= log.block <= last]

    def happens(self, block: int, name: bytes = b"") -> None:
        self.number = max(self.number, block)
        self.held.append(
            Log(address=bytes(20), topics=(), data=name, block=block, block_hash=secrets.token_bytes(32),
                transaction=bytes(32), index=0)
        )  # fmt: skip


class Heard:
    def __init__(self) -> None:
        self.new, self.removed, self.failure = [], [], None

    async def __call__(self, new, removed) -> None:
        if self.failure is not None:
            raise self.failure
        self.new += [log.data for log in new]
        self.removed += [log.data for log in removed]


def cursor(chain, keeper=None, **options) -> Cursor:
    return Cursor(chain, keeper or MemoryKeeper(), addresses=[bytes(20)], start=5, **options)


async def test_what_happened_before_is_filled_in_and_each_is_heard_once():
    chain, heard = ScriptedChain(), Heard()
    for block in (6, 900, 4_100):
        chain.happens(block, b"%d" % block)
    reading = cursor(chain)
    await reading.step(heard)
    chain.happens(4_101, b"new")
    await reading.step(heard)
    await reading.step(heard)
    assert heard.new == [b"6", b"900", b"4100", b"new"]
    assert chain.asked[0][0] == 5
    assert all(last - first < 2_000 for first, last in chain.asked)


async def test_a_span_that_the_endpoint_refuses_is_halved_until_it_passes():
    chain, heard = ScriptedChain(span=100), Heard()
    for block in range(10, 1_000, 90):
        chain.happens(block, b"%d" % block)
    await cursor(chain).step(heard)
    assert len(heard.new) == 11
    silent = ScriptedChain(span=0)
    silent.happens(20)
    with pytest.raises(ChainRefused):
        await cursor(silent).step(heard)


async def test_a_log_in_a_block_that_was_taken_back_is_told_as_removed():
    chain, heard = ScriptedChain(), Heard()
    chain.happens(50, b"stays")
    chain.happens(60, b"goes")
    reading = cursor(chain)
    await reading.step(heard)
    chain.held.pop()
    chain.happens(61, b"comes instead")
    await reading.step(heard)
    assert (heard.new, heard.removed) == ([b"stays", b"goes", b"comes instead"], [b"goes"])


async def test_a_chain_that_is_shorter_than_before_is_read_again():
    chain, heard = ScriptedChain(), Heard()
    chain.happens(60, b"old")
    reading = cursor(chain)
    await reading.step(heard)
    chain.held.clear()
    chain.number = 58
    await reading.step(heard)
    chain.happens(59, b"new")
    await reading.step(heard)
    assert (heard.new, heard.removed) == ([b"old", b"new"], [b"old"])


async def test_the_place_is_kept_only_when_what_was_heard_was_dealt_with():
    chain, heard, keeper = ScriptedChain(), Heard(), MemoryKeeper()
    chain.happens(50, b"first")
    heard.failure = ChainRefused("not now")
    with pytest.raises(ChainRefused):
        await cursor(chain, keeper).step(heard)
    heard.failure = None
    await cursor(chain, keeper).step(heard)
    assert heard.new == [b"first"]
    chain.number = 100
    await cursor(chain, keeper).step(heard)
    await cursor(chain, keeper).step(heard)
    assert chain.asked[-1][0] == 100 + 1 - 16, "a restart reads the last blocks again, not all"


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"block":"x"}', b'{"block":-5}', b"null", b"[" * 100_000])
async def test_a_damaged_note_costs_reading_again_and_no_more(kept):
    chain, heard, keeper = ScriptedChain(), Heard(), MemoryKeeper()
    keeper.data = kept
    chain.happens(50, b"first")
    await cursor(chain, keeper).step(heard)
    assert heard.new == [b"first"]


async def test_a_real_reorganisation_is_told(anvil):
    wallet, heard = await anvil.wallet(), Heard()
    reading = Cursor(anvil.chain, MemoryKeeper(), addresses=[anvil.octo.address], start=0)
    await reading.step(heard)
    before = len(heard.new)
    async with open_sender(anvil.chain, wallet, QUICK) as sender:
        await sender.send(anvil.octo.transfer(secrets.token_bytes(20), 5))
        await reading.step(heard)
        assert len(heard.new) == before + 1
        await anvil.rpc.call("anvil_reorg", 1, [])
        await reading.step(heard)
    assert len(heard.removed) == 1


async def test_a_file_is_whole_or_as_it_was(tmp_path):
    keeper = FileKeeper(tmp_path / "deep" / "note.json")
    assert await keeper.load() is None
    await keeper.save(b"one")
    (tmp_path / "deep" / "note.json.new").write_bytes(b"tw")  # as after a kill while writing
    assert await FileKeeper(tmp_path / "deep" / "note.json").load() == b"one"
    await keeper.save(b"three")
    assert await keeper.load() == b"three"
    assert (tmp_path / "deep" / "note.json").stat().st_mode & 0o777 == 0o600
