"""Files on the wire: whole on every loop, cut where they must not go on, and nothing left open behind."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from inference.models.store import Store
from node.content.sending import send_span
from tests.inference.models.store_kit import put, seeded
from tests.node.content.kit import DATA, LEAF, MIB, ask, connected, listening, read_answer

BIG = seeded(24 * MIB)
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@LOOPS
def test_files_come_whole_and_in_order_on_every_loop(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Requests are sent ahead, so that headers of one answer wait in the transport while a file goes past it."""

    async def scenario() -> None:
        store = Store(tmp_path / "models")
        root, tiny = await put(store, tmp_path, BIG, public=True), await put(store, tmp_path, b"tiny", public=True)
        async with listening(store) as url, asyncio.timeout(60):
            before = open_files()
            for _ in range(3):
                async with connected(url) as (reader, writer):
                    ranges = ["bytes=0-", "bytes=5-5", "bytes=-3000000", "bytes=1048576-9999999"]
                    for span in ranges:
                        writer.write(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\nRange: {span}\r\n\r\n".encode())
                        writer.write(f"GET /ipfs/{tiny} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    for wanted in (BIG, BIG[5:6], BIG[-3_000_000:], BIG[MIB:10_000_000]):
                        assert (await read_answer(reader)).body == wanted
                        assert (await read_answer(reader)).body == b"tiny"
            while open_files() > before:
                await asyncio.sleep(0.02)
        store.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


@LOOPS
def test_a_file_does_not_overtake_what_a_slow_reader_has_not_yet_taken(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """When the kernel's buffer is full, the transport still holds the end of a block as the next answer begins."""

    async def scenario() -> None:
        store = Store(tmp_path / "models")
        root = await put(store, tmp_path, DATA, public=True)
        async with listening(store) as url, asyncio.timeout(60):
            with _small_reader(url) as reader:
                running = asyncio.get_running_loop()
                block = f"GET /ipfs/{LEAF}?format=raw HTTP/1.1\r\nHost: x\r\n\r\n"
                part = f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-99\r\n\r\n"
                last = "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                await running.sock_sendall(reader, ((block + part) * 24 + last).encode())
                got = bytearray()
                while piece := await running.sock_recv(reader, 16 * 1024):
                    got += piece
            for body in (DATA[:MIB], DATA[:100]) * 24:
                start = got.index(b"\r\n\r\n") + 4
                assert got[start : start + len(body)] == body
                del got[: start + len(body)]
        store.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


async def test_progress_that_never_adds_up_is_no_progress(tmp_path: Path) -> None:
    """The sockets' buffers are small here, so that every few bytes that a reader takes are felt at once."""
    (tmp_path / "file").write_bytes(DATA)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as to:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        to.connect(server.getsockname())
        reader, _ = server.accept()
        with reader, (tmp_path / "file").open("rb") as file:
            await _send_to_a_dripping_reader(to, reader, file.fileno())


async def _send_to_a_dripping_reader(to: socket.socket, reader: socket.socket, file: int) -> None:

    async def drip() -> None:
        while True:
            reader.recv(1024)
            await asyncio.sleep(0.01)

    to.setblocking(False)
    dripping = asyncio.ensure_future(drip())
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await send_span(to.fileno(), file, (0, len(DATA)), in_thread=asyncio.to_thread, patience_s=0.5)
    dripping.cancel()


@LOOPS
@pytest.mark.parametrize("drip", [0, 4096])
def test_a_reader_that_takes_nothing_or_next_to_nothing_is_cut_off(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], drip: int
) -> None:
    async def scenario() -> None:
        store = Store(tmp_path / "models")
        root = await put(store, tmp_path, BIG, public=True)
        async with listening(store, patience_s=0.6) as url, asyncio.timeout(60):
            before = open_files()
            with _small_reader(url) as reader:
                running = asyncio.get_running_loop()
                await running.sock_sendall(reader, f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                with pytest.raises(ConnectionError):
                    got = len(await running.sock_recv(reader, 100))  # it has begun
                    while not _is_cut(reader):
                        await asyncio.sleep(0.02)
                        if drip:
                            got += len(await running.sock_recv(reader, drip))
                    while piece := await running.sock_recv(reader, MIB):
                        got += len(piece)
                assert got < len(BIG)
                while open_files() > before + 1:  # + 1: the reader's own
                    await asyncio.sleep(0.02)
        store.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


def _is_cut(reader: socket.socket) -> bool:
    """Whether the connection was reset; takes nothing from it."""
    end = select.poll()
    end.register(reader, 0)
    return bool(end.poll(0))


def _small_reader(url: str) -> socket.socket:
    """A client whose kernel takes little, so that what it does not read is soon felt by the sender."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = url.removeprefix("http://").split(":")
    reader.connect((host, int(port)))
    reader.setblocking(False)
    return reader


async def test_a_slow_reader_that_goes_on_reading_gets_it_all(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, BIG, public=True)
    async with listening(store, patience_s=5) as url, asyncio.timeout(60), connected(url) as (reader, writer):
        writer.write(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        got = bytearray()
        while len(got) < len(BIG):
            got += await reader.read(256 * 1024)
            await asyncio.sleep(0.005)
    assert got == BIG


async def test_a_file_that_changes_while_it_is_sent_is_cut_short(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, BIG, public=True)
    async with listening(store) as url, asyncio.timeout(60):
        with _small_reader(url) as reader:
            running = asyncio.get_running_loop()
            await running.sock_sendall(reader, f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = len(await running.sock_recv(reader, 4096))
            path = store.path_of(root)
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.seek(20 * MIB)
                file.write(b"other")
            with pytest.raises(ConnectionError):
                while piece := await running.sock_recv(reader, MIB):
                    got += len(piece)
                raise ConnectionResetError("closed")
            assert got < len(BIG)
        assert (await ask(url, f"/ipfs/{root}")).status == 404


async def test_readers_that_hang_up_leave_nothing_open(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, BIG, public=True)
    async with listening(store) as url, asyncio.timeout(60):
        await ask(url, f"/ipfs/{root}", method="HEAD")
        before = open_files()
        for _ in range(20):
            async with connected(url) as (reader, writer):
                writer.write(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await reader.readexactly(1000)
                writer.transport.abort()
        while open_files() > before:
            await asyncio.sleep(0.02)
        assert (await ask(url, f"/ipfs/{root}", headers={"Range": "bytes=-9"})).body == BIG[-9:]


async def test_a_listener_that_ends_does_not_wait_for_its_readers(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, BIG, public=True)
    async with asyncio.timeout(60):
        async with listening(store) as url:
            with _small_reader(url) as reader:
                running = asyncio.get_running_loop()
                await running.sock_sendall(reader, f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await running.sock_recv(reader, 100)
        assert DATA  # the block above has ended, and with it the listener


async def test_many_readers_at_once_all_get_the_same_bytes(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, BIG, public=True)
    spans = [(n * 517_000, n * 517_000 + 3_000_000) for n in range(12)]
    async with listening(store) as url:
        answers = await asyncio.gather(
            *(ask(url, f"/ipfs/{root}", headers={"Range": f"bytes={start}-{stop - 1}"}) for start, stop in spans)
        )
    assert [answer.body for answer in answers] == [BIG[start:stop] for start, stop in spans]
