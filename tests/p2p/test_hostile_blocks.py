"""What may arrive on `/octo/blocks`, from askers and from sources, and what it may not do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libp2p.abc import INetStream

from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from market.values import encode
from p2p.blocks import (
    AHEAD_BYTES,
    BLOCKS_PROTOCOL,
    CREDIT_BYTES,
    HEAD_LIMIT_BYTES,
    MORE,
    OK,
    Answer,
    Ask,
    WantBlock,
    WantRange,
    answer_frame,
    answer_of,
    ask_frame,
    ask_of,
    piece_frame,
    piece_size,
)
from p2p.limits import NetworkLimits
from p2p.network import OctoNetwork

Join = Callable[..., AbstractAsyncContextManager[OctoNetwork]]
NewMallory = Callable[..., AbstractAsyncContextManager[Any]]
NewShelf = Callable[..., Any]
Until = Callable[..., Awaitable[None]]
ROOT = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def plain_ask(**want: object) -> bytes:
    import libipld

    return framed(libipld.encode_dag_cbor({"want": want}))


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "ones": b"\xff" * 64,
    "nothing": b"\x00" * 4,
    "oversized": (HEAD_LIMIT_BYTES + 1).to_bytes(4, "big") + b"x" * 100,
    "nested without end": framed(b"\x81" * 4_000),
    "half a frame": (500).to_bytes(4, "big") + b"\xa6" * 10,
    "no such wish": plain_ask(kind="everything"),
    "a number for a cid": plain_ask(kind="block", cid=7),
    "a cid of 10,000 letters": plain_ask(kind="block", cid="b" * 3_900),
    "a negative start": plain_ask(kind="range", root=ROOT, start=-1, length=1),
    "no length": plain_ask(kind="range", root=ROOT, start=0, length=0),
    "a length past all bounds": plain_ask(kind="range", root=ROOT, start=0, length=2**60),
    "an unknown field": plain_ask(kind="ticket", please=True),
    "a short creator": plain_ask(kind="catalog", creator=b"x", name="octo"),
    "an answer": answer_frame(Answer(code=OK)),
}


@pytest.mark.net
async def test_a_request_that_is_none_ends_its_own_stream_and_nothing_else(
    join: Join, mallory: NewMallory, new_shelf: NewShelf, limits: NetworkLimits
) -> None:
    shelf, strict = new_shelf(), replace(limits, content_wait_s=5)
    root = shelf.put(b"content")
    async with join("bob", shelf=shelf, limits=strict) as bob, join("anna", to=bob) as anna, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        run = bob._bridge
        for name, garbage in GARBAGE.items():
            assert await stranger.send(bob.peer, BLOCKS_PROTOCOL, garbage), name
            if stranger.heard:
                assert answer_of(stranger.heard[4:]).code == "invalid", name
            assert await anna.content_of(bob.peer).block(root), name
            assert bob._bridge is run, name
            assert stranger.peer in {peer.peer for peer in bob.peers()}, name


@pytest.mark.net
async def test_credit_for_what_was_never_sent_ends_the_answer(
    join: Join, mallory: NewMallory, new_shelf: NewShelf, until: Until
) -> None:
    shelf = new_shelf()
    root = shelf.put(bytes(32 * CREDIT_BYTES))
    async with join("bob", shelf=shelf) as bob, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        ask = ask_frame(WantRange(root=root, start=0, length=32 * CREDIT_BYTES))
        assert await stranger.send(bob.peer, BLOCKS_PROTOCOL, ask + MORE * 64)
        assert len(stranger.heard) < 8 * CREDIT_BYTES
        await until(lambda: shelf.reading == 0)


@pytest.mark.net
async def test_a_flood_of_streams_is_cut_off_and_others_are_served(
    join: Join, mallory: NewMallory, new_shelf: NewShelf, limits: NetworkLimits
) -> None:
    shelf, strict = new_shelf(), replace(limits, content_wait_s=5)
    root = shelf.put(b"content")
    async with join("bob", shelf=shelf, limits=strict) as bob, join("anna", to=bob) as anna, mallory() as stranger:
        await stranger.dial(bob.addresses()[0])
        flood = [asyncio.create_task(stranger.send(bob.peer, BLOCKS_PROTOCOL)) for _ in range(100)]
        await asyncio.sleep(0.5)
        for _ in range(5):
            assert await anna.content_of(bob.peer).block(root)
        ends = await asyncio.gather(*flood, return_exceptions=True)
        assert all(ends)  # with True, or with the error of a stream that was cut off while it opened


async def answer_with(stream: INetStream, *pieces: bytes, stay_s: float = 0) -> None:
    await stream.read(HEAD_LIMIT_BYTES)
    for piece in pieces:
        await stream.write(piece)
    await trio.sleep(stay_s)
    await stream.close()
    await trio.sleep(1)


YES = answer_frame(Answer(code=OK))
LIES = {
    "no answer at all": ((b"\xff" * 100,), BlockInvalid),
    "an answer of 4 GB": ((b"\xff\xff\xff\xff",), BlockInvalid),
    "a code that is no word": ((framed(encode(Answer, Answer(code="Not Here /etc"))),), BlockInvalid),
    "a request": ((ask_frame(WantBlock(cid=ROOT)),), BlockInvalid),
    "an unknown code": ((answer_frame(Answer(code="on_holiday")),), ContentUnavailable),
    "the stream ends": ((YES,), ContentUnavailable),
    "the stream ends inside a piece": ((YES, (100).to_bytes(4, "big"), b"x" * 50), ContentUnavailable),
    "a piece past all bounds": ((YES, b"\x7f\xff\xff\xff", b"x" * 100), BlockInvalid),
    "more than a block may be": ((YES, *[piece_frame(bytes(2**20))] * 3), BlockInvalid),
}


@pytest.mark.net
async def test_a_source_that_answers_nonsense_is_told_apart_from_one_that_fails(
    join: Join, mallory: NewMallory
) -> None:
    lies: list[tuple[bytes, ...]] = []

    async def lie(_: str, stream: INetStream) -> None:
        await answer_with(stream, *lies[-1])

    async with join("bob") as bob, mallory({BLOCKS_PROTOCOL: lie}) as liar:
        await bob.connect(liar.addresses()[0])
        for name, (pieces, error) in LIES.items():
            lies.append(pieces)
            with pytest.raises(error):
                await bob.content_of(liar.peer).block(ROOT)
            assert bob.peers(), name


@pytest.mark.net
async def test_a_range_longer_than_asked_for_is_blamed_after_what_was_asked(join: Join, mallory: NewMallory) -> None:
    async def gush(_: str, stream: INetStream) -> None:
        await answer_with(stream, YES, piece_frame(b"x" * 10), piece_frame(b"y" * 10))

    async with join("bob") as bob, mallory({BLOCKS_PROTOCOL: gush}) as liar:
        await bob.connect(liar.addresses()[0])
        data = b""
        with pytest.raises(BlockInvalid):
            async with aclosing(bob.content_of(liar.peer).read_range(ROOT, 0, 15)) as pieces:
                async for piece in pieces:
                    data += piece
        assert data == b"x" * 10


@pytest.mark.net
async def test_a_source_that_does_not_wait_for_a_slow_reader_is_cut_off(join: Join, mallory: NewMallory) -> None:
    over = threading.Event()

    async def gush(_: str, stream: INetStream) -> None:
        try:
            await answer_with(stream, YES, *[piece_frame(bytes(CREDIT_BYTES))] * 64)
        finally:
            over.set()

    async with join("bob") as bob, mallory({BLOCKS_PROTOCOL: gush}) as hasty:
        await bob.connect(hasty.addresses()[0])
        size = 0
        with pytest.raises(BlockInvalid, match="without waiting"):
            async with aclosing(bob.content_of(hasty.peer).read_range(ROOT, 0, 2**40)) as pieces:
                async for piece in pieces:
                    if not size:
                        assert await asyncio.to_thread(over.wait, 60), "it is not cut off"
                    size += len(piece)
        assert size <= AHEAD_BYTES


@pytest.mark.net
async def test_a_source_that_falls_silent_is_given_up_in_time(
    join: Join, mallory: NewMallory, limits: NetworkLimits
) -> None:
    async def stall(_: str, stream: INetStream) -> None:
        await answer_with(stream, YES, piece_frame(b"x" * 10), stay_s=120)

    strict = replace(limits, content_wait_s=5)
    async with join("bob", limits=strict) as bob, mallory({BLOCKS_PROTOCOL: stall}) as silent:
        await bob.connect(silent.addresses()[0])
        with pytest.raises(ContentUnavailable, match="silent for 5 s"):
            async with asyncio.timeout(60):
                await bob.content_of(silent.peer).block(ROOT)


@given(body=st.binary(max_size=300))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_bytes_make_a_parser_raise_anything_but_encoding_invalid(body: bytes) -> None:
    for parse in (ask_of, answer_of, piece_size):
        try:
            parse(body)  # type: ignore[operator]
        except EncodingInvalid:
            continue


def test_a_request_survives_the_wire() -> None:
    want = WantRange(root=ROOT, start=2**40, length=os.cpu_count() or 1)
    assert ask_of(ask_frame(want)[4:]) == Ask(want=want)
