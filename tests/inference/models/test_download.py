"""One file over HTTP: ranges, resuming, everything that a server can do wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from inference.models.download import download_file
from inference.models.download_part import SEGMENT_BYTES, Expected
from inference.models.progress import Progress, quiet
from inference.models.remote import RemoteFile
from inference.models.web_client import HttpRefused, Web, open_web
from market.errors import BlockInvalid, ContentUnavailable, DiskFull
from tests.inference.models.hub_kit import MIB, QUICK, Fault, FileHost, serving

DATA = random.Random(4).randbytes(20 * MIB + 12345)
SHA256 = hashlib.sha256(DATA).hexdigest()


@asynccontextmanager
async def host_of(
    data: bytes = DATA, *, silence_s: float = 60.0, **options: bool
) -> AsyncIterator[tuple[FileHost, str, Web]]:
    host = FileHost(**options)
    host.files["m.gguf"] = data
    async with serving(host.app()) as url, open_web(silence_s=silence_s) as client:
        yield host, f"{url}/m.gguf", client


async def bring(client: Web, url: str, folder: Path, **options: object) -> Path:
    settings = {"expected": Expected(sha256=SHA256), "progress": quiet, "patience": QUICK} | options
    return await download_file(RemoteFile(client, url), folder, "https://test/m.gguf", **settings)  # type: ignore[arg-type]


def bytes_asked(host: FileHost) -> int:
    spans = [asked.range.removeprefix("bytes=").split("-") for asked in host.asked]
    return sum(int(end) - int(start) + 1 for start, end in spans)


async def test_a_file_comes_in_ranges_and_the_bar_ends_at_its_size(tmp_path: Path) -> None:
    seen: list[Progress] = []
    async with host_of() as (host, url, client):
        path = await bring(client, url, tmp_path, progress=seen.append)
        assert path.read_bytes() == DATA
        assert len(host.asked) == 3
        assert host.sent_bytes == len(DATA)
        assert await bring(client, url, tmp_path) == path, "what is there and right is not asked for again"
        assert len(host.asked) == 3
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (len(DATA), len(DATA))
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)
    assert list(seen[-1].sources) == ["127.0.0.1"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.name.endswith("-m.gguf")


@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1])
@pytest.mark.parametrize("ranges", [True, False])
async def test_every_size_comes_with_and_without_ranges(tmp_path: Path, size: int, ranges: bool) -> None:
    data = DATA[:size]
    expected = Expected(sha256=hashlib.sha256(data).hexdigest())
    async with host_of(data, ranges=ranges) as (_, url, client):
        assert (await bring(client, url, tmp_path, expected=expected)).read_bytes() == data


async def test_a_stream_without_a_length_is_taken_to_its_end(tmp_path: Path) -> None:
    async with host_of(ranges=False, lengths=False) as (_, url, client):
        assert (await bring(client, url, tmp_path)).read_bytes() == DATA


@pytest.mark.parametrize("ranges", [True, False])
async def test_cut_connections_busy_answers_and_silence_are_waited_out(tmp_path: Path, ranges: bool) -> None:
    faults = [
        Fault(cut_after=MIB), Fault(status=503), Fault(status=429, headers={"Retry-After": "0"}), Fault(pause_s=30),
    ]  # fmt: skip
    async with host_of(ranges=ranges, silence_s=3.0) as (host, url, client):
        host.faults = lambda number, _: faults[number] if number < len(faults) else None
        patience = type(QUICK)(tries=6, pause_s=0.01)
        assert (await bring(client, url, tmp_path, patience=patience)).read_bytes() == DATA


async def test_a_cut_range_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda number, _: Fault(cut_after=3 * MIB) if number == 1 else None
        await bring(client, url, tmp_path)
        assert host.sent_bytes < len(DATA) + MIB, "what came before the cut was kept"


async def test_a_host_that_cuts_every_answer_but_goes_on_is_not_given_up(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(cut_after=MIB)
        assert (await bring(client, url, tmp_path)).read_bytes() == DATA
        host.faults = lambda *_: Fault(cut_after=100)
        with pytest.raises(ContentUnavailable, match="does not deliver"):
            await bring(client, url, tmp_path, expected=Expected(sha256="00" * 32))


async def test_a_host_that_asks_for_time_gets_it_and_one_that_asks_for_too_much_is_given_up(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda number, _: Fault(status=429, headers={"Retry-After": "1"}) if number == 0 else None
        begun = asyncio.get_running_loop().time()
        await bring(client, url, tmp_path)
        assert asyncio.get_running_loop().time() - begun >= 1.0
        host.faults = lambda *_: Fault(status=503, headers={"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"})
        with pytest.raises(ContentUnavailable, match="left alone"):
            await bring(client, url, tmp_path / "..", expected=Expected(sha256="00" * 32))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_a_final_no_is_not_argued_with(tmp_path: Path, status: int) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(status=status)
        with pytest.raises(HttpRefused, match=str(status)):
            await bring(client, url, tmp_path)
        assert len(host.asked) == 1


async def test_wrong_bytes_are_thrown_away_and_the_error_says_which_hash_was_there(tmp_path: Path) -> None:
    async with host_of(DATA[:-1] + b"!") as (_, url, client):
        with pytest.raises(BlockInvalid, match=SHA256) as caught:
            await bring(client, url, tmp_path)
    assert hashlib.sha256(DATA[:-1] + b"!").hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
async def test_another_size_than_promised_is_refused_before_it_comes(tmp_path: Path, ranges: bool) -> None:
    async with host_of(ranges=ranges) as (host, url, client):
        for options in ({"expected": Expected(sha256=SHA256, size_bytes=10)}, {"limit_bytes": MIB}):
            with pytest.raises(BlockInvalid, match=r"promised|limit"):
                await bring(client, url, tmp_path, **options)
        assert host.sent_bytes <= 8 * MIB
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"limit_bytes": 30 * MIB}, {"expected": Expected(sha256=SHA256, size_bytes=len(DATA))}]
)
async def test_an_endless_body_is_cut_at_the_size_that_was_promised(tmp_path: Path, options: dict) -> None:
    async with host_of(ranges=False, lengths=False) as (host, url, client):
        host.faults = lambda *_: Fault(endless=True)
        with pytest.raises(BlockInvalid, match=r"limit|or more"):
            await bring(client, url, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Content-Range": "bytes 5-10/100"}, "another range"),
        ({"Content-Range": "bytes 0-8388607/*"}, "another range"),
        ({"Content-Range": "nonsense"}, "another range"),
        ({"Content-Length": "8388609", "Content-Range": "bytes 0-8388608/20983865"}, "another range"),
        ({"Content-Encoding": "gzip"}, "compressed"),
        ({"Content-Length": "100"}, "another range|does not deliver"),
    ],
)
async def test_an_answer_that_is_not_the_range_that_was_asked_for_is_not_used(
    tmp_path: Path, headers: dict[str, str], why: str
) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(headers=headers)
        with pytest.raises(ContentUnavailable, match=why):
            await bring(client, url, tmp_path)


@pytest.mark.parametrize(("ranges", "claimed"), [(False, len(DATA) + 10), (False, len(DATA) - 10)])
async def test_a_wrong_content_length_never_passes(tmp_path: Path, ranges: bool, claimed: int) -> None:
    async with host_of(ranges=ranges, silence_s=1.0) as (host, url, client):
        host.faults = lambda *_: Fault(headers={"Content-Length": str(claimed)})
        with pytest.raises((ContentUnavailable, BlockInvalid)):
            await bring(client, url, tmp_path)
    assert not list(tmp_path.glob("*m.gguf"))


async def test_a_file_that_changes_between_two_ranges_is_begun_again(tmp_path: Path) -> None:
    async with host_of(bytes(len(DATA))) as (host, url, client):

        def change(number: int, _: web.Request) -> Fault | None:
            if number == 1:
                host.files["m.gguf"] = DATA
            return Fault(pause_s=0.01)

        host.faults = change
        with capture_logs() as lines:
            assert (await bring(client, url, tmp_path)).read_bytes() == DATA
    assert "download_started_over" in [line["event"] for line in lines]


async def test_a_file_that_never_stops_changing_is_given_up(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):

        def change(number: int, _: web.Request) -> Fault | None:
            host.etags["m.gguf"] = f'"{number}"'
            return None

        host.faults = change
        with pytest.raises(ContentUnavailable, match="changes while"):
            await bring(client, url, tmp_path)


# ---- going on ----------------------------------------------------------------------------------------------------


async def interrupted(folder: Path, host: FileHost, url: str, client: Web, after_bytes: int) -> None:
    """Cancel a download once the host has sent that much."""
    task = asyncio.create_task(bring(client, url, folder))
    while host.sent_bytes < after_bytes:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(folder.glob("*.state"))


async def test_a_cancelled_download_goes_on_with_what_it_has(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(pause_s=0.02)
        await interrupted(tmp_path, host, url, client, 10 * MIB)
        host.asked.clear()
        seen: list[Progress] = []
        assert (await bring(client, url, tmp_path, progress=seen.append)).read_bytes() == DATA
        assert seen[0].done_bytes > 8 * MIB
        assert bytes_asked(host) == len(DATA) - seen[0].done_bytes


@pytest.mark.parametrize("damage", ["data", "note", "reboot", "changed", "short"])
async def test_what_was_kept_is_used_only_if_it_is_still_right(tmp_path: Path, damage: str) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(pause_s=0.02)
        await interrupted(tmp_path, host, url, client, 10 * MIB)
        (part,), (state,) = tmp_path.glob("*.download"), tmp_path.glob("*.state")
        if damage == "data":
            with part.open("r+b") as file:
                file.write(b"never sent")
        elif damage == "note":
            state.write_text(json.dumps(json.loads(state.read_text()) | {"filled": [0, 0, SEGMENT_BYTES]}))
        elif damage == "reboot":
            note = json.loads(state.read_text()) | {"boot": "another"}
            state.rename(state.with_suffix(".now")).write_text(json.dumps(note))
        elif damage == "changed":
            host.etags["m.gguf"] = '"another"'
        else:
            os.truncate(part, 1000)
        host.faults = lambda *_: None
        host.asked.clear()
        assert (await bring(client, url, tmp_path)).read_bytes() == DATA
        # all but a hole in the data shows at once; that one shows in the hash, at the end
        assert bytes_asked(host) > len(DATA) - 1000


def noted_in(note: Path) -> list[int]:
    return json.loads(note.read_text())["filled"]


CHILD = """
import asyncio, sys
from pathlib import Path
from inference.models.download import download_file
from inference.models.download_part import Expected
from inference.models.progress import quiet
from inference.models.remote import RemoteFile
from inference.models.web_client import open_web

async def main(url, folder, sha256):
    async with open_web() as client:
        expected, what = Expected(sha256=sha256), "https://test/m.gguf"
        await download_file(RemoteFile(client, url), Path(folder), what, expected=expected, progress=quiet)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.processes
async def test_after_kill_9_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(64 * MIB)
    sha256 = hashlib.sha256(data).hexdigest()
    async with host_of(data) as (host, url, client):
        host.faults = lambda *_: Fault(pause_s=0.1)  # 4 streams of 2.5 MiB/s
        root = str(Path(__file__).parents[3])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, url, str(tmp_path), sha256, env={"PYTHONPATH": root}
        )

        def behind_bytes() -> int:
            """By which the cheap note is behind the host; a sync takes it away."""
            with suppress(FileNotFoundError):
                return host.sent_bytes - max((sum(noted_in(note)) for note in tmp_path.glob("*.now")), default=0)
            return host.sent_bytes

        while host.sent_bytes < 16 * MIB or behind_bytes() > 8 * MIB:  # a child without a core notes nothing
            await asyncio.sleep(0.01)
            assert child.returncode is None
        child.send_signal(signal.SIGKILL)
        await child.wait()
        await asyncio.sleep(0.3)
        for noted in tmp_path.glob("*.now"):
            noted.with_suffix(".state").unlink(missing_ok=True)  # the cheap note has to do, however old the synced one
        before, host.sent_bytes = host.sent_bytes, 0
        host.faults = lambda *_: None
        path = await bring(client, url, tmp_path, expected=Expected(sha256=sha256))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        again = before + host.sent_bytes - len(data)
        # what was sent since the last note, and what still lay in the sockets
        assert again < 12 * MIB, f"{again / MIB:.1f} MiB of {len(data) / MIB:.0f} were sent twice"


async def test_two_downloads_of_one_file_share_the_work(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        paths = await asyncio.gather(bring(client, url, tmp_path), bring(client, url, tmp_path))
        assert paths[0] == paths[1]
        assert host.sent_bytes == len(DATA)


async def test_a_disk_that_is_too_small_is_said_before_the_download(tmp_path: Path) -> None:
    async with host_of() as (host, url, client):
        host.faults = lambda *_: Fault(headers={"Content-Range": f"bytes 0-8388607/{1 << 39}"})
        room = os.statvfs(tmp_path)
        if room.f_bavail * room.f_frsize > 1 << 39:
            pytest.skip("this disk has room for 512 GiB")
        with pytest.raises(DiskFull, match="549755813888 bytes are needed"):
            await bring(client, url, tmp_path)
