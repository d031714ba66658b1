"""Where redirects may lead, who a public host is, and what our requests carry."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from inference.models.download import download_file
from inference.models.download_part import Expected
from inference.models.progress import quiet
from inference.models.remote import RemoteFile
from inference.models.web_client import REDIRECT_LIMIT, WayRefused, Web, is_public_address, open_web
from market.errors import RequestInvalid
from tests.inference.models.hub_kit import QUICK, FileHost, serving

DATA = b"weights" * 1000
EXPECTED = Expected(sha256=hashlib.sha256(DATA).hexdigest())


async def bring(client: Web, url: str, folder: Path, *, strangers_word: bool = False) -> Path:
    remote = RemoteFile(client, url, strangers_word=strangers_word)
    return await download_file(remote, folder, "https://test/m.gguf", expected=EXPECTED, progress=quiet, patience=QUICK)


def redirecting(where: Callable[[web.Request], str]) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": where(request)})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("/round", f"more than {REDIRECT_LIMIT} redirects"),
        ("", "not https"),
        ("http://example.com/a", "not https"),
        ("ftp://127.0.0.1/a", "not https"),
        ("file:///etc/passwd", "no URL"),
        ("http://user:pass@127.0.0.1/a", "not https"),
        ("http://[::1", "no URL"),
    ],
)
async def test_a_redirect_to_nowhere_good_is_refused_at_once(tmp_path: Path, location: str, why: str) -> None:
    async with serving(redirecting(lambda _: location)) as url, open_web() as client:
        with pytest.raises(WayRefused, match=why):
            await bring(client, f"{url}/m.gguf", tmp_path)


class Names(AbstractResolver):
    """A DNS of our own; every name but those in it is unknown."""

    def __init__(self, **addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self._addresses:
            raise OSError("unknown name")
        address = self._addresses[host]
        return [{"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None: ...


PUBLIC = ipaddress.ip_address("127.0.0.2")
"""Stands for an address out on the internet; every other one on loopback is private, as it really is."""


async def test_a_public_host_cannot_send_us_into_a_private_network_by_address_or_by_name(tmp_path: Path) -> None:
    inside = FileHost()
    inside.files["m.gguf"] = DATA
    targets = {"literal": "http://127.0.0.1:{port}/m.gguf", "name": "http://localhost:{port}/m.gguf"}
    async with serving(inside.app()) as private:
        port = private.rsplit(":", 1)[1]
        app = redirecting(lambda request: targets[request.query["to"]].format(port=port))
        names = Names(localhost="127.0.0.1")
        async with (
            serving(app, host="127.0.0.2") as public,
            open_web(is_public=lambda address: address == PUBLIC, resolver=names) as client,
        ):
            for kind in targets:
                with pytest.raises(WayRefused, match="not a public address"):
                    await bring(client, f"{public}/m.gguf?to={kind}", tmp_path)
            assert inside.asked == []
            # the user's own word may name a private host, and that one may redirect anywhere
            assert await bring(client, f"{private}/m.gguf", tmp_path)


async def test_a_strangers_reference_reaches_no_private_address(tmp_path: Path) -> None:
    host = FileHost()
    async with serving(host.app()) as url, open_web() as client:
        with pytest.raises(WayRefused, match="not a public address"):
            await bring(client, f"{url}/m.gguf", tmp_path, strangers_word=True)
        assert host.asked == []


async def test_redirects_within_the_public_and_out_of_the_private_are_followed(tmp_path: Path) -> None:
    host = FileHost()
    host.files["m.gguf"] = DATA
    async with (
        serving(host.app(), host="127.0.0.2") as public,
        serving(redirecting(lambda _: f"{public}/m.gguf")) as first,
        open_web(is_public=lambda address: address == PUBLIC) as client,
    ):
        assert (await bring(client, f"{first}/m.gguf", tmp_path)).read_bytes() == DATA


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("127.0.0.1", False),
        ("10.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("::1", False), ("fe80::1", False), ("fc00::1", False), ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_an_address_is_public_only_if_it_is_in_every_guise(address: str, public: bool) -> None:
    assert is_public_address(ipaddress.ip_address(address)) is public


async def test_a_session_of_ours_sends_no_cookie_and_asks_for_no_compression(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(body=b"x", headers={"Set-Cookie": "a=b"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    expected = Expected(sha256=hashlib.sha256(b"x").hexdigest())
    async with serving(app) as url, open_web() as client:
        for name in ("a", "b"):
            await download_file(RemoteFile(client, f"{url}/a"), tmp_path, name, expected=expected, progress=quiet)
    assert [headers.get("Cookie") for headers in seen] == [None, None]
    assert {headers["Accept-Encoding"] for headers in seen} == {"identity"}
    assert {headers["User-Agent"] for headers in seen} == {"octo-node"}


def test_only_https_is_taken_but_on_loopback() -> None:
    with pytest.raises(RequestInvalid, match="Only https"):
        RemoteFile(None, "http://example.com/a")  # type: ignore[arg-type]
