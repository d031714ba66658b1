"""The libp2p host, trio side: TCP + noise + yamux, ed25519 identity, and none of libp2p's own ideas whom to dial.

Everything here that looks odd keeps a stranger from taking the node down, see the comments. Knows no
messages, no offers and no policy: `p2p.dialer` decides whom to dial, `p2p.mesh` puts it together.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import structlog
import trio
from libp2p import new_host
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from market.errors import EncodingInvalid, PeerGone, PeerTimedOut
from market.identity import PeerId, public_key_of_peer
from p2p.endpoints import Endpoint
from p2p.keys import PeerKey
from p2p.limits import NetworkLimits
from p2p.listening import cannot_listen, check_free, on_every_interface

StreamHandler = Callable[[PeerId, INetStream], Awaitable[None]]

_log = structlog.get_logger()


class Host:
    """A running host. `on_connected` is called at a peer's first connection, `on_disconnected` after its last.

    Two nodes that dial each other at once hold two connections; who listens here hears of peers only.
    """

    def __init__(self, libp2p_host: Any, limits: NetworkLimits) -> None:
        self.libp2p = libp2p_host
        self._swarm = libp2p_host.get_network()
        self._limits = limits
        self.on_connected: Callable[[PeerId], None] = _ignore
        self.on_disconnected: Callable[[PeerId], None] = _ignore
        self._present: set[PeerId] = set()
        self._swarm.register_notifee(_Notifee(self._opened, self._left))

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial us, with our id; a listener on all interfaces has one address for each."""
        return tuple(each for address in self.libp2p.get_addrs() for each in on_every_interface(str(address)))

    def listening(self) -> tuple[str, ...]:
        """What we are bound to, ports filled in."""
        return tuple(str(address) for address in self.libp2p.get_transport_addrs())

    def is_connected(self, peer: PeerId) -> bool:
        return bool(self._connections(peer))

    def connected(self) -> tuple[PeerId, ...]:
        return tuple(PeerId(str(peer)) for peer in self._swarm.connections if self._swarm.connections[peer])

    def remote(self, peer: PeerId) -> tuple[str, int] | None:
        """IP and port at the other end of the peer's connection; None once it is gone."""
        for connection in self._connections(peer):
            found = connection.muxed_conn.get_remote_address()
            if found is not None:
                return str(found[0]), int(found[1])
        return None

    def claimed_addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where a connected peer says that it listens (libp2p's identify); nobody has checked it."""
        try:
            return tuple(str(address) for address in self.libp2p.get_peerstore().addrs(ID.from_string(peer)))
        except Exception:  # noqa: BLE001 - a peer that said nothing, or said nonsense
            return ()

    def is_outbound(self, peer: PeerId) -> bool:
        return any(connection.direction.name == "OUTBOUND" for connection in self._connections(peer))

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol. What `handler` raises ends its stream and nothing else."""

        async def serve(stream: INetStream) -> None:
            try:
                peer = PeerId(str(stream.muxed_conn.peer_id))
                public_key_of_peer(peer)  # RSA and secp256k1 peers have no place in this market
                await handler(peer, stream)
            finally:
                await quietly_reset(stream)

        self.libp2p.set_stream_handler(TProtocol(protocol), guarded(serve, protocol))

    async def dial(self, endpoint: Endpoint) -> None:
        """Connect, if not connected. Raises PeerGone or PeerTimedOut.

        `dial_addr` and not `connect`: that one waits 251 ms whatever happens, tries one address of several,
        and remembers a failure for 60 s in a negative cache.
        """
        peer = endpoint.peer
        if peer is None:
            raise EncodingInvalid(f"{endpoint} does not say which peer to expect there.")
        if self.is_connected(peer):
            return
        try:
            with trio.fail_after(self._limits.dial_timeout_s):
                await self._swarm.dial_addr(Multiaddr(endpoint.address), ID.from_string(peer))
        except trio.TooSlowError:
            raise PeerTimedOut(f"no connection to {endpoint} in {self._limits.dial_timeout_s} s.", peer=peer) from None
        except Exception as error:  # noqa: BLE001 - libp2p lets many kinds through
            cause = error.__cause__ or error
            raise PeerGone(f"cannot connect to {endpoint}: {type(cause).__name__}.", peer=peer) from None

    async def open_stream(self, peer: PeerId, protocol: str) -> INetStream:
        """A new stream on the existing connection. Raises PeerGone or PeerTimedOut."""
        if not self.is_connected(peer):
            raise PeerGone(f"{peer} is not connected.", peer=peer)
        try:
            with trio.fail_after(self._limits.open_timeout_s):
                stream: INetStream = await self.libp2p.new_stream(ID.from_string(peer), [TProtocol(protocol)])
                return stream
        except trio.TooSlowError:
            raise PeerTimedOut(f"{peer} did not open {protocol} in time.", peer=peer) from None
        except Exception as error:  # noqa: BLE001 - libp2p lets many kinds through
            raise PeerGone(f"{peer} did not open {protocol}: {type(error).__name__}.", peer=peer) from None

    async def abort(self, peer: PeerId) -> None:
        """Close every connection of a peer now, without good-byes.

        A polite close writes GO_AWAY first, which never returns for a frozen peer with a full socket;
        closing the socket underneath wakes every reader and writer with an error. The peer counts as gone
        from here on: when it comes back while we still close, that is a new arrival.
        """
        connections = self._connections(peer)
        if peer in self._present:
            self._present.discard(peer)
            self.on_disconnected(peer)
        for connection in connections:
            with trio.move_on_after(1):
                await quietly(connection.muxed_conn.secured_conn.close)
            with trio.move_on_after(2):
                await quietly(connection.close)

    def _opened(self, peer: PeerId, connection: INetConn) -> None:
        _keep_writes_whole(cast(Any, connection.muxed_conn).secured_conn, self._limits.write_timeout_s)
        self._arrived(peer)

    def _arrived(self, peer: PeerId) -> None:
        if peer not in self._present:
            self._present.add(peer)
            self.on_connected(peer)

    def _left(self, peer: PeerId) -> None:
        if peer in self._present and not self.is_connected(peer):
            self._present.discard(peer)
            self.on_disconnected(peer)

    def _connections(self, peer: PeerId) -> list[Any]:
        found = self._swarm.connections.get(ID.from_string(peer), ())
        return [connection for connection in found if not connection.is_closed]


@asynccontextmanager
async def open_host(key: PeerKey, listen: Sequence[str], limits: NetworkLimits) -> AsyncIterator[Host]:
    """A host listening on `listen` multiaddrs. Raises NodeMisconfigured if an address cannot be listened on."""
    for address in listen:
        check_free(address)
    addresses = [Multiaddr(address) for address in listen]
    pair = key.key_pair()
    # Noise only: a default host also accepts plaintext, where a peer id is claimed and never proven.
    noise = NoiseTransport(pair, noise_privkey=new_x25519_key_pair().private_key)
    # A peer that hangs up is no warning; libp2p's import sets its loggers to WARNING.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    libp2p_host = new_host(
        key_pair=pair,
        listen_addrs=addresses,
        sec_opt={TProtocol(NOISE_PROTOCOL_ID): noise},
        muxer_preference="YAMUX",
        # Peers' reports of our address would otherwise end up in what we advertise.
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(max_connections=limits.connections, min_connections=0, low_watermark=0),
    )
    _tame(libp2p_host.get_network())
    host = Host(libp2p_host, limits)
    async with libp2p_host.run(listen_addrs=addresses):
        if len(libp2p_host.get_network().listeners) < len(addresses):
            raise cannot_listen(" ".join(listen), "not every listener started")
        yield host


def guarded(handler: Callable[..., Awaitable[None]], name: str) -> Callable[..., Awaitable[None]]:
    """`handler`, but what it raises is logged: an exception that reaches libp2p's nursery kills the whole host."""

    async def run(*args: Any) -> None:
        try:
            await handler(*args)
        except Exception as error:  # noqa: BLE001 - see above
            _log.debug("p2p.handler_failed", handler=name, error=type(error).__name__)

    return run


async def quietly(close: Callable[[], Awaitable[object]]) -> None:
    try:
        await close()
    except Exception as error:  # noqa: BLE001 - closing what is already broken
        _log.debug("p2p.close_failed", error=type(error).__name__)


async def quietly_reset(stream: INetStream) -> None:
    """Reset a stream even while being cancelled, waiting a second at most."""
    with trio.move_on_after(1) as scope:
        scope.shield = True
        await quietly(stream.reset)


def _tame(swarm: Any) -> None:
    # One try per dial: p2p.dialer has its own back-off.
    swarm.retry_config = RetryConfig(max_retries=0)

    # libp2p would dial on its own whatever addresses strangers put into identify, 127.0.0.1 included:
    # every 30 s through the auto-connector, and whenever a stream to an unconnected peer is asked for.
    async def no_auto_connect() -> None:
        return None

    async def no_dial(peer_id: ID) -> list[INetConn]:
        raise SwarmException(f"{peer_id} is not connected, and only p2p.dialer dials")

    swarm.auto_connector.maybe_connect = no_auto_connect
    swarm.dial_peer = no_dial

    # The outermost handler negotiates protocols with a stranger's bytes before any of our handlers runs.
    swarm.set_stream_handler(guarded(swarm.common_stream_handler, "negotiation"))


def _keep_writes_whole(secured: Any, limit_s: float) -> None:
    """Let no cancellation come between the encryption of a packet and its last byte on the socket.

    Noise numbers its packets: one that is encrypted and not sent, or sent in part, makes the next one
    undecipherable and ends the connection with every stream on it. Yamux writes window updates inside of
    `read`, so even a cancelled read would do (seen: every second closed download). A write that is stuck for
    `limit_s` ends the connection instead.
    """
    write = secured.write

    async def write_whole(data: bytes) -> None:
        with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
            scope.shield = True
            await write(data)
        if scope.cancelled_caught:
            with trio.move_on_after(1):
                await quietly(secured.close)
            raise ConnectionClosedError(f"nothing was taken for {limit_s} s", transport="tcp")

    secured.write = write_whole


class _Notifee(INotifee):
    def __init__(self, opened: Callable[[PeerId, INetConn], None], left: Callable[[PeerId], None]) -> None:
        self._opened = opened
        self._left = left

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._opened(PeerId(str(conn.muxed_conn.peer_id)), conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._left(PeerId(str(conn.muxed_conn.peer_id)))

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


def _ignore(_: PeerId) -> None:
    return None
