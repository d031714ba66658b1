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

    # /octo/blocks: a stream holds at most about 6 MiB here, see p2p.blocks. We ask for half of what we serve,
    # so that two of our own requests never meet "busy" because the end of a third is still on its way.
    content_streams: int = 64
    content_streams_per_peer: int = 16
    content_requests_per_peer: int = 8
    content_wait_s: float = 10.0
    """The longest silence in the middle of an answer."""
    content_idle_s: float = 30.0
    """How long a reader may pause before its request is ended: a full disk, a debugger, an attack."""

    # The DHT. A look-up may meet anybody: few dials at once, few questions, few names from each answer.
    dht_dials: int = 4
    dht_queries: int = 32
    dht_query_timeout_s: float = 5.0
    dht_lookup_timeout_s: float = 20.0
    # libp2p's own servers take 10 ADD_PROVIDER in 10 s from a peer; ours twice as many, and 20 questions a second.
    dht_pace_s: float = 1.05
    dht_streams: int = 32
    dht_streams_per_peer: int = 4
    # 16,384 records of some 500 bytes: 8 MB at most that strangers can make us keep.
    dht_records: int = 16_384
    dht_records_per_peer: int = 1_024
    # Half of the 22 h after which a record should be said again (IPFS), a quarter of the 48 h that it lasts.
    dht_republish_s: float = 11 * 3600.0

    offers: int = 1_024
    restart_min_s: float = 0.5
    restart_max_s: float = 30.0


DEFAULT_LIMITS = NetworkLimits()
