"""Every bound and every interval of the mesh, in one place, with its reason. Tests use shorter ones."""

from __future__ import annotations

from market.values import value


@value
class NetworkLimits:
    """Bounds on what peers may make us hold, and how long we wait for them.

    `unread_messages` and `unread_bytes` bound one conversation: more than 4,096 frames behind is 80 s of
    coalesced tokens, far past any reader that still cares. A conversation over them ends; its neighbours on
    the same stream go on. `link_unread_bytes` bounds a whole stream while our own event loop is busy; there
    the reader waits, because then nobody could be served anyway.
    """

    tasks_per_peer: int = 64
    tasks_total: int = 1_024
    unread_messages: int = 4_096
    unread_bytes: int = 4 * 1024 * 1024
    link_unread_bytes: int = 4 * 1024 * 1024
    outbox_bytes: int = 1024 * 1024

    # A frame that started must end: a peer that drips bytes holds a buffer of up to 1 MiB.
    frame_timeout_s: float = 10.0
    write_timeout_s: float = 10.0
    open_timeout_s: float = 10.0
    dial_timeout_s: float = 5.0

    # libp2p never notices a frozen peer: 8 + 4 + 4 s to be sure (DESIGN section 5).
    ping_interval_s: float = 8.0
    ping_timeout_s: float = 4.0
    ping_misses: int = 2

    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 60.0
    outbound_peers: int = 16
    peers_per_subnet: int = 2
    connections: int = 300

    offers: int = 1_024
    restart_min_s: float = 0.5
    restart_max_s: float = 30.0


DEFAULT_LIMITS = NetworkLimits()
