"""The addresses this machine listens on: whether they are free, and what others have to dial.

Asks the operating system; knows nothing of libp2p.
"""

from __future__ import annotations

import socket
from itertools import chain

import psutil

from market.errors import NodeMisconfigured
from p2p.endpoints import reach_of


def check_free(address: str) -> None:
    """Raise NodeMisconfigured unless a multiaddr can be listened on.

    libp2p listens with SO_REUSEPORT: a second node on the same port would start, and get half of the calls.
    """
    try:
        _, version, ip, transport, port = address.split("/")
        family = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}[version]
        if transport != "tcp":
            raise ValueError
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ip, int(port)))
    except (ValueError, KeyError, OverflowError):
        raise NodeMisconfigured(
            f"{address!r} is not an address to listen on.", next_step="Write it as /ip4/0.0.0.0/tcp/4001."
        ) from None
    except OSError as error:
        raise cannot_listen(address, error.strerror or "the address is not ours") from None


def cannot_listen(where: str, why: str) -> NodeMisconfigured:
    return NodeMisconfigured(
        f"cannot listen on {where}: {why}.", next_step="Choose another port, or stop the program that holds it."
    )


def on_every_interface(address: str) -> list[str]:
    """The addresses behind a listener's multiaddr: itself, or for 0.0.0.0 one per interface, farthest first."""
    _, version, ip, *rest = address.split("/")
    if ip not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [address]
    family = socket.AF_INET if version == "ip4" else socket.AF_INET6
    found = [each.address for each in chain(*psutil.net_if_addrs().values()) if each.family == family]
    usable = [each for each in found if "%" not in each]  # fe80::1%eth0 means nothing elsewhere
    return ["/".join(("", version, each, *rest)) for each in sorted(usable, key=_nearest_last)]


def _nearest_last(ip: str) -> int:
    return ("public", "private", "link-local", "loopback", None).index(reach_of(ip))
