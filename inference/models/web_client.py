"""GET with our manners: https, few redirects, no secret to another host, no way from a public host into a private net.

Lives here: the two HTTP sessions (anywhere; public addresses only) and the walk along redirects. Knows no file, no
range and no hash. No cookies, no proxies, no compression; a URL is never logged or put into an error, because the
ones that a CDN signs are secrets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from inference.models.references import is_loopback
from market.errors import ContentUnavailable
from market.values import value

REDIRECT_LIMIT = 5
_HEADER_LIMIT_BYTES = 16 * 1024
"""A signed location has 1 to 2 kB."""
_READ_BYTES = 256 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
IsPublic = Callable[[Address], bool]
OnHop = Callable[[Mapping[str, str]], None]


class HttpRefused(ContentUnavailable):
    """An answer that is not the file. `error_code` is the Hub's own word for it (X-Error-Code)."""

    def __init__(self, host: str, status: int, *, error_code: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{host} answered {status}.")
        self.status = status
        self.error_code = error_code
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether asking again later makes sense."""
        return self.status in (408, 425, 429) or self.status >= 500


class WayRefused(ContentUnavailable):
    """A redirect or a certificate that we do not accept; asking again changes nothing."""


@value
class Target:
    """A URL and what holds on the way there. `secret`: the caller's Authorization may go along; `public_only`: a
    public host, or a stranger, has sent us there; `plain`: we began with http on loopback."""

    url: URL
    secret: bool = True
    public_only: bool = False
    plain: bool = False


class Web:
    """Made by `open_web`. Errors are ContentUnavailable and name hosts, not URLs."""

    def __init__(
        self, anywhere: aiohttp.ClientSession, public: aiohttp.ClientSession, is_public: IsPublic, silence_s: float
    ) -> None:
        self._anywhere = anywhere
        self._public = public
        self._is_public = is_public
        self._silence_s = silence_s

    @asynccontextmanager
    async def open_get(
        self, target: Target, headers: Mapping[str, str], *, authorization: str | None, on_hop: OnHop
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Target]]:
        """The first answer that is no redirect, and where it came from. `on_hop` sees the headers of each answer."""
        for _ in range(REDIRECT_LIMIT + 1):
            try:
                async with asyncio.timeout(2 * self._silence_s):
                    response, target = await self._ask(target, headers, authorization)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                raise broken(target.url, error) from None
            async with response:
                if response.status < 400:
                    on_hop(response.headers)
                if response.status not in _REDIRECTS:
                    yield response, target
                    return
                target = _next(target, response.headers.get("Location", ""))
        raise WayRefused(f"{target.url.host} is behind more than {REDIRECT_LIMIT} redirects.")

    async def _ask(
        self, target: Target, headers: Mapping[str, str], authorization: str | None
    ) -> tuple[aiohttp.ClientResponse, Target]:
        """Over the public session first: if that reaches the host, it is public, and nothing behind it may be private.
        The address is checked where the connection is made, so that a name cannot mean two things."""
        sent = {"Accept-Encoding": "identity", **headers}
        if authorization and target.secret:
            sent["Authorization"] = authorization
        if _literal_allowed(target.url, self._is_public):
            try:
                answer = await self._public.get(target.url, headers=sent, allow_redirects=False)
            except aiohttp.ClientConnectorDNSError as error:
                if not isinstance(error.os_error, _PrivateHostError):
                    raise
            else:
                return answer, Target(url=target.url, secret=target.secret, public_only=True, plain=target.plain)
        if target.public_only:
            raise _PrivateHostError("sent us to an address that is not public")
        return await self._anywhere.get(target.url, headers=sent, allow_redirects=False), target


@asynccontextmanager
async def open_web(
    *,
    tls: ssl.SSLContext | None = None,
    silence_s: float = 30.0,
    is_public: IsPublic | None = None,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[Web]:
    """HTTP for all origins of a node. `tls` replaces the system's certificate authorities; a host that sends nothing
    for `silence_s` is given up; `is_public` and `resolver` replace the real rule and the real DNS."""
    rule = is_public or is_public_address
    names = resolver or aiohttp.ThreadedResolver()
    async with AsyncExitStack() as stack:
        anywhere, public = [
            await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, ssl=tls or True, resolver=one),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"User-Agent": "octo-node"},
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(silence_s, 10.0), sock_read=silence_s),
                    auto_decompress=False,
                    trust_env=False,
                    read_bufsize=_READ_BYTES,
                    max_line_size=_HEADER_LIMIT_BYTES,
                    max_field_size=_HEADER_LIMIT_BYTES,
                )
            )
            for one in (names, _PublicResolver(names, rule))
        ]
        yield Web(anywhere, public, rule, silence_s)


def is_public_address(address: Address) -> bool:
    """Global, and not an IPv4 address of another kind in IPv6 clothes (mapped, 6to4, NAT64)."""
    inner: Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


def broken(url: URL, error: Exception) -> ContentUnavailable:
    """What a connection that failed means, without what aiohttp says of it: that may quote the URL."""
    host = url.host or "the host"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return WayRefused(
            f"{host} shows a certificate that no authority known here has signed.",
            next_step="Check the address; if the host is your own, add its authority to this machine's.",
        )
    if isinstance(error, _PrivateHostError) or (
        isinstance(error, aiohttp.ClientConnectorDNSError) and isinstance(error.os_error, _PrivateHostError)
    ):
        return WayRefused(f"{host} is not a public address, and we were sent there by somebody who is.")
    if isinstance(error, TimeoutError):
        return ContentUnavailable(f"{host} is silent.", next_step="Check the network and try again.")
    return ContentUnavailable(f"{host} does not deliver: {type(error).__name__}.", next_step="Check the network.")


class _PrivateHostError(OSError):
    """A name with no public address, where only those are allowed."""


class _PublicResolver(AbstractResolver):
    def __init__(self, names: AbstractResolver, is_public: IsPublic) -> None:
        self._names = names
        self._is_public = is_public

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        public = [one for one in found if self._is_public(ipaddress.ip_address(one["host"].split("%")[0]))]
        if not public:
            raise _PrivateHostError("no public address")
        return public

    async def close(self) -> None:
        """The resolver inside belongs to the other session, which closes it."""


def _literal_allowed(url: URL, is_public: IsPublic) -> bool:
    """False for an IP address that is not public; names are looked at when they are resolved."""
    try:
        return is_public(ipaddress.ip_address(url.raw_host or ""))
    except ValueError:
        return True


def _next(here: Target, location: str) -> Target:
    host = here.url.host
    try:
        url = here.url.join(URL(location))
        same = url.origin() == here.url.origin()
        credentials = url.user is not None or url.password is not None
    except ValueError:
        raise WayRefused(f"{host} redirects to something that is no URL.") from None
    plain = here.plain and is_loopback(url.raw_host or "")
    if not location or credentials or (url.scheme != "https" and not (url.scheme == "http" and plain)):
        raise WayRefused(f"{host} redirects to something that is not https.")
    return Target(url=url, secret=here.secret and same, public_only=here.public_only, plain=here.plain)
