"""Where content listeners live: `/ip4/1.2.3.4/tcp/8081/http` <-> URL, and whether we may dial one.

Lives here: pure rules of DESIGN section 5. Knows no socket. Only IP addresses: a name would let whoever
owns its DNS point us anywhere, a different place each time.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from market.errors import EncodingInvalid

_MULTIADDR = re.compile(r"/(ip4|ip6)/([0-9a-fA-F:.]{2,45})/tcp/([0-9]{1,5})(/http)?")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def url_of_multiaddr(multiaddr: str) -> str:
    """`http://1.2.3.4:8081`; raises EncodingInvalid for anything but IP, TCP and http."""
    address, port = _parts(multiaddr)
    if not multiaddr.endswith("/http"):
        raise EncodingInvalid(f"{multiaddr[:80]!r} is not an HTTP endpoint.")
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"http://{host}:{port}"


def multiaddr_of_url(url: str) -> str:
    """Raises EncodingInvalid for anything but `http://IP:PORT`."""
    try:
        parts = urlsplit(url)
        address, port = ipaddress.ip_address(parts.hostname or ""), parts.port or 80
    except ValueError:
        raise EncodingInvalid(f"{url[:80]!r} is not a URL with an IP address.") from None
    if parts.scheme != "http" or parts.path not in ("", "/") or parts.query or parts.username or parts.fragment:
        raise EncodingInvalid(f"{url[:80]!r} is not of the form http://IP:PORT.")
    return f"/ip{address.version}/{address}/tcp/{port}/http"


def may_dial(multiaddr: str, peer_connected_from: str | None) -> bool:
    """Whether an endpoint out of a peer's Offer may be dialled.

    Loopback, link-local and private addresses only if the peer itself is connected from that very range
    (`peer_connected_from`: its multiaddr or IP address as our socket sees it, None if it is not connected);
    otherwise an Offer could aim our requests at services inside our own network. Never multicast or unspecified.
    """
    try:
        target, _ = _parts(multiaddr)
    except EncodingInvalid:
        return False
    if target.is_multicast or target.is_unspecified:
        return False
    if target.is_global:
        return True
    origin = _address_of(peer_connected_from)
    return origin is not None and _range_of(origin) == _range_of(target) != "other"


def _range_of(address: IpAddress) -> str:
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "private" if address.is_private else "other"


def _parts(multiaddr: str) -> tuple[IpAddress, int]:
    match = _MULTIADDR.fullmatch(multiaddr)
    try:
        address = ipaddress.ip_address(match[2]) if match else None
    except ValueError:
        address = None
    if match is None or address is None or f"ip{address.version}" != match[1] or not 0 < int(match[3]) < 65536:
        raise EncodingInvalid(f"{multiaddr[:80]!r} is not an IP multiaddr.")
    return _unmapped(address), int(match[3])


def _address_of(text: str | None) -> IpAddress | None:
    if text is None:
        return None
    host = text.split("/")[2] if text.startswith(("/ip4/", "/ip6/")) else text
    try:
        return _unmapped(ipaddress.ip_address(host))
    except ValueError:
        return None


def _unmapped(address: IpAddress) -> IpAddress:
    """::ffff:127.0.0.1 is 127.0.0.1: the mapped form must not slip past the rules for the plain one."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
