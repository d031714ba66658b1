"""Which addresses may be dialled, and whose word counts for which."""

import pytest

from market.errors import EncodingInvalid
from p2p.endpoints import may_dial, parse_endpoint, reach_of, subnet_of
from p2p.keys import PeerKey

PEER = PeerKey(bytes(32)).peer


def test_an_endpoint_reads_back_as_it_was_written() -> None:
    for text in (f"/ip4/8.8.8.8/tcp/4001/p2p/{PEER}", "/ip6/2a00::1/tcp/1"):
        assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "8.8.8.8:4001",
        "/dns4/example.org/tcp/4001",
        "/ip4/example.org/tcp/4001",
        "/ip4/8.8.8.8/udp/4001",
        "/ip4/8.8.8.8/tcp/0",
        "/ip4/8.8.8.8/tcp/65536",
        "/ip4/8.8.8.8/tcp/٣",
        "/ip4/8.8.8.8/tcp/4001/ws",
        "/ip4/8.8.8.8/tcp/4001/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        f"/ip4/8.8.8.8/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "/ip6/8.8.8.8/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/255.255.255.255/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip6/fe80::1%eth0/tcp/4001",
        "/ip4/8.8.8.8/tcp/0000049999999",
        "/ip4/8.8.8.8/tcp/" + "4" * 300,
    ],
)
def test_what_is_no_plain_ip_endpoint_is_refused(text: str) -> None:
    with pytest.raises(EncodingInvalid):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("ip", "reach"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("10.1.2.3", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("8.8.8.8", "public"),
        ("2a00::1", "public"),
    ],
)
def test_reach_tells_near_from_far(ip: str, reach: str) -> None:
    assert reach_of(ip) == reach


@pytest.mark.parametrize(
    ("target", "teller", "allowed"),
    [
        ("/ip4/8.8.8.8/tcp/1", "9.9.9.9", True),
        ("/ip4/127.0.0.1/tcp/1", "127.0.0.1", True),
        ("/ip4/127.0.0.1/tcp/5432", "9.9.9.9", False),
        ("/ip4/127.0.0.1/tcp/1", "192.168.1.7", False),
        ("/ip4/169.254.169.254/tcp/80", "9.9.9.9", False),
        ("/ip4/192.168.1.5/tcp/1", "192.168.1.7", True),
        ("/ip4/192.168.1.5/tcp/1", "9.9.9.9", False),
        ("/ip4/192.168.1.5/tcp/1", None, False),
    ],
)
def test_near_addresses_count_only_from_a_teller_that_is_as_near(
    target: str, teller: str | None, allowed: bool
) -> None:
    assert may_dial(parse_endpoint(target), heard_from_ip=teller) is allowed


def test_a_subnet_is_a_rack_and_loopback_is_none() -> None:
    assert subnet_of("8.8.8.8") == subnet_of("8.8.8.250") != subnet_of("8.8.9.8")
    assert subnet_of("127.0.0.1") is None
