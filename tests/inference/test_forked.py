"""Tasks in forks: what they put arrives, how they end is known, what they may not do they cannot."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from inference.work.forked import Chunk, ForkFailed, Forks, Sink


@pytest.fixture
def forks():
    return Forks(cpu_limit_s=1)


def results(forks: Forks, work) -> list[Chunk]:
    with forks.run(work) as chunks:
        return [chunk for chunk in chunks if chunk]


def test_chunks_arrive_in_order_however_large(forks: Forks) -> None:
    sent = [os.urandom(size) for size in (0, 1, 70_000, 1_000_000, 3)]

    def work(sink: Sink) -> None:
        for at, data in enumerate(sent):
            sink.put(data, at * 20)

    assert results(forks, work) == [Chunk(data, at * 20) for at, data in enumerate(sent)]


def test_a_fork_that_dies_is_told_with_what_it_had_put(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        sink.put(b"so far")
        os.kill(os.getpid(), signal.SIGTERM)

    got = []
    with pytest.raises(ForkFailed, match="SIGTERM"), forks.run(work) as chunks:
        for chunk in chunks:
            got.append(chunk)
    assert Chunk(b"so far", 0) in got
    assert results(forks, lambda sink: sink.put(b"next")) == [Chunk(b"next", 0)]


def test_an_error_in_a_fork_is_its_exit_status(forks: Forks) -> None:
    with pytest.raises(ForkFailed, match="exit status 1"):
        results(forks, lambda sink: 1 // 0)


def test_a_fork_that_turns_in_circles_is_ended(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        while True:
            pass

    with pytest.raises(ForkFailed, match="SIGKILL"):
        results(forks, work)


def test_leaving_early_ends_the_fork_and_nothing_of_it_is_left(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        while True:
            sink.put(str(os.getpid()).encode())

    with forks.run(work) as chunks:
        pid = int(next(chunk for chunk in chunks if chunk).data)
        time.sleep(0.1)  # the pipe fills
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert results(forks, lambda sink: sink.put(b"next")) == [Chunk(b"next", 0)]


def test_a_fork_that_puts_nonsense_is_no_result(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        os.write(sink._handle, b"\xff" * 5)

    with pytest.raises(ForkFailed, match="cannot be"):
        results(forks, work)

    def half(sink: Sink) -> None:
        os.write(sink._handle, b"\0\0")

    with pytest.raises(ForkFailed):
        results(forks, half)


def attempt(sink: Sink, *actions) -> None:
    for action in actions:
        try:
            action()
        except OSError as error:
            sink.put(str(error.errno).encode())
        else:
            sink.put(b"done")


def test_behind_a_closed_door_nothing_is_opened(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        sink.close_the_door()
        attempt(sink, lambda: open(__file__).close(), socket.socket, lambda: os.read(0, 1))

    assert [chunk.data for chunk in results(forks, work)] == [b"24", b"24", b"9"]  # EMFILE, EMFILE, EBADF


def test_where_sockets_are_forbidden_files_are_opened_still(forks: Forks) -> None:
    def work(sink: Sink) -> None:
        sink.forbid_sockets()
        attempt(
            sink,
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
            socket.socketpair,
            lambda: open(__file__).close(),
        )

    assert [chunk.data for chunk in results(forks, work)] == [b"1", b"1", b"1", b"done"]  # EPERM


def test_waiting_leaves_time_for_other_things(forks: Forks) -> None:
    mine, theirs = socket.socketpair()

    def work(sink: Sink) -> None:
        theirs.recv(1)
        sink.put(b"late")

    waits: list[Chunk | None] = []
    with mine, theirs, forks.run(work) as chunks:
        for chunk in chunks:
            waits.append(chunk)
            if waits == [None] * 3:
                mine.send(b"!")
    assert [chunk.data for chunk in waits if chunk] == [b"late"]
