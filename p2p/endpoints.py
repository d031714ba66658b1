"""Which addresses may be dialled: the endpoint rules of DESIGN section 5, as pure functions.

An Offer is written by a stranger. Without these rules it could make us dial the victim's database on
127.0.0.1 or a printer on the LAN (server-side request forgery), or fill our mesh from one rack (eclipse).
"""

from __future__ import annotations

import ipaddress
from typing import Literal

from market.errors import EncodingInvalid
from market.identity import PeerId, public_key_of_peer
from market.values import value

Reach = Literal["loopback", "link-local", "private", "public"]


@value
class Endpoint:
    """`/ip4|ip6/<ip>/tcp/<port>`, and the peer that should answer there, if it was named."""

    ip: str
    port: int
    peer: PeerId | None = None

    @property
    def address(self) -> str:
        """The multiaddr without the peer."""
        return f"/ip{ipaddress.ip_address(self.ip).version}/{self.ip}/tcp/{self.port}"

    def __str__(self) -> str:
        return f"{self.address}/p2p/{self.peer}" if self.peer else self.address


def parse_endpoint(text: str) -> Endpoint:
    """Parse an IP multiaddr over TCP; raises EncodingInvalid for names, other transports and special addresses."""
    parts = text.split("/")
    if len(text) > 256 or len(parts) not in (5, 7) or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise EncodingInvalid(f"{text[:80]!r} is not an address of the form /ip4/…/tcp/…[/p2p/…].")
    peer = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise EncodingInvalid(f"{text[:80]!r} is not an address of the form /ip4/…/tcp/…[/p2p/…].")
        public_key_of_peer(parts[6])
        peer = PeerId(parts[6])
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        raise EncodingInvalid(f"{text[:80]!r} has no IP address; names are not looked up.") from None
    # isdecimal alone also accepts other scripts' digits.
    is_number = parts[4].isascii() and parts[4].isdecimal() and len(parts[4]) <= 5
    if f"ip{ip.version}" != parts[1] or "%" in parts[2] or not is_number or not 0 < int(parts[4]) < 65536:
        raise EncodingInvalid(f"{text[:80]!r} has a wrong address or port.")
    if reach_of(str(ip)) is None:
        raise EncodingInvalid(f"{text[:80]!r} cannot be dialled: nobody can be reached at {ip}.")
    return Endpoint(ip=str(ip), port=int(parts[4]), peer=peer)


def reach_of(ip_text: str) -> Reach | None:
    """How far an address reaches; None for multicast, unspecified and reserved ones.

    Private is whatever the Internet does not route: RFC 1918, fc00::/7, carrier-grade NAT, test networks.
    """
    ip = ipaddress.ip_address(ip_text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped  # ::ffff:127.0.0.1 is 127.0.0.1 to the kernel
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_multicast or ip.is_unspecified or (ip.version == 4 and ip.is_reserved):
        return None
    return "public" if ip.is_global else "private"


def may_dial(endpoint: Endpoint, *, heard_from_ip: str | None) -> bool:
    """Whether to dial an address that a peer, connected from `heard_from_ip`, told us about.

    Public ones always; loopback, link-local and private ones only if the teller is reached the same way.
    """
    reach = reach_of(endpoint.ip)
    if reach is None or reach == "public":
        return reach is not None
    return heard_from_ip is not None and reach_of(heard_from_ip) == reach


def subnet_of(ip_text: str) -> str | None:
    """The /24 (IPv6: /48, what one site gets) that counts against eclipse; None on loopback."""
    if reach_of(ip_text) == "loopback":
        return None
    prefix = 24 if ipaddress.ip_address(ip_text).version == 4 else 48
    return str(ipaddress.ip_network(f"{ip_text}/{prefix}", strict=False))
