"""Where a Kubo's RPC lives, and the key to it: out of one line of the settings, never to be printed whole.

Lives here: which addresses may be used at all. The RPC is full control over that node, without a key of its own
unless its owner set one, so it must not travel in the open. Knows no socket.
Source: https://docs.ipfs.tech/reference/kubo/rpc/ (API.Authorizations: basic or bearer).
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import field
from urllib.parse import unquote

from yarl import URL

from market.errors import NodeMisconfigured
from market.values import value

_FORM = "http://127.0.0.1:5001, http://192.168.1.5:5001 or https://[USER:PASSWORD@]HOST"
_DEFAULT_PORT = 5001


@value
class RpcAddress:
    """`url` holds no secret; `authorization` is what goes into the header of that name, empty if nothing does."""

    url: URL
    authorization: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return f"kubo at {self.url.host}:{self.url.port}"


def parse_rpc(text: str) -> RpcAddress:
    """`USER:PASSWORD@` before the host becomes basic authorization, a lone `TOKEN@` a bearer token.

    Raises NodeMisconfigured, which never quotes `text`, for plain http to anything but this machine or a private
    address (or a name, which could become a public address), and for what is no URL.
    """
    try:
        url = URL(text)
        host, user, password = url.raw_host or "", url.raw_user, url.raw_password
        url = url.with_user(None).with_fragment(None).with_query(None).with_path("/")
        if not url.explicit_port and url.scheme == "http":
            url = url.with_port(_DEFAULT_PORT)
    except ValueError:
        host, user, password = "", None, None
    if not host or url.scheme not in ("http", "https") or url.port == 0:
        raise NodeMisconfigured("The address of Kubo's RPC is not a URL.", next_step=f"The form is {_FORM}.")
    if url.scheme == "http" and not _inside(host):
        raise NodeMisconfigured(
            "Kubo's RPC gives full control over that node, and plain http to a name or a public address would carry "
            "it in the open.",
            next_step="Use https, with authorization, or the IP address of a machine in the same private network.",
        )
    return RpcAddress(url=url, authorization=_authorization(user, password))


def _inside(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address  # else ::ffff:0.0.0.0 would be something
    return (address.is_private or address.is_loopback) and not address.is_unspecified


def _authorization(user: str | None, password: str | None) -> str:
    if not user:
        return ""
    if password is None:
        return f"Bearer {unquote(user)}"
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
