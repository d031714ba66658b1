"""Which endpoints out of an Offer may be dialled: rules, without a socket."""

from __future__ import annotations

import pytest

from inference.models.endpoints import may_dial, multiaddr_of_url, url_of_multiaddr
from market.errors import EncodingInvalid


@pytest.mark.parametrize(
    ("multiaddr", "url"),
    [
        ("/ip4/1.2.3.4/tcp/8081/http", "http://1.2.3.4:8081"),
        ("/ip6/2001:db8::1/tcp/80/http", "http://[2001:db8::1]:80"),
    ],
)
def test_an_endpoint_is_a_url_and_back(multiaddr: str, url: str) -> None:
    assert url_of_multiaddr(multiaddr) == url
    assert multiaddr_of_url(url) == multiaddr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/dns4/example.com/tcp/80/http",
        "/ip4/1.2.3.4/tcp/0/http",
        "/ip4/1.2.3.4/tcp/70000/http",
        "/ip4/1.2.3.4/tcp/80",
        "/ip4/1.2.3.4/tcp/80/https",
        "/ip4/1.2.3.4/tcp/80/http/p2p/x",
        "/ip4/::1/tcp/80/http",
        "/ip6/1.2.3.4/tcp/80/http",
        "/ip4/1.2.3/tcp/80/http",
        "/ip4/1.2.3.4/udp/80/http",
        "http://1.2.3.4",
        "/ip4/1.2.3.4/tcp/80/http\n",
    ],
)
def test_what_is_not_ip_tcp_http_is_refused(text: str) -> None:
    with pytest.raises(EncodingInvalid):
        url_of_multiaddr(text)


@pytest.mark.parametrize(
    ("target", "origin", "allowed"),
    [
        ("8.8.8.8", None, True),
        ("8.8.8.8", "1.1.1.1", True),
        ("127.0.0.1", None, False),
        ("127.0.0.1", "8.8.8.8", False),
        ("127.0.0.1", "192.168.1.7", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "/ip4/127.0.0.1/tcp/4001", True),
        ("127.9.9.9", "/ip6/::1/tcp/4001", True),
        ("192.168.1.5", "8.8.8.8", False),
        ("192.168.1.5", "192.168.1.9", True),
        ("10.0.0.5", "192.168.1.9", True),
        ("169.254.169.254", "192.168.1.9", False),
        ("169.254.169.254", "169.254.1.1", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("224.0.0.1", "127.0.0.1", False),
        ("100.64.0.1", None, False),
    ],
)
def test_only_peers_from_inside_may_point_inside(target: str, origin: str | None, allowed: bool) -> None:
    assert may_dial(f"/ip4/{target}/tcp/80/http", origin) is allowed


def test_a_mapped_ipv6_form_gets_around_nothing() -> None:
    assert not may_dial("/ip6/::ffff:127.0.0.1/tcp/80/http", "8.8.8.8")
    assert not may_dial("/ip6/::ffff:127.0.0.1/tcp/80/http", "192.168.1.9")
    assert may_dial("/ip6/::ffff:8.8.8.8/tcp/80/http", None)
    assert not may_dial("/ip6/::1/tcp/80/http", None)
    assert not may_dial("/dns4/localhost/tcp/80/http", "127.0.0.1")
