"""Orbital's relay: one asyncio process that stores and fans out envelopes which it can't read.

A frame's way, file by file:

    gateway       accepts sockets: caps, origin, the client's real address; `websocket` is the socket itself,
                  `handshakes` answers requests that are alike, `strangers` shares the room of those who have
                  not authenticated, `incoming` makes messages of its bytes
    session       one connection: decodes frames, keeps their order (`ordering`), answers each request once
    dispatch      frame type -> handler, and the scope that it needs; `caller` is who asks
    handlers/     what each request does: accounts, sessions, tokens, groups, members, invites, posts, subscriptions,
                  uploads, media
    control       the one flow of every request that changes a group; `policy` says who may
    writer        posts: append lanes, micro-batch -> one transaction -> acknowledgements
    store/        PostgreSQL: pool, named queries, one small module a subject
                  (commit, NOTIFY)
    listener      hears what other relays commit, sweeps; `hints` are the payloads, `reactions` what is done about them
    fanout        one event to many outboxes, contiguous; `ring` holds what was just committed here
    outbox        the bounded queue of one connection: one write a tick
    replay        subscribe and resume: pages from the store (`pages` keeps some for others), joins fan-out's live set
    batcher       what many ask of the database at once, in one statement

Around it:

    relay         the composition root; `assembly` builds the handlers
    registry      the live connections, for pushes, revocation and drain
    heartbeat     pings, silence, slow readers, tokens that run out
    credentials   passwords, access and refresh tokens; `token_keys` signs them, `keys` checks users' keys
    limits        token buckets, login back-off
    announcer     tells other relays what has no table behind it
    media/        files: their uploads, and where their bytes are kept
    janitor       removes what has expired; `reclaimer` does so for files and their blobs
    embedded      the PostgreSQL that comes along
    operators     metrics and health; `metrics`, `logs` (written by the thread in `sink`)
    config        settings; `reloading` takes over what changes of them; `errors` is what clients are told
    tls           the certificate, if TLS is the relay's own
    cli           the command line; `commands/` and `admin` are what it does; `supervisor` hears of it

Imports point downwards only; `make lint` says so.
"""

__version__ = "0.1.0"
